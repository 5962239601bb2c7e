"""A searcher of a platform, and helpers for its tests."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa
from resources import eventually
from rows import message, unit

from cluster.wiring import Resources, build_searcher
from indexer.backends import open_backend
from indexer.index.rows import newest
from indexer.seal import Builder
from query.searcher.run import Searcher
from tenants import provisioning
from tenants.entities import Collection, Manifest, SegmentRef
from tenants.leases import Leases
from tenants.provisioning import VECTORS_TOPIC
from vicinage.clock import Deadline
from vicinage.log import Record
from vicinage.records import ShardId, ShardQuery, ShardResult
from vicinage.settings import SearcherSettings
from vicinage.wire import encode_rows, rows_key, vectors_schema

D = 4


def collection(
    base: Resources, name: str = "docs", dimension: int = D, tenant: str = "acme"
) -> Collection:
    return provisioning.create_collection(
        base.registry,
        base.log,
        tenant,
        name,
        dimension=dimension,
        slots_total=base.settings.slots,
        actor="test",
    )


def shard_of(of: Collection) -> ShardId:
    return of.generation().shards()[0]


def send(base: Resources, to: ShardId, batch: pa.RecordBatch, *, event_time_ms: int = 0) -> int:
    """Appends a vectors message; returns the next offset."""
    key = rows_key(to.tenant, to.collection, to.generation)
    value = encode_rows(batch, tenant=to.tenant, collection=to.collection, generation=to.generation)
    return (
        base.log.append(VECTORS_TOPIC, to.slot, [Record(value, key, event_time_ms=event_time_ms)])[
            0
        ]
        + 1
    )


def one(name: str, version: int) -> pa.RecordBatch:
    return message([(name, version, [unit(version)], "{}")])


def seal(
    base: Resources,
    shard: ShardId,
    of: Collection,
    batches: list[pa.RecordBatch],
    sealed: int,
    *,
    before_publish: Callable[[SegmentRef], None] = lambda _ref: None,
) -> Manifest:
    leases = Leases(base.engine, base.clock)
    lease = leases.acquire(f"slot/{shard.slot}", "test", ttl_s=30)
    assert lease is not None
    builder = Builder(base.manifests, base.store, open_backend(), base.settings.indexer)
    nothing = pa.RecordBatch.from_pylist([], schema=vectors_schema(of.generation().dimension))
    ref = builder.write(shard, of.generation(), *newest([nothing, *batches]))
    before_publish(ref)
    made = builder.publish(
        shard, of.generation(), lease, lambda m: (*m.segments, ref), sealed=sealed
    )
    leases.release(lease)
    return made


@contextmanager
def searching(base: Resources, slots: list[int] | None = None, **settings) -> Iterator[Searcher]:
    quick = base.settings.model_copy(
        update={"searcher": SearcherSettings(**{"adopt_s": 0.05, **settings})}
    )
    made = build_searcher(replace(base, settings=quick), slots)
    made.start()
    try:
        eventually(made.ready)
        yield made
    finally:
        made.stop()


def ask(searcher: Searcher, shard: ShardId, **query) -> list[tuple[str, int]]:
    asked = ShardQuery(shard, unit(0)[None], 100, **query)
    return sorted(
        (h.document_id, h.version)
        for h in searcher.submit(asked, Deadline.after(5)).result(5).hits[0]
    )


def load_needed(searcher: Searcher, *shards: ShardId) -> None:
    """Loads the shards."""
    for shard in shards:
        searcher.shards.request(shard, Deadline.after(5), 0).result(5)


def reach(searcher: Searcher, positions: dict[int, int], wait_s: float = 5) -> dict[int, int]:
    return asyncio.run(searcher.reach(positions, Deadline.after(wait_s)))


class Gate:
    """Holds the only search thread inside a search until it is opened."""

    def __init__(self, searcher: Searcher, shard: ShardId) -> None:
        load_needed(searcher, shard)
        held = searcher.tail.shards[shard]
        self.entered, self.open, self.widths = threading.Event(), threading.Event(), []
        self._search: Callable[[ShardQuery], ShardResult] = held.search
        held.search = self.search  # type: ignore[method-assign]

    def search(self, query: ShardQuery) -> ShardResult:
        self.widths.append(len(query.vectors))
        self.entered.set()
        assert self.open.wait(10)
        return self._search(query)
