"""A compressed batch is decompressed up to a bound, with each of Kafka's codecs."""

import gzip
import struct
import tracemalloc
import uuid
import zlib
from collections.abc import Callable
from functools import partial

import lz4.frame
import pytest
import snappy
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kafka import codec

from vicinage.log import Record, open_log
from vicinage.log.kafka_codecs import BatchTooLarge, gunzip, unlz4, unsnappy, unzstd

CODECS: dict[str, tuple[Callable[[bytes], bytes], Callable[..., bytes]]] = {
    "gzip": (gzip.compress, gunzip),
    "lz4": (lz4.frame.compress, unlz4),
    "lz4 without its size": (partial(lz4.frame.compress, store_size=False), unlz4),
    "zstd": (zstandard.ZstdCompressor().compress, unzstd),
    "snappy": (snappy.compress, unsnappy),
    "snappy of the Java client": (codec.snappy_encode, unsnappy),
}
BOUND = 1 << 20
DAMAGED = (
    ValueError,
    RuntimeError,
    struct.error,
    zlib.error,
    zstandard.ZstdError,
    snappy.UncompressError,
)
"""Errors of the codecs for incomplete streams; the reader halts the partition."""


@pytest.mark.parametrize("name", CODECS)
def test_what_is_within_the_bound_comes_back(name: str) -> None:
    compress, decompress = CODECS[name]
    for data in (b"x", b"a" * BOUND, bytes(range(256)) * 1_000):
        assert decompress(compress(data), BOUND) == data
        assert decompress(memoryview(compress(data)), BOUND) == data


@pytest.mark.parametrize("name", CODECS)
def test_what_is_beyond_the_bound_is_refused_before_it_takes_the_memory(name: str) -> None:
    compress, decompress = CODECS[name]
    bomb = compress(b"\0" * (64 << 20))
    tracemalloc.start()
    with pytest.raises(BatchTooLarge, match="once decompressed"):
        decompress(bomb, BOUND)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("name", CODECS)
def test_a_batch_that_is_cut_short_is_an_error(name: str) -> None:
    compress, decompress = CODECS[name]
    data = bytes(range(256)) * 1_000
    try:
        assert decompress(compress(data)[:-20], BOUND) != data
    except DAMAGED:
        return


def test_several_members_are_one_batch() -> None:
    assert gunzip(gzip.compress(b"a" * 100) + gzip.compress(b"b"), BOUND) == b"a" * 100 + b"b"
    assert (
        unlz4(lz4.frame.compress(b"a" * 100) + lz4.frame.compress(b"b"), BOUND) == b"a" * 100 + b"b"
    )


def test_a_snappy_block_that_claims_a_gigabyte_is_refused_unread() -> None:
    claim = bytes([0x80, 0x80, 0x80, 0x80, 0x04]) + b"\0"
    with pytest.raises(BatchTooLarge):
        unsnappy(claim, BOUND)
    java = codec.snappy_encode(b"x")[:16] + struct.pack("!i", len(claim)) + claim
    with pytest.raises(BatchTooLarge):
        unsnappy(java, BOUND)


@given(st.binary(max_size=200), st.sampled_from(sorted(CODECS)))
def test_untrusted_bytes_are_an_error_or_small(data: bytes, name: str) -> None:
    _, decompress = CODECS[name]
    try:
        found = decompress(data, BOUND)
    except DAMAGED:
        return
    assert len(found) <= BOUND


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
@pytest.mark.parametrize("compression", ["gzip", "lz4", "zstd", "snappy"])
def test_a_batch_that_inflates_halts_its_partition_alone(
    kafka_servers: str, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    from kafka import KafkaProducer

    topic = f"t-{uuid.uuid4().hex[:8]}"
    monkeypatch.setattr("vicinage.log.kafka_codecs.BYTES_MAX", BOUND)
    with open_log(f"kafka://{kafka_servers}") as log:
        log.ensure_topic(topic, partitions=2)
        producer = KafkaProducer(
            bootstrap_servers=kafka_servers, compression_type=compression, max_request_size=16 << 20
        )
        producer.send(topic, b"\0" * (8 << 20), partition=0).get(timeout=30)
        producer.close()
        log.append(topic, 1, [Record(b"well")])
        reader, found = log.reader({(topic, 0): 0, (topic, 1): 0}), []
        for _ in range(100):
            found += reader.poll(wait_s=0.1)
            if found and reader.halted():
                break
        assert [s.record.value for s in found] == [b"well"]
        halt = reader.halted()[topic, 0]
        assert halt.kind == "unreadable"
        assert "once decompressed" in halt.reason
        reader.close()
