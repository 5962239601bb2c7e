"""Trims documents logs below ingest's position, by age and by bytes.

Nothing is rebuilt from a documents log: passages that ingest has written are in the vectors log,
and once that is trimmed, in segments (docs/decisions/033-retention-and-erasure.md). `floors`
decides; `DocumentsTrim` observes and trims.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from indexer.trim import STEP_MESSAGES, STEP_S, Note, below, noted
from tenants.entities import Group, IngestLane
from tenants.positions import PREFIX, PartitionState
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.errors import NotFound, Unavailable
from vicinage.log import Log, TopicPartition
from vicinage.metrics import counter
from vicinage.settings import IndexerSettings

OBSERVE_S: Final = 10.0
PARTITIONS_AT_ONCE: Final = 500
"""Partitions observed at once; the next observation continues after them."""
STALLED_S: Final = 60.0
"""Records that ingest passed more recently are kept at any size: a stalled ingest may read them."""

_trimmed = counter("vicinage_indexer_trimmed_documents_total")


def floors(
    committed: Mapping[TopicPartition, int],
    lanes: Iterable[IngestLane],
    saved: Iterable[PartitionState] = (),
) -> dict[TopicPartition, int]:
    """Returns the lowest offset that ingest may still read, by partition. Pure.

    It is the least of ingest's committed position, the catalog's copy of it, where a restart
    begins, and the positions of its lanes.
    """
    found = dict(committed)
    for state in saved:
        if (tp := state.topic_partition()) in found:
            found[tp] = min(found[tp], state.position)
    for lane in lanes:
        tp = (f"vicinage.docs.{lane.tenant}", lane.partition)
        if tp in found:
            found[tp] = min(found[tp], lane.position)
    return found


class DocumentsTrim:
    """Trims documents logs, a few records at a time. Used by one thread.

    Its observations are lost in a restart.
    """

    def __init__(
        self, log: Log, registry: Registry, settings: IndexerSettings, clock: Clock
    ) -> None:
        self._log = log
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._round: list[TopicPartition] = []
        self._old: dict[TopicPartition, tuple[Note, ...]] = {}
        self._recent: dict[TopicPartition, tuple[Note, ...]] = {}
        self._before: dict[TopicPartition, int] = {}
        """The offset below which each partition is to be trimmed, if it is."""
        self._observed = self._stepped = -1e9

    def forget(self) -> None:
        """Forgets all observations: while another indexer leads, this one misses some."""
        for held in (self._old, self._recent, self._before):
            held.clear()
        self._round.clear()

    def step(self) -> None:
        """Observes the positions, and trims the next few records.

        Raises Unavailable. Skips the partition that caused it until the next round, so that a topic
        without a leader blocks no other topic.
        """
        now = self._clock.monotonic()
        try:
            if now - self._observed >= OBSERVE_S:
                self._observed = now
                self._observe(now)
        finally:
            if now - self._stepped >= STEP_S:
                self._stepped = now
                self._trim_some()

    def _trim_some(self) -> None:
        for tp in list(self._before):
            try:
                self._trim(tp)
            except Unavailable:
                del self._before[tp]
                raise

    def _observe(self, now: float) -> None:
        if not self._round:
            self._round = self._partitions()
            held = set(self._round)
            self._old = {tp: notes for tp, notes in self._old.items() if tp in held}
            self._recent = {tp: notes for tp, notes in self._recent.items() if tp in held}
        some, self._round = self._round[:PARTITIONS_AT_ONCE], self._round[PARTITIONS_AT_ONCE:]
        committed = self._log.committed(Group.INGEST, some)
        # NOTE: lanes are read after the positions: see tenants/ingest_lanes.py
        found = floors(committed, self._registry.lanes.every(), self._registry.positions.of())
        while found:
            tp, floor = found.popitem()
            try:
                self._note(tp, floor, now)
            except Unavailable:
                self._round = [*found, *self._round]
                raise

    def _partitions(self) -> list[TopicPartition]:
        counts = self._log.topics("vicinage.docs.")
        topics = [t.documents_topic for t in self._registry.tenants()]
        return [(topic, p) for topic in topics for p in range(counts.get(topic, 0))]

    def _note(self, tp: TopicPartition, floor: int, now: float) -> None:
        s = self._settings
        self._old[tp] = noted(self._old.get(tp, ()), floor, now=now, keep_s=s.keep_documents_s)
        self._recent[tp] = noted(self._recent.get(tp, ()), floor, now=now, keep_s=STALLED_S)
        still = below(self._recent[tp], now=now, keep_s=STALLED_S)
        try:
            begin = self._log.begin(*tp)
            heavy = (
                min(still, self._log.keeping(*tp, s.keep_documents_bytes)) if still > begin else 0
            )
        except NotFound:
            return  # the topic was deleted meanwhile
        before = max(below(self._old[tp], now=now, keep_s=s.keep_documents_s), heavy)
        if before > begin:
            self._before[tp] = before

    def _trim(self, tp: TopicPartition) -> None:
        try:
            begin = self._log.begin(*tp)
            # NOTE: read again each time: the topic may have been created again meanwhile, and its
            # records not read yet.
            committed = self._log.committed(Group.INGEST, [tp])
            saved = self._registry.positions.of(tp[0].removeprefix(PREFIX))
            floor = floors(committed, self._registry.lanes.every(), saved).get(tp, 0)
            self._before[tp] = min(self._before[tp], floor)
            upto = min(self._before[tp], begin + STEP_MESSAGES)
            if upto > begin:
                self._log.trim(*tp, upto)
                _trimmed.inc(upto - begin)
        except NotFound:
            upto = self._before[tp]
        if upto >= self._before[tp]:
            del self._before[tp]
