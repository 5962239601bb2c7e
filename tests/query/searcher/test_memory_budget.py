"""The memory budget: room is made before a load, by eviction, and counted by real sizes."""

import gc
from pathlib import Path

import pytest
from shards import adopt, one, segment, shard

from indexer.index.segment import Segment
from indexer.index.shard import Shard
from query.searcher.memory_budget import MemoryBudget, NoRoom
from vicinage.clock import ManualClock
from vicinage.records import ShardId
from vicinage.stats import SHARD_BYTES
from vicinage.store import LocalStore


class Shards:
    """Loaded shards, evicted by removal."""

    def __init__(self) -> None:
        self.held: dict[ShardId, Shard] = {}
        self.asked: set[ShardId] = set()
        self.kept: set[ShardId] = set()

    def resident(self) -> dict[ShardId, Shard]:
        return self.held

    def weights(self) -> dict[str, int]:
        return {"acme": 2, "other": 2}

    def is_in_use(self, shard: ShardId) -> bool:
        return shard in self.asked

    def pinned(self) -> set[ShardId]:
        return self.kept

    def evict(self, shard: ShardId) -> None:
        del self.held[shard]


class Memory:
    def __init__(self, folder: Path, shards_max: float) -> None:
        self.owner, self.clock, self.store = Shards(), ManualClock(), LocalStore(folder)
        self.each = self._segment(0).ref.loaded_bytes()
        self.budget = MemoryBudget(
            int(shards_max * (self.each + SHARD_BYTES)), self.owner, self.clock
        )

    def _segment(self, i: int) -> Segment:
        return segment(self.store, [one(f"d{i}", i + 1)])

    def load(self, name: str, i: int = 0) -> ShardId:
        """Loads one more shard of one segment, all of equal size."""
        made = shard()
        identity = ShardId("acme", name, 1, 0)
        with self.budget.reserve(identity, self.each) as reservation:
            loaded = self._segment(i)
            self.budget.count(loaded, reservation)
            adopt(made, [loaded], 1)
        made.last_access_s = self.clock.monotonic()
        self.owner.held[identity] = made
        return identity


def test_bytes_are_counted_while_they_are_reserved_and_once_they_are_loaded(tmp_path: Path) -> None:
    memory = Memory(tmp_path, 2)
    memory.load("a")
    assert memory.budget.resident_bytes() == memory.each + SHARD_BYTES
    with (
        memory.budget.reserve(ShardId("acme", "b", 1, 0), memory.each),
        pytest.raises(NoRoom),
        memory.budget.reserve(ShardId("acme", "c", 1, 0), 0),
    ):
        raise AssertionError("the first has all that was left")
    memory.owner.held.clear()
    gc.collect()
    assert memory.budget.resident_bytes() == 0


def test_the_shard_that_was_idle_for_longest_is_evicted(tmp_path: Path) -> None:
    memory = Memory(tmp_path, 2.5)
    memory.load("old")
    memory.clock.advance(5)
    new = memory.load("new")
    memory.clock.advance(5)
    third = ShardId("acme", "third", 1, 0)
    memory.owner.asked.add(third)
    assert memory.load("third") == third
    assert set(memory.owner.held) == {new, third}


def test_nothing_is_evicted_for_an_unrequested_shard(tmp_path: Path) -> None:
    memory = Memory(tmp_path, 1)
    old = memory.load("old")
    memory.clock.advance(60)
    with pytest.raises(NoRoom):
        memory.load("new")
    assert list(memory.owner.held) == [old]


def test_pinned_shards_are_not_evicted(tmp_path: Path) -> None:
    memory = Memory(tmp_path, 1)
    memory.owner.kept.add(memory.load("old"))
    memory.clock.advance(60)
    memory.owner.asked.add(ShardId("acme", "new", 1, 0))
    with pytest.raises(NoRoom) as refused:
        memory.load("new")
    assert refused.value.retry_after_s == 1.0


def test_a_shard_beyond_the_bound_is_refused_with_the_setting_to_raise(tmp_path: Path) -> None:
    memory = Memory(tmp_path, 1)
    with (
        pytest.raises(NoRoom, match=r"searcher\.resident_bytes_max"),
        memory.budget.reserve(ShardId("acme", "a", 1, 0), memory.budget.bytes_max),
    ):
        raise AssertionError("with what a shard itself takes it is too much")


def test_grown_deltas_cause_evictions(tmp_path: Path) -> None:
    memory = Memory(tmp_path, 1.5)
    docs = memory.load("docs")
    memory.budget.shed()
    assert list(memory.owner.held) == [docs]
    memory.clock.advance(60)
    grown = memory.owner.held[docs]
    offset = 1
    while grown.held_bytes() + SHARD_BYTES <= memory.budget.bytes_max:
        grown.apply(one(f"more-{offset}", offset), offset)
        offset += 1
    memory.budget.shed()
    assert not memory.owner.held
