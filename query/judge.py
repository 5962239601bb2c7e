"""Finds the documents that pass a filter now.

Reads the searchers' snapshot and the records that are not ingested yet.

`Judge.judge` reads; `fold` decides. A deletion by filter names the version that was judged. So it
spares a newer document and does not miss an older one (docs/decisions/032-deletions-by-filter.md).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

from indexer.index.filters import matches
from indexer.index.order import supersedes
from ingest.homes import Homes
from ingest.identity import names_another
from ingest.jobs import Write, parse
from query.scatter import Searchers
from tenants.entities import Collection, Tenant
from tenants.growth import sync_partition_map
from tenants.ingest_lanes import owed_from
from tenants.ingested import ingested
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage import filters
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Refused, Unavailable
from vicinage.log import Log, read_between
from vicinage.records import Position, Token
from vicinage.settings import IngestSettings

BACKLOG_BYTES_MAX: Final = 16 << 20
"""Maximum bytes of not yet ingested records that a deletion by filter reads."""
CUT_OVERS_MAX: Final = 3
"""Maximum attempts: a cut-over during the wait for the snapshot makes the judging start again."""


@dataclass(frozen=True, slots=True)
class LogPositions:
    """Positions at one moment.

    Records below `committed` are judged in the snapshot; the others, below `ends`, in the log. Both
    are by partition of the documents topic, `vectors` is by slot. A snapshot that has reached
    `vectors` has everything below `committed`.
    """

    committed: Mapping[int, int]
    ends: Mapping[int, int]
    vectors: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class NewestWrite:
    """The newest write that was read of one document.

    `version` is its version. `deleted` says whether it is a deletion, `passes` whether it passes
    the filter.
    """

    version: int
    deleted: bool
    passes: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """The documents of a collection that passed (id → version).

    Everything written up to `token` was judged.
    """

    collection: Collection
    passed: Mapping[str, int] = field(default_factory=dict)
    token: Token | None = None


def fold(newest: dict[str, NewestWrite], document_id: str, write: NewestWrite) -> None:
    """Adds a write to `newest` unless a newer one is there. Changes nothing else.

    Of documents with equal versions, the one later in the record replaces the earlier one.
    """
    held = newest.get(document_id)
    if held is None or not supersedes(held.version, held.deleted, write.version, write.deleted):
        newest[document_id] = write


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges filters. Safe for concurrent requests."""

    log: Log
    registry: Registry
    searchers: Searchers
    limits: IngestSettings
    documents_max: int

    async def judge(
        self,
        tenant: Tenant,
        collection: Collection,
        condition: Mapping[str, Any],
        wait_for: Token | None,
        deadline: Deadline,
    ) -> Judged:
        """Returns the documents that pass, as of all writes acknowledged before the call.

        These include a write that `wait_for` names, whether or not it is searchable yet. Raises
        Refused for too many documents, or for a position that no write has. Raises Unavailable for
        a backlog of more than BACKLOG_BYTES_MAX, and DeadlineExceeded. Nothing was deleted then.
        """
        try:
            async with asyncio.timeout(deadline.left_s()):
                return await self._judge(tenant, collection, condition, wait_for, deadline)
        except TimeoutError:
            raise DeadlineExceeded(
                "the filter was not judged in time; nothing was deleted"
            ) from None

    async def _judge(
        self,
        tenant: Tenant,
        collection: Collection,
        condition: Mapping[str, Any],
        wait_for: Token | None,
        deadline: Deadline,
    ) -> Judged:
        collection, positions = await self._wait_for_snapshot(
            tenant, collection, wait_for, deadline
        )
        newest: dict[str, NewestWrite] = {}
        for shard in collection.generation().shards():
            searcher = self.searchers.holding(shard.slot)
            found = await searcher.matching(
                shard, condition, deadline, limit=self.documents_max + 1
            )
            newest |= {
                name: NewestWrite(version, deleted=False, passes=True) for name, version in found
            }
            self._check_number(len(newest))
        await run_in_threadpool(
            self._fold_backlog, newest, tenant, collection, filters.parse(condition), positions
        )
        passed = {name: write.version for name, write in newest.items() if write.passes}
        self._check_number(len(passed))
        last = [Position(partition, end - 1) for partition, end in positions.ends.items() if end]
        return Judged(collection, passed, Token.covering(last) if last else None)

    def _check_number(self, n: int) -> None:
        if n > self.documents_max:
            raise Refused(
                f"the filter matches more than {self.documents_max} documents: narrow it",
                field="filter",
                limit=self.documents_max,
            )

    async def _wait_for_snapshot(
        self, tenant: Tenant, collection: Collection, wait_for: Token | None, deadline: Deadline
    ) -> tuple[Collection, LogPositions]:
        """Waits until the snapshot has everything below the positions that are committed now.

        NOTE: the registry in memory may be behind a cut-over. The generation that it names as live
        then gets no more writes. So the catalog is read after the snapshot was reached. If it names
        another generation, the wait starts again for that one.
        """
        for _ in range(CUT_OVERS_MAX):
            positions = await run_in_threadpool(self._read_positions, tenant, collection)
            _check_assigned(wait_for, positions.ends)
            await self.searchers.reach(positions.vectors, deadline)
            await run_in_threadpool(self.registry.refresh)
            now = self.registry.collection(collection.tenant, collection.name)
            if (now.uid, now.live) == (collection.uid, collection.live):
                return now, positions
            collection = now
        raise Unavailable(
            "the collection is being rebuilt; nothing was deleted", dependency="catalog"
        )

    def _read_positions(self, tenant: Tenant, collection: Collection) -> LogPositions:
        """Reads committed positions, then lanes, then the vectors log's end.

        The order matters: each covers the one before.
        """
        topic = tenant.documents_topic
        self._check_same_topic(tenant)
        n = self.log.partitions(topic)  # read now: a partition that was just added may have records
        every = [(topic, p) for p in range(n)]
        ends = {p: end for (_, p), (_, end) in self.log.extents(every).items()}
        committed = ingested(self.log, self.registry, every)
        lanes = self.registry.lanes.of(tenant.name, collection.name, [collection.live])
        firsts = {p: first for (_, p), (first, _) in self.log.extents(every).items()}
        below = {p: max(owed_from(lanes, p, committed.get((topic, p), 0)), firsts[p]) for p in ends}
        return LogPositions(
            below,
            ends,
            {slot: self.log.end(VECTORS_TOPIC, slot) for slot in collection.generation().slots},
        )

    def _check_same_topic(self, tenant: Tenant) -> None:
        """Raises Unavailable if the topic is not the one that positions and versions refer to."""
        maps, topic = self.registry.partition_maps(tenant.name), tenant.documents_topic
        if maps and self.log.topic_ids(topic).get(topic) != maps[-1].topic_id:
            raise Unavailable(
                "this tenant's documents topic was deleted; nothing is deleted by filter until "
                "an operator resumes its ingest",
                dependency="log",
                retry_after_s=30,
            )

    def _fold_backlog(
        self,
        newest: dict[str, NewestWrite],
        tenant: Tenant,
        collection: Collection,
        tree: filters.Tree,
        positions: LogPositions,
    ) -> None:
        """Judges the records that ingest has not reached. Raises Unavailable for too many bytes."""
        n_bytes = 0
        homes = Homes(
            self.registry, partial(sync_partition_map, self.registry, self.log, actor="gateway")
        )
        for partition, end in positions.ends.items():
            for record in read_between(
                self.log, tenant.documents_topic, partition, positions.committed[partition], end
            ):
                n_bytes += record.size()
                if n_bytes > BACKLOG_BYTES_MAX:
                    raise Unavailable(
                        f"more than {BACKLOG_BYTES_MAX >> 20} MiB of this tenant's writes are not "
                        "ingested yet; nothing was deleted: try again once the freshness lag is "
                        "lower",
                        dependency="ingest",
                        retry_after_s=5.0,
                    )
                if names_another(record.record, collection):
                    continue
                for write in parse(record, tenant, self.registry, self.limits, homes):
                    if isinstance(write, Write) and write.collection.uid == collection.uid:
                        fold(newest, write.id, _judged(write, tree))


def _judged(write: Write, tree: filters.Tree) -> NewestWrite:
    document = write.document
    passes = document is not None and matches(tree, document.metadata)
    return NewestWrite(write.version, deleted=document is None, passes=passes)


def _check_assigned(token: Token | None, ends: Mapping[int, int]) -> None:
    for p in token.positions if token is not None else ():
        if p.offset >= ends.get(p.partition, 0):
            raise Refused(
                f"wait_for names position {p.partition}-{p.offset}, which no write has",
                field="wait_for",
            )
