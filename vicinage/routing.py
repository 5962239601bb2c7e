"""Which shard a document belongs to: the same in every language and every run."""

import hashlib


def shard_of(document_id: str, n_shards: int) -> int:
    """0 ≤ shard < n_shards, by the first 8 bytes (little-endian) of the id's BLAKE2b."""
    if n_shards == 1:
        return 0
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little") % n_shards
