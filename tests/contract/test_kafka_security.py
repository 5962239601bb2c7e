"""The platform's Kafka clients over SASL, TLS and mTLS, against a broker with an authorizer."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from secured import Secured, secured_kafka

from cluster.kafka_acls import Acl, acls
from vicinage.errors import Refused, Unavailable
from vicinage.log import Record, open_log
from vicinage.log.kafka_access import has_authorizer
from vicinage.log.kafka_security import client_options
from vicinage.settings import KafkaSettings

KINDS = ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN", "OAUTHBEARER", "mtls"]
pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, kafka_servers: str) -> Iterator[Secured]:
    del kafka_servers  # only says that Kafka can run here; this broker is one of its own
    with secured_kafka(tmp_path_factory.mktemp("secured")) as made:
        permit(made, acls("User:vicinage"))
        yield made


def permit(kafka: Secured, wanted: list[Acl]) -> None:
    from kafka import KafkaAdminClient
    from kafka.admin import (
        ACL,
        ACLOperation,
        ACLPermissionType,
        ACLResourcePatternType,
        ResourcePattern,
        ResourceType,
    )

    admin = KafkaAdminClient(bootstrap_servers=kafka.internal)
    admin.create_acls(
        [
            ACL(
                acl.principal,
                "*",
                ACLOperation[acl.operation.upper()],
                ACLPermissionType.ALLOW,
                ResourcePattern(
                    ResourceType[acl.resource.upper()],
                    acl.name,
                    ACLResourcePatternType[acl.pattern.upper()],
                ),
            )
            for acl in wanted
        ]
    )
    admin.close()
    time.sleep(0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_client_works_with_the_printed_permissions_alone(kafka: Secured, kind: str) -> None:
    topic, group = f"vicinage.docs.t-{uuid.uuid4().hex[:8]}", "vicinage.ingest"
    with open_log(
        f"kafka://{kafka.mtls if kind == 'mtls' else kafka.sasl}", kafka.settings(kind)
    ) as log:
        assert log.ensure_topic(topic, 2) == 2
        assert log.append(topic, 0, [Record(b"a"), Record(None, b"key")]) == [0, 1]
        assert [s.record.value for s in log.read(topic, 0, 0)] == [b"a", None]
        log.commit(group, {(topic, 0): 1})
        assert log.committed(group, [(topic, 0)]) == {(topic, 0): 1}
        assert log.topic_problems([topic]) == {}
        log.trim(topic, 0, 1)
        assert log.begin(topic, 0) == 1
        log.delete_topic(topic)


@pytest.mark.parametrize("kind", KINDS)
def test_whether_an_authorizer_is_on_is_known_to_the_platform(
    kafka: Secured, kafka_servers: str, kind: str
) -> None:
    url = f"kafka://{kafka.mtls if kind == 'mtls' else kafka.sasl}"
    assert has_authorizer(url, kafka.settings(kind))
    assert not has_authorizer(f"kafka://{kafka_servers}", KafkaSettings())


def test_a_topic_without_permission_fails_alone_and_names_itself(kafka: Secured) -> None:
    from kafka import KafkaAdminClient

    foreign, own = f"other-{uuid.uuid4().hex[:8]}", f"vicinage.docs.t-{uuid.uuid4().hex[:8]}"
    admin = KafkaAdminClient(bootstrap_servers=kafka.internal)
    admin.create_topics({foreign: {"num_partitions": 1}})
    admin.close()
    permit(
        kafka, [Acl("User:vicinage", "Topic", foreign, "literal", "Describe")]
    )  # seen, and not to be written
    with open_log(f"kafka://{kafka.sasl}", kafka.settings("SCRAM-SHA-512")) as log:
        log.ensure_topic(own)
        for i in range(3):
            with pytest.raises(Unavailable, match=foreign) as refused:
                log.append(foreign, 0, [Record(b"x")])
            assert own not in refused.value.detail
            assert log.append(own, 0, [Record(b"x")]) == [i]


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("SCRAM-SHA-512", {"password": "wrong"}),
        ("PLAIN", {"password": "wrong"}),
        ("SCRAM-SHA-512", {"ca_file": ""}),
        ("mtls", {"cert_file": "", "key_file": ""}),
    ],
)
def test_an_unknown_client_is_refused_in_time_without_revealing_a_secret(
    kafka: Secured, kind: str, changed: dict[str, str]
) -> None:
    settings = kafka.settings(kind, **changed)
    began = time.monotonic()
    with (
        open_log(f"kafka://{kafka.mtls if kind == 'mtls' else kafka.sasl}", settings) as log,
        pytest.raises(Unavailable) as refused,
    ):
        log.append("vicinage.docs.a", 0, [Record(b"x")])
    assert time.monotonic() - began < 30
    assert "wrong" not in refused.value.detail
    if "password" in changed:
        assert "credentials" in refused.value.detail


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"security": "sasl"}, "kafka.mechanism"),
        ({"security": "sasl", "mechanism": "PLAIN", "username": "u"}, "kafka.mechanism"),
        ({"security": "sasl-tls", "mechanism": "OAUTHBEARER"}, "kafka.token_file"),
        ({"mechanism": "PLAIN"}, "kafka.security"),
        ({"ca_file": "ca.crt"}, "kafka.security"),
        ({"security": "tls", "ca_file": "/there/is/none"}, "kafka.ca_file"),
        ({"security": "tls", "cert_file": __file__}, "kafka.cert_file"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    given: dict[str, str], field: str
) -> None:
    with pytest.raises(Refused) as refused:
        client_options(KafkaSettings(**given))
    assert refused.value.field == field


def test_without_security_no_option_is_given(tmp_path: Path) -> None:
    assert client_options(KafkaSettings()) == {}
