"""Kafka's codecs with a bound on the decompressed size of a batch.

A batch of a few kilobytes may decompress to gigabytes, and kafka-python decompresses it whole.
`bound` replaces kafka-python's functions for all consumers of the process. A batch over the bound
raises BatchTooLarge, which halts only its partition (`kafka_reader.py`).
"""

import struct
import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol

BYTES_MAX = 128 << 20
"""Largest decompressed batch.

Producers make batches of at most 16 MiB; text compresses about 10:1.
"""
FIRST_BYTES: Final = 1 << 20
"""Size of the first buffer, and of each step of decompression."""


class BatchTooLarge(ValueError):
    """A batch is larger than the bound once decompressed."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(
            f"its batch takes more than {bytes_max} bytes once decompressed: delete it from the "
            "topic "
            "(kafka-delete-records), or continue after it with `vicinage tenant resume-ingest`"
        )


class _Inflating(Protocol):
    """A decompressor of the standard library or of lz4."""

    eof: bool
    unused_data: bytes | None

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def gunzip(data: bytes | memoryview, bytes_max: int | None = None) -> bytes:
    """Returns the members of a gzip stream, decompressed. Raises BatchTooLarge, zlib.error."""
    return _inflated(lambda: zlib.decompressobj(wbits=31), data, _bound_of(bytes_max))


def unlz4(data: bytes | memoryview, bytes_max: int | None = None) -> bytes:
    """Returns the frames of an LZ4 stream, decompressed. Raises BatchTooLarge, RuntimeError."""
    from lz4.frame import LZ4FrameDecompressor

    return _inflated(LZ4FrameDecompressor, data, _bound_of(bytes_max))


def unzstd(data: bytes | memoryview, bytes_max: int | None = None) -> bytes:
    """Returns the frames of a Zstandard stream, decompressed.

    Raises BatchTooLarge, zstandard.ZstdError.
    """
    import zstandard

    bytes_max = _bound_of(bytes_max)
    with zstandard.ZstdDecompressor().stream_reader(bytes(data), read_across_frames=True) as reader:
        found = bytearray()
        while piece := reader.read(min(FIRST_BYTES, bytes_max + 1 - len(found))):
            found += piece
            if len(found) > bytes_max:
                raise BatchTooLarge(bytes_max)
    return bytes(found)


def unsnappy(data: bytes | memoryview, bytes_max: int | None = None) -> bytes:
    """Returns a Snappy block, or the blocks of the Java client, decompressed.

    A block begins with its decompressed length, which the library allocates; it is checked first.
    Raises BatchTooLarge, ValueError.
    """
    from kafka import codec

    bytes_max, data = _bound_of(bytes_max), bytes(data)
    blocks = list(_blocks(data)) if codec._detect_xerial_stream(data) else [data]  # noqa: SLF001  (its name for the format)
    if sum(map(_claim, blocks)) > bytes_max:
        raise BatchTooLarge(bytes_max)
    decoded: bytes = codec.snappy_decode(data)
    return decoded


def bound() -> None:
    """Makes kafka-python decompress with these functions. Idempotent."""
    from kafka import codec
    from kafka.record import default_records, legacy_records

    names: dict[str, Callable[[bytes], bytes]] = {
        "gzip_decode": gunzip,
        "snappy_decode": unsnappy,
        "lz4_decode": unlz4,
        "zstd_decode": unzstd,
    }
    for module in (default_records, legacy_records):
        for name, function in names.items():
            if hasattr(module, name):
                setattr(module, name, function)
    codec.lz4_decode = unlz4  # what lz4_decode_old_kafka calls


def _bound_of(given: int | None) -> int:
    return BYTES_MAX if given is None else given


def _inflated(make: Callable[[], Any], data: bytes | memoryview, bytes_max: int) -> bytes:
    found, rest = bytearray(), bytes(data)
    while rest:
        member: _Inflating = make()
        while not member.eof:
            piece = member.decompress(rest, min(FIRST_BYTES, bytes_max + 1 - len(found)))
            rest = getattr(member, "unconsumed_tail", b"")
            found += piece
            if len(found) > bytes_max:
                raise BatchTooLarge(bytes_max)
            if not piece and not rest and not member.eof:
                raise ValueError("the compressed batch ends before its end")
        rest = member.unused_data or b""
    return bytes(found)


def _blocks(data: bytes) -> list[bytes]:
    found, at = [], 16
    while at < len(data):
        (size,) = struct.unpack_from("!i", data, at)
        if not 0 < size <= len(data) - at - 4:
            raise ValueError("a block of the Snappy batch ends beyond the batch")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def _claim(block: bytes) -> int:
    """Returns the decompressed length at the start of a Snappy block, a varint of up to 5 bytes."""
    claim = 0
    for i, byte in enumerate(block[:5]):
        claim |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return claim
    raise ValueError("a block of the Snappy batch has no length")
