"""A real Kafka with an authorizer, SCRAM, PLAIN and OAUTHBEARER over TLS, and mTLS."""

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import free_port, load

from vicinage.settings import KafkaSettings

SETTINGS = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=INTERNAL://127.0.0.1:{internal},SASL://127.0.0.1:{port},MTLS://127.0.0.1:{mtls},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=INTERNAL://127.0.0.1:{internal},SASL://127.0.0.1:{port},MTLS://127.0.0.1:{mtls}
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
listener.security.protocol.map=INTERNAL:PLAINTEXT,SASL:SASL_SSL,MTLS:SSL,CONTROLLER:PLAINTEXT
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:admin
ssl.keystore.type=PEM
ssl.keystore.location={certificates}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={certificates}/ca.crt
listener.name.mtls.ssl.client.auth=required
listener.name.mtls.ssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/
listener.name.sasl.sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256,PLAIN,OAUTHBEARER
listener.name.sasl.scram-sha-512.sasl.jaas.config=\\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-256.sasl.jaas.config=\\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.plain.sasl.jaas.config=\\
  org.apache.kafka.common.security.plain.PlainLoginModule required user_vicinage="plain-secret";
listener.name.sasl.oauthbearer.sasl.jaas.config=\\
  org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \\
  unsecuredLoginStringClaim_sub="broker";
log.dirs={dir}/log
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
socket.request.max.bytes=33554432
"""
SCRAM = (
    "--add-scram", "SCRAM-SHA-512=[name=vicinage,password=scram-secret]",
    "--add-scram", "SCRAM-SHA-256=[name=vicinage,password=scram-secret]",
    "--add-scram", "SCRAM-SHA-512=[name=team,password=team-secret]",
)  # fmt: skip


@dataclass(frozen=True)
class Secured:
    """Addresses of a secured broker.

    `sasl` and `mtls` are host:port; `internal`, without security, is for the test's own
    administration as a super user.
    """

    sasl: str
    mtls: str
    internal: str
    certificates: Path

    def settings(self, kind: str, **changed: Any) -> KafkaSettings:
        """Returns settings of a client of this kind: a SASL mechanism, or mtls."""
        ca = {"ca_file": str(self.certificates / "ca.crt"), "check_hostname": True}
        if kind == "mtls":
            pair = {
                name: str(self.certificates / f"client.{end}")
                for name, end in (("cert_file", "crt"), ("key_file", "key"))
            }
            return KafkaSettings(**{"security": "tls", **ca, **pair, **changed})
        given: dict[str, Any] = {"security": "sasl-tls", "mechanism": kind, **ca}
        if kind == "OAUTHBEARER":
            file = self.certificates / "token"
            file.write_text(unsigned_token("vicinage"))
            given["token_file"] = str(file)
        else:
            given |= {
                "username": "vicinage",
                "password": "plain-secret" if kind == "PLAIN" else "scram-secret",
            }
        return KafkaSettings(**{**given, **changed})


def unsigned_token(subject: str) -> str:
    """Returns a JWT that a development broker accepts: its signature is empty."""
    claims = {"sub": subject, "iat": int(time.time()), "exp": int(time.time()) + 3_600}
    parts = [json.dumps({"alg": "none"}), json.dumps(claims)]
    return ".".join(base64.urlsafe_b64encode(p.encode()).rstrip(b"=").decode() for p in parts) + "."


def make_certificates(folder: Path) -> None:
    """Writes an authority, and certificates of the broker and of the client `vicinage`."""
    folder.mkdir(parents=True)

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    run(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-days",
        "2",
        "-subj",
        "/CN=ca",
    )
    for name, subject in (("broker", "localhost"), ("client", "vicinage")):
        run(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={subject}",
        )
        (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        run(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            f"{name}.crt",
            "-days",
            "2",
            "-extfile",
            "san",
        )
    (folder / "broker.pem").write_text(
        (folder / "broker.key").read_text() + (folder / "broker.crt").read_text()
    )


@contextmanager
def secured_kafka(folder: Path) -> Iterator[Secured]:
    starter, certificates = load("deploy/kafka/kafka.py"), folder / "certificates"
    make_certificates(certificates)
    sasl, mtls, internal = free_port(), free_port(), free_port()
    broker = starter.start(
        folder / "kafka",
        sasl,
        template=SETTINGS,
        formatting=SCRAM,
        mtls=mtls,
        internal=internal,
        certificates=certificates,
    )
    try:
        yield Secured(*(f"127.0.0.1:{p}" for p in (sasl, mtls, internal)), certificates)
    finally:
        broker.kill()
        broker.wait()
