"""Trims the vectors log below what every shard of a slot has had in segments for long enough.

Pure functions decide from the observations of the leading indexer, by its own monotonic clock;
`Trim` observes and trims. docs/decisions/008-vectors-log-trimming.md states why an age
is used and why no process reads below.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tenants.entities import Generation, Manifest
from tenants.provisioning import VECTORS_TOPIC
from vicinage.clock import Clock
from vicinage.log import Log
from vicinage.metrics import counter
from vicinage.records import ShardId
from vicinage.settings import IndexerSettings

NOTES: Final = 24
"""Observations kept per slot: the log keeps at most one 24th more than necessary."""
STEP_S: Final = 1.0
STEP_MESSAGES: Final = 1_000
"""Messages of one slot that one step deletes, at most."""
LAG_S: Final = 120.0
"""Messages sealed more recently stay at any log size, for searchers that lag."""

_trimmed = counter("vicinage_indexer_trimmed_messages_total")


@dataclass(frozen=True, slots=True)
class Note:
    """No observation since `at` found a shard of the slot that needs the log below `offset`."""

    at: float
    offset: int


def floors(
    slots: Iterable[int],
    served: Mapping[ShardId, Generation],
    manifests: Iterable[Manifest],
    ends: Mapping[int, int],
) -> dict[int, int]:
    """Returns per slot the lowest offset that a served shard may still read. Pure.

    For a slot without shards, this is the end of the log.
    """
    sealed = {m.shard: m.sealed for m in manifests}
    found = {slot: ends[slot] for slot in slots}
    for shard, generation in served.items():
        offset = sealed.get(shard, generation.start(shard.slot))
        found[shard.slot] = min(found[shard.slot], offset)
    return found


def noted(notes: tuple[Note, ...], floor: int, *, now: float, keep_s: float) -> tuple[Note, ...]:
    """Returns a slot's notes after one more observation.

    A floor that fell lowers the earlier notes, too. Pure.
    """
    held = [Note(n.at, min(n.offset, floor)) for n in notes]
    old = [n for n in held if now - n.at >= keep_s]
    young = [n for n in held if now - n.at < keep_s]
    if not young or now - young[-1].at >= keep_s / NOTES:
        young.append(Note(now, floor))
    return (*old[-1:], *young)


def below(notes: tuple[Note, ...], *, now: float, keep_s: float) -> int:
    """Returns the offset below which no shard has needed the log for `keep_s`. Pure."""
    return max((n.offset for n in notes if now - n.at >= keep_s), default=0)


class Trim:
    """Trims the vectors log, a few messages at a time. Used by one thread."""

    def __init__(self, log: Log, slots_total: int, settings: IndexerSettings, clock: Clock) -> None:
        self._log = log
        self._slots = range(slots_total)
        self._keep_s = settings.keep_sealed_s
        self._bytes_min = settings.keep_sealed_bytes
        self._share = settings.keep_sealed_share
        self._clock = clock
        self._notes: dict[int, tuple[Note, ...]] = {}
        self._recent: dict[int, tuple[Note, ...]] = {}
        self._heavy: dict[int, int] = {}
        """Slot → the offset from which on its log has at most the bytes that it may keep."""
        self._begins: dict[int, int] = {}
        self._stepped = -1e9

    def forget(self) -> None:
        """Forgets all observations: while another indexer leads, this one misses some."""
        for held in (self._notes, self._recent, self._heavy, self._begins):
            held.clear()

    def observe(self, served: Mapping[ShardId, Generation], manifests: Iterable[Manifest]) -> None:
        """Records what the slots need now. The caller reads `manifests` before `served`."""
        every = list(manifests)
        stored: Counter[int] = Counter()
        for manifest in every:
            stored[manifest.shard.slot] += sum(ref.bytes() for ref in manifest.segments)
        ends = {slot: self._log.end(VECTORS_TOPIC, slot) for slot in self._slots}
        now = self._clock.monotonic()
        for slot, floor in floors(self._slots, served, every, ends).items():
            self._notes[slot] = noted(
                self._notes.get(slot, ()), floor, now=now, keep_s=self._keep_s
            )
            self._recent[slot] = noted(self._recent.get(slot, ()), floor, now=now, keep_s=LAG_S)
            bytes_max = max(self._bytes_min, int(self._share * stored[slot]))
            self._heavy[slot] = self._log.keeping(VECTORS_TOPIC, slot, bytes_max)

    def step(self) -> None:
        """Trims the next few messages of each slot. Raises Unavailable."""
        now = self._clock.monotonic()
        if now - self._stepped < STEP_S:
            return
        self._stepped = now
        for slot, notes in self._notes.items():
            heavy = min(self._heavy[slot], below(self._recent[slot], now=now, keep_s=LAG_S))
            before = max(below(notes, now=now, keep_s=self._keep_s), heavy)
            if before > self._begin(slot):
                self._trim(slot, min(before, self._begin(slot) + STEP_MESSAGES))

    def _begin(self, slot: int) -> int:
        if slot not in self._begins:
            self._begins[slot] = self._log.begin(VECTORS_TOPIC, slot)
        return self._begins[slot]

    def _trim(self, slot: int, before: int) -> None:
        self._log.trim(VECTORS_TOPIC, slot, before)
        _trimmed.inc(before - self._begins[slot])
        self._begins[slot] = before
