"""Settings of Kafka clients: authentication, and verification of brokers and records."""

from typing import Literal

from pydantic import Field, SecretStr

from vicinage.settings.group import Group


class KafkaSettings(Group):
    """vicinage/log: authentication of every Kafka client, and its verification of the brokers."""

    security: Literal["plaintext", "tls", "sasl", "sasl-tls"] = Field(
        default="plaintext",
        description="plaintext, tls (with kafka.cert_file: mTLS), sasl, or sasl-tls",
    )
    mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        default="", description="SASL mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
    )
    username: str = Field(
        default="", description="SASL user; with kafka.token_url the OAuth client id"
    )
    password: SecretStr = Field(
        default=SecretStr(""),
        description="SASL password; with kafka.token_url the OAuth client secret",
    )
    token_file: str = Field(
        default="",
        description=(
            "file with an OAUTHBEARER token that another program renews; read at each connection"
        ),
    )
    token_url: str = Field(
        default="", description="OAuth token endpoint (client credentials), for OAUTHBEARER"
    )
    token_scope: str = Field(default="", description="OAuth scope to request; empty: none")
    ca_file: str = Field(
        default="",
        description=(
            "PEM file of the authorities that sign the brokers' certificates; empty: the system's"
        ),
    )
    cert_file: str = Field(
        default="", description="PEM file of the client's certificate chain, for mTLS"
    )
    key_file: str = Field(default="", description="PEM file of the client's private key, for mTLS")
    key_password: SecretStr = Field(default=SecretStr(""), description="password of kafka.key_file")
    mac_keys: tuple[SecretStr, ...] = Field(
        default=(),
        description=(
            "keys (JSON list, 16 bytes or more each) of MACs on internal records: the first "
            "signs, each verifies"
        ),
    )
    mac_required: bool = Field(
        default=False,
        description=(
            "whether an internal record without a MAC is quarantined; set it once "
            "indexer.keep_sealed_s has passed with kafka.mac_keys set"
        ),
    )
    check_hostname: bool = Field(
        default=True,
        description="whether a broker's certificate must name the host of the connection",
    )
