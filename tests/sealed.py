"""Rows in the vectors log, and what a searcher reads from manifests and log, for indexer tests."""

from zlib import crc32

import numpy as np
import orjson
from rows import Row, message, unit

from cluster.wiring import Resources
from indexer.backends import open_backend
from indexer.index.segment import load
from indexer.index.shard import Shard
from tenants import provisioning
from tenants.entities import Generation
from tenants.provisioning import VECTORS_TOPIC
from vicinage.errors import Conflict
from vicinage.log import Record
from vicinage.records import ShardId, ShardQuery
from vicinage.routing import shard_of
from vicinage.wire import decode_rows, encode_rows, parse_rows_key, rows_key

DIMENSION = 4


def make_collection(
    base: Resources, name: str = "docs", *, shards: int = 1, index: str = "flat"
) -> Generation:
    """Creates a collection of tenant acme; returns its live generation."""
    try:
        provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    except Conflict:
        base.registry.refresh()
    made = provisioning.create_collection(
        base.registry,
        base.log,
        "acme",
        name,
        dimension=DIMENSION,
        index=index,
        shards=shards,
        slots_total=base.settings.slots,
        actor="test",
    )
    return made.generation()


def version(offset: int, partition: int = 0) -> int:
    return (offset << 10) | partition


def up(name: str, number: int, passages: int = 1) -> Row:
    """Returns a document's new content, at position `number` of the documents log."""
    vectors = [unit(crc32(f"{name} {number} {i}".encode())) for i in range(passages)]
    return (
        name,
        version(number),
        vectors,
        orjson.dumps({"name": name, "version": version(number)}).decode(),
    )


def gone(name: str, number: int) -> Row:
    """Returns its deletion."""
    return (name, version(number), None, "")


def append(base: Resources, generation: Generation, *rows: Row) -> None:
    """Appends one vectors message per shard that the rows touch."""
    g = generation
    by_slot: dict[int, list[Row]] = {}
    for row in rows:
        by_slot.setdefault(g.slots[shard_of(row[0], len(g.slots))], []).append(row)
    key = rows_key(g.tenant, g.collection, g.number)
    for slot, part in by_slot.items():
        value = encode_rows(
            message(part, DIMENSION), tenant=g.tenant, collection=g.collection, generation=g.number
        )
        base.log.append(VECTORS_TOPIC, slot, [Record(value, key, event_time_ms=1)])


def loaded(base: Resources, shard: ShardId, generation: Generation) -> Shard:
    """Returns the shard as a new searcher loads it: segments, then the log from `sealed`."""
    backend = open_backend()
    start = generation.start(shard.slot)
    manifest = base.manifests.of(shard, start=start)
    made = Shard(
        shard,
        dimension=generation.dimension,
        metric=generation.metric,
        recall=0.95,
        backend=backend,
        manifest=manifest,
    )
    made.adopt(
        manifest, [load(ref, base.store, backend, generation.metric) for ref in manifest.segments]
    )
    name = (shard.tenant, shard.collection, shard.generation)
    at = manifest.sealed
    end = base.log.end(VECTORS_TOPIC, shard.slot)
    while at < end:
        run = base.log.read(VECTORS_TOPIC, shard.slot, at)
        for stored in run:
            if parse_rows_key(stored.record.key or b"") == name:
                made.apply(decode_rows(stored.record.value or b"").batch, stored.offset)
        at = run[-1].offset + 1
    return made


def contents(base: Resources, generation: Generation) -> dict[str, tuple[int, int]]:
    """Returns document ID → (version, passages), from an exact search of everything."""
    found: dict[str, tuple[int, int]] = {}
    query = np.ones((1, generation.dimension), np.float32)
    for shard in generation.shards():
        shard_result = loaded(base, shard, generation).search(
            ShardQuery(shard, query, 10_000, exact=True)
        )
        for hit in shard_result.hits[0]:
            held, n = found.get(hit.document_id, (hit.version, 0))
            assert held == hit.version, "one version of a document at a time"
            assert hit.metadata == {"name": hit.document_id, "version": held}, (
                "whichever passage it is"
            )
            found[hit.document_id] = (held, n + 1)
    return found


def segments(base: Resources, generation: Generation) -> list[tuple[int, int]]:
    """Returns (passages, deletes) of every segment of the generation, in the manifests' order."""
    every = sorted(
        base.manifests.of_generation(generation.tenant, generation.collection, generation.number),
        key=str,
    )
    return [(s.n_passages, s.n_deletes) for m in every for s in m.segments]
