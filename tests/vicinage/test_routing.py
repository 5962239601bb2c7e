"""All writers use one partitioner, that of Kafka's clients."""

import base64
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import load

from vicinage.log import open_log
from vicinage.routing import document_key, home_of, murmur2

KEYS = [f"docs/{'x' * (i % 23)}{i}-ü-文".encode() for i in range(400)] + [
    bytes(range(n)) for n in range(40)
]


@given(st.binary(max_size=200))
def test_murmur2_is_that_of_kafka_python(data: bytes) -> None:
    from kafka.partitioner.default import murmur2 as theirs

    assert murmur2(data) & 0x7FFFFFFF == theirs(data) & 0x7FFFFFFF


@pytest.mark.kafka
def test_murmur2_is_that_of_the_java_client() -> None:
    if not shutil.which("javac") or not shutil.which("mvn"):
        pytest.skip("needs a JDK of Java 17 and Maven")
    jars = load("deploy/kafka/kafka.py").jars()
    words = ["java", "-cp", f"{jars}/*", str(Path(__file__).parent / "Murmur2.java")]
    lines = "".join(base64.b64encode(key).decode() + "\n" for key in KEYS)
    done = subprocess.run(
        words, input=lines, capture_output=True, text=True, timeout=60, check=True
    )
    assert [int(line) for line in done.stdout.split()] == [
        murmur2(key) & 0x7FFFFFFF for key in KEYS
    ]


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_real_producers_send_a_document_to_its_home(kafka_servers: str) -> None:
    from confluent_kafka import Producer
    from kafka import KafkaProducer

    ids = [f"file {i}/ü" for i in range(120)]
    topic, n = f"t-{uuid.uuid4().hex[:8]}", 7
    with open_log(f"kafka://{kafka_servers}") as log:
        log.ensure_topic(topic, partitions=n)
        rdkafka = Producer({"bootstrap.servers": kafka_servers, "partitioner": "murmur2_random"})
        for i in ids:
            rdkafka.produce(topic, key=document_key("docs", i), value=i.encode())
        assert rdkafka.flush(30) == 0
        with KafkaProducer(bootstrap_servers=kafka_servers) as python:
            for i in ids:
                python.send(topic, key=document_key("docs", i), value=i.encode())
        for p in range(n):
            read = [s.record.value.decode() for s in log.read(topic, p, 0, bytes_max=1 << 30)]
            assert sorted(read) == sorted(2 * [i for i in ids if home_of("docs", i, n) == p])


def test_with_one_partition_everything_is_at_home() -> None:
    assert {home_of("docs", str(i), 1) for i in range(100)} == {0}
