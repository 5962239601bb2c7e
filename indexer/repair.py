"""Repair: rebuilds a segment that has a damaged object, and replaces it in the manifest.

`plan` decides, `Repair` acts. The rebuilt segment has the same live rows, deletions and versions,
under new names. What its other objects lack comes from the log, if the log still has the records
that the segment was sealed from.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from indexer.backends import Mask
from indexer.index import lexical
from indexer.index.objects import (
    Damaged,
    Documents,
    Keys,
    Role,
    converted,
    opened,
    outdated,
    read_documents,
    read_passages,
)
from indexer.index.rows import newest, no_deletes
from indexer.seal import Builder
from indexer.vectors_log import readable_rows
from tenants.entities import COPIES, Damage, Generation, Lease, Manifest, SegmentRef
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from tenants.serving import generation_of
from vicinage.clock import Clock, longer
from vicinage.errors import Conflict, Corrupt, NotFound, Unavailable, VicinageError
from vicinage.faults import crash_point
from vicinage.log import Log, read_between
from vicinage.metrics import counter, gauge
from vicinage.records import ShardId
from vicinage.store import Store
from vicinage.telemetry import events
from vicinage.wire import DELETED, rows_key, vectors_schema

CHECK_S: Final = 1.0
BACKOFF_S: Final = (10.0, 3_600.0)
"""Exponential backoff of a repair that failed: the first and the longest wait."""
ACTOR: Final = "indexer"
T = TypeVar("T")
BY_HAND: Final = (
    "put the object back from a backup of the store (its SHA-256 is in the manifest), or delete "
    "the collection and send its documents again"
)
_event = events("indexer")
_rebuilt = counter("vicinage_indexer_rebuilt_total")
_damaged = gauge("vicinage_indexer_damaged_objects")


class Lost(Corrupt):
    """Neither the other objects nor the log have the content of a damaged object."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The sources of a segment's rows and deletions."""

    rows: Literal["segment", "log"]
    deletes: Literal["segment", "log", "none"]


def plan(ref: SegmentRef, broken: Collection[Role], *, logged: bool) -> Plan:
    """Returns how to rebuild a segment.

    `logged`: whether the log still has its records. Raises Lost. Pure.
    """
    rows: Literal["segment", "log"] = "log" if "passages" in broken else "segment"
    deletes: Literal["segment", "log", "none"] = "segment"
    if "documents" in broken:
        deletes = "log" if ref.n_deletes else "none"
    if "log" in (rows, deletes) and not logged:
        what = "its passages" if rows == "log" else f"which {ref.n_deletes} documents it deletes"
        path = ref.objects["passages" if rows == "log" else "documents"].path
        raise Lost(f"neither its other objects nor the log have {what}; {BY_HAND}", path=path)
    return Plan(rows, deletes)


def exactly(batches: Sequence[pa.RecordBatch], documents: Documents) -> list[pa.RecordBatch]:
    """Returns the rows of a segment's live documents, in the versions that it holds. Pure."""
    return [batch.filter(pa.array(_is_in(batch, documents))) for batch in batches]


def _is_in(batch: pa.RecordBatch, documents: Documents) -> Mask:
    positions = documents.keys.find(Keys.of(batch.column("document_id").to_pylist()))
    here: Mask = positions >= 0
    at = positions[here]
    versions = batch.column("version").to_numpy()
    # A deletion may have the version of its document.
    lives = batch.column("passage").to_numpy() != DELETED
    here[here] = (documents.version[at] == versions[here]) & (documents.count[at] > 0) & lives[here]
    return here


class Repair:
    """Rebuilds damaged segments of the held slots.

    One thread calls `next`; another runs what it returns, one at a time.
    """

    def __init__(
        self,
        log: Log,
        registry: Registry,
        builder: Builder,
        lease: Callable[[int], Lease],
        clock: Clock,
    ) -> None:
        self._log = log
        self._registry = registry
        self._builder = builder
        self._quarantine = builder.manifests.quarantine
        self._lease = lease
        self._clock = clock
        self._checked = -1e9
        self._waits: dict[str, tuple[float, float]] = {}
        """By path: when a failed repair is retried (monotonic), and its last wait."""

    def next(self, slots: Collection[int]) -> Callable[[], None] | None:
        """Returns the next repair that is due in these slots, if any. Raises Unavailable."""
        now = self._clock.monotonic()
        if now - self._checked < CHECK_S:
            return None
        self._checked = now
        found = self._quarantine.open(slots)
        for state in ("noted", "stuck"):
            _damaged.labels(state).set(sum(d.state == state for d in found))
        self._waits = {d.path: self._waits[d.path] for d in found if d.path in self._waits}
        due = (d for d in found if d.path not in self._waits or self._waits[d.path][0] <= now)
        return next((partial(self.repair, d) for d in due), None)

    def repair(self, damage: Damage) -> None:
        """Rebuilds the segment, or stores why it cannot.

        Raises Unavailable only if the reason cannot be stored.
        """
        try:
            self._repair_one(damage)
        except Conflict as lost:
            _event.warning("repair.abandoned", shard=str(damage.shard), reason=str(lost))
        except Unavailable as away:
            self._later(damage)
            _event.warning("repair.waited", shard=str(damage.shard), reason=str(away))
        except VicinageError as error:
            self._later(damage)
            self._quarantine.move(
                damage, "stuck", actor=ACTOR, reason=f"{damage.reason}; {error.detail}"
            )
            _event.error(
                "rebuild.failed", shard=str(damage.shard), path=damage.path, reason=error.detail
            )
        else:
            self._checked = -1e9  # check for the next damage at once

    def _later(self, damage: Damage) -> None:
        wait_s = longer(
            self._waits[damage.path][1] if damage.path in self._waits else None, BACKOFF_S
        )
        self._waits[damage.path] = self._clock.monotonic() + wait_s, wait_s

    def _repair_one(self, damage: Damage) -> None:
        generation = generation_of(self._registry, damage.shard)
        ref = (
            None
            if generation is None
            else self._named(damage, self._builder.current(damage.shard, generation))
        )
        if generation is None or ref is None:
            self._quarantine.move(damage, "replaced", actor=ACTOR)
            return
        lease = self._lease(damage.shard.slot)
        broken = self._broken(ref)
        if damage.role not in broken:
            self._quarantine.forget(damage, actor=ACTOR, why="it was read again and is intact")
            _event.info("object.verified", shard=str(damage.shard), path=damage.path)
            return
        self._rebuild(damage.shard, generation, ref, broken, lease)

    def _named(self, damage: Damage, manifest: Manifest) -> SegmentRef | None:
        return next(
            (
                s
                for s in manifest.segments
                if any(o.path == damage.path for o in s.objects.values())
            ),
            None,
        )

    def _broken(self, ref: SegmentRef) -> dict[Role, Damaged]:
        """Returns the damaged objects of the segment, as read again from the store.

        Raises Unavailable.
        """
        found = {d.role: d for d in map(partial(self._damage, ref), ref.objects) if d is not None}
        if any(d.fault == "lost" for d in found.values()) and not any(
            True for _ in self._builder.store.list("segments")
        ):
            raise Unavailable(
                "the store has no segment at all; check that it is the right one and mounted",
                dependency="store",
            )
        return found

    def _damage(self, ref: SegmentRef, role: Role) -> Damaged | None:
        """Returns the object's damage; None if it is intact."""
        readers: Mapping[Role, Callable[..., object]] = {
            "passages": partial(read_passages, n=ref.n_passages),
            "documents": read_documents,
            "index": self._builder.backend.load,
            "lexical": lexical.unpack,
        }
        try:
            verified(ref, role, self._builder.store)
            if role in readers:  # a newer version may have other roles
                opened(ref, role, self._builder.store, readers[role])
        except Damaged as damaged:
            return damaged
        return None

    def _rebuild(
        self,
        shard: ShardId,
        generation: Generation,
        ref: SegmentRef,
        broken: Mapping[Role, Damaged],
        lease: Lease,
    ) -> None:
        # Includes damage that no reader has reported: the quarantine keeps those bytes, too.
        for damaged in broken.values():
            self._builder.loading().note(shard, ref, damaged)
        live, deletes = self._recovered(shard, generation, ref, broken)
        with self._builder.written(
            shard, generation, live, deletes, lease, logged=ref.logged()
        ) as rebuilt:
            crash_point("repair.after_put_before_swap")
            self._builder.publish(shard, generation, lease, partial(_exchanged, ref, rebuilt))
        crash_point("repair.after_swap")
        _rebuilt.inc()
        for each in self._quarantine.open([shard.slot]):
            if each.segment == ref.id:
                self._quarantine.move(each, "replaced", actor=ACTOR)
        _event.info(
            "segment.rebuilt",
            shard=str(shard),
            segment=ref.id,
            by=rebuilt.id,
            damaged=sorted(broken),
        )

    def _recovered(
        self,
        shard: ShardId,
        generation: Generation,
        ref: SegmentRef,
        broken: Mapping[Role, Damaged],
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Returns the segment's rows and deletions. Raises Lost, Unavailable."""
        store = self._builder.store
        rows = _either(ref, "passages", broken, store, partial(read_passages, n=ref.n_passages))
        if rows is None and broken["passages"].fault == "format":
            rows = _converted(ref, store)
        documents = _either(ref, "documents", broken, store, read_documents)
        missing = {
            role for role, found in (("passages", rows), ("documents", documents)) if found is None
        }
        how = plan(ref, missing, logged=self._is_logged(shard, ref))
        records = self._records(shard, generation, ref) if "log" in (how.rows, how.deletes) else []
        if how.rows == "log":
            rows, _ = newest(exactly(records, documents) if documents is not None else records)
        deletes = documents.deletes() if documents is not None else no_deletes()
        assert rows is not None, "they come from the segment or from the log"
        if how.deletes == "log":
            deletes = _deleted(records, rows)
        _check_complete(ref, rows, deletes, exact=documents is not None)
        return rows, deletes

    def _is_logged(self, shard: ShardId, ref: SegmentRef) -> bool:
        """Returns whether the log still has every record that the segment was sealed from."""
        logged = ref.logged()
        return (
            logged is not None
            and self._log.begin(VECTORS_TOPIC, shard.slot) <= logged[0]
            and self._log.end(VECTORS_TOPIC, shard.slot) >= logged[1]
        )

    def _records(
        self, shard: ShardId, generation: Generation, ref: SegmentRef
    ) -> list[pa.RecordBatch]:
        """Returns the shard's rows in the segment's range of the log."""
        key = rows_key(shard.tenant, shard.collection, shard.generation)
        found = [pa.RecordBatch.from_pylist([], schema=vectors_schema(generation.dimension))]
        logged = read_between(self._log, VECTORS_TOPIC, shard.slot, *(ref.logged() or (0, 0)))
        found.extend(
            readable_rows((s for s in logged if s.record.key == key), generation.dimension)
        )
        return found


def _either(
    ref: SegmentRef, role: Role, broken: Collection[Role], store: Store, read: Callable[[Path], T]
) -> T | None:
    """Returns the content of the object or of its second copy; None if neither can be read."""
    whole = next((r for r in (role, COPIES[role]) if r in ref.objects and r not in broken), None)
    return None if whole is None else opened(ref, whole, store, read)


def verified(ref: SegmentRef, role: Role, store: Store) -> None:
    """Reads an object of the segment from the store again. Raises Damaged, Unavailable."""
    stored = ref.objects[role]
    try:
        store.verify(stored)
    except NotFound as lost:
        raise Damaged(lost.detail, path=stored.path, role=role, fault="lost") from lost
    except Corrupt as corrupt:
        raise Damaged(corrupt.detail, path=stored.path, role=role, fault="corrupt") from corrupt
    if old := outdated(ref).get(role):
        raise Damaged(f"older format: {old}", path=stored.path, role=role, fault="format")


def _converted(ref: SegmentRef, store: Store) -> pa.RecordBatch | None:
    """Returns the rows of a segment that an older version wrote; None if they cannot be read."""
    try:
        rows = opened(ref, "passages", store, converted)
    except Damaged:
        return None
    return rows if rows.num_rows == ref.n_passages else None


def _deleted(records: Sequence[pa.RecordBatch], live: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the deletions in the log, without documents that are live in the segment."""
    _, deletes = newest(records)
    lives = pc.is_in(deletes.column("document_id"), value_set=live.column("document_id").unique())
    return deletes.filter(pc.invert(lives))


def _check_complete(
    ref: SegmentRef, rows: pa.RecordBatch, deletes: pa.RecordBatch, *, exact: bool
) -> None:
    """Raises Lost unless the counts are those of the manifest.

    Not `exact`: the segment's documents are known from the log only. For a compacted segment the
    log has more, because the compaction dropped some. Those rows are valid, and older than the rows
    that replace them.
    """
    found = rows.num_rows, len(rows.column("document_id").unique()), deletes.num_rows
    wanted = ref.n_passages, ref.n_documents, ref.n_deletes
    if found != wanted and (exact or any(f < w for f, w in zip(found, wanted, strict=True))):
        raise Lost(
            f"of {wanted} passages, documents and deletions only {found} were found; {BY_HAND}",
            path=ref.objects["passages"].path,
        )


def _exchanged(gone: SegmentRef, rebuilt: SegmentRef, current: Manifest) -> tuple[SegmentRef, ...]:
    """Puts the rebuilt segment in the place of the damaged one.

    The order matters: of equal versions, the later segment's counts.
    """
    if gone.id not in {s.id for s in current.segments}:
        raise Conflict(f"a segment of {current.shard} was merged meanwhile", found=current.version)
    return tuple(rebuilt if s.id == gone.id else s for s in current.segments)
