"""Authentication and TLS of Kafka clients: turns settings into options of kafka-python."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kafka.net.sasl.oauth import AbstractTokenProvider

from vicinage.errors import Refused, Unavailable
from vicinage.log.mac import KEY_BYTES_MIN, Macs
from vicinage.settings import KafkaSettings

PROTOCOLS: Final = {
    "plaintext": "PLAINTEXT",
    "tls": "SSL",
    "sasl": "SASL_PLAINTEXT",
    "sasl-tls": "SASL_SSL",
}
TOKEN_TIMEOUT_S: Final = 5.0
RENEW_SHARE: Final = 0.8
"""Share of a token's lifetime after which another is requested."""
TOKEN_LIFE_S: Final = 300.0
"""Lifetime of a token if the server does not return one."""


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Returns the security options of every kafka-python client; {} without TLS and SASL.

    Raises Refused for settings that contradict each other.
    """
    options: dict[str, Any] = {"security_protocol": PROTOCOLS[kafka.security]}
    if kafka.security in ("tls", "sasl-tls"):
        options |= _tls(kafka)
    elif kafka.ca_file or kafka.cert_file:
        raise Refused(
            'kafka.ca_file and kafka.cert_file need kafka.security "tls" or "sasl-tls"',
            field="kafka.security",
        )
    if kafka.security in ("sasl", "sasl-tls"):
        options |= _sasl(kafka)
    elif kafka.mechanism:
        raise Refused(
            'kafka.mechanism needs kafka.security "sasl" or "sasl-tls"', field="kafka.security"
        )
    return options if kafka.security != "plaintext" else {}


def or_refused(client: Mapping[str, Any]) -> str:
    """Returns the text of another possible cause if no broker answers a client with these options.

    kafka-python retries after a failed TLS handshake or authentication, and then reports that no
    broker is available.
    """
    return ", or they refuse TLS or credentials: compare the settings kafka.*" if client else ""


def unanswered(client: Mapping[str, Any], error: Exception) -> Unavailable:
    """Returns the error for a client with these options that no broker answers."""
    return Unavailable(
        f"no Kafka broker answers: {type(error).__name__}{or_refused(client)}", dependency="log"
    )


def macs(kafka: KafkaSettings) -> Macs:
    """Returns the keys that sign and verify internal records.

    Raises Refused for a key that is too short, or if MACs are required and no key is set.
    """
    keys = tuple(key.get_secret_value().encode() for key in kafka.mac_keys)
    if any(len(key) < KEY_BYTES_MIN for key in keys):
        raise Refused(
            f"kafka.mac_keys: a key has at least {KEY_BYTES_MIN} bytes", field="kafka.mac_keys"
        )
    if kafka.mac_required and not keys:
        raise Refused("kafka.mac_required needs kafka.mac_keys", field="kafka.mac_keys")
    return Macs(keys, kafka.mac_required)


def _tls(kafka: KafkaSettings) -> dict[str, Any]:
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(kafka, name)
        if path and not Path(path).is_file():
            raise Refused(f"kafka.{name}: there is no file {path}", field=f"kafka.{name}")
    if bool(kafka.cert_file) != bool(kafka.key_file):
        raise Refused(
            "kafka.cert_file and kafka.key_file are set together (mTLS)", field="kafka.cert_file"
        )
    return {
        "ssl_cafile": kafka.ca_file or None,
        "ssl_certfile": kafka.cert_file or None,
        "ssl_keyfile": kafka.key_file or None,
        "ssl_password": kafka.key_password.get_secret_value() or None,
        "ssl_check_hostname": kafka.check_hostname,
    }


def _sasl(kafka: KafkaSettings) -> dict[str, Any]:
    if kafka.mechanism == "OAUTHBEARER":
        return {"sasl_mechanism": kafka.mechanism, "sasl_oauth_token_provider": _tokens(kafka)}
    if not kafka.mechanism or not kafka.username or not kafka.password.get_secret_value():
        raise Refused(
            "SASL needs kafka.mechanism, and kafka.username and kafka.password or, for "
            "OAUTHBEARER, a token",
            field="kafka.mechanism",
        )
    return {
        "sasl_mechanism": kafka.mechanism,
        "sasl_plain_username": kafka.username,
        "sasl_plain_password": kafka.password.get_secret_value(),
    }


def _tokens(kafka: KafkaSettings) -> AbstractTokenProvider:
    if kafka.token_file:
        return FileTokens(Path(kafka.token_file))
    if kafka.token_url and kafka.username and kafka.password.get_secret_value():
        return ServerTokens(
            kafka.token_url, kafka.username, kafka.password.get_secret_value(), kafka.token_scope
        )
    raise Refused(
        "OAUTHBEARER needs kafka.token_file, or kafka.token_url with kafka.username (the client "
        "id) and kafka.password"
        " (its secret)",
        field="kafka.token_file",
    )


class FileTokens(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens from a file that another program renews. Read at each connection."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def token(self) -> str:
        """Returns the file's token. Raises Unavailable."""
        try:
            return self._path.read_text().strip()
        except OSError as error:
            raise Unavailable(
                f"kafka.token_file cannot be read: {error}", dependency="log"
            ) from error


class ServerTokens(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens from an authorization server (RFC 6749, client credentials). Thread-safe.

    Each token is reused for RENEW_SHARE of its lifetime.
    """

    def __init__(self, url: str, client_id: str, secret: str, scope: str) -> None:
        super().__init__()
        self._url, self._client, self._scope = url, (client_id, secret), scope
        self._lock = threading.Lock()
        self._token, self._until = "", 0.0

    def token(self) -> str:
        """Returns a token that is still valid. Raises Unavailable within TOKEN_TIMEOUT_S."""
        import httpx2

        with self._lock:
            if time.monotonic() < self._until:
                return self._token
            body = {
                "grant_type": "client_credentials",
                **({"scope": self._scope} if self._scope else {}),
            }
            try:
                answered = httpx2.post(
                    self._url, data=body, auth=self._client, timeout=TOKEN_TIMEOUT_S
                )
                found = answered.raise_for_status().json()
                token, life_s = (
                    str(found["access_token"]),
                    float(found.get("expires_in", TOKEN_LIFE_S)),
                )
            except (
                httpx2.HTTPError,
                ValueError,
                KeyError,
                TypeError,
            ) as error:  # TypeError: not an object, or null
                raise Unavailable(
                    f"the token server of Kafka gave no token: {type(error).__name__}",
                    dependency="log",
                ) from error
            self._token, self._until = token, time.monotonic() + RENEW_SHARE * life_s
            return token
