"""Loading of one shard: segments from the store, then the log; and updates to a newer manifest."""

from pathlib import Path

from rows import unit
from searching import D, collection, one, seal, send, shard_of

from cluster.wiring import Resources
from indexer.backends import open_backend
from indexer.index.scans import ScanBudget
from indexer.index.shard import Shard
from query.searcher.loading import ShardLoader
from query.searcher.memory_budget import MemoryBudget
from query.searcher.tail import Tail
from tenants import provisioning
from tenants.entities import Collection
from tenants.provisioning import VECTORS_TOPIC
from vicinage.errors import Corrupt, Unavailable
from vicinage.records import ShardId, ShardQuery


class Setting:
    """A tail at the end of the log, and a loader; nothing runs by itself.

    It owns what the budget counts.
    """

    def __init__(self, base: Resources, bytes_max: int = 1 << 30) -> None:
        self.base = base
        provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
        self.of: Collection = collection(base)
        self.docs = shard_of(self.of)
        self.tail = Tail(base.log, [self.docs.slot], base.clock, lambda _shard: True)
        self.budget = MemoryBudget(bytes_max, self, base.clock)
        self.unloaded: list[ShardId] = []
        self.loader = ShardLoader(
            tail=self.tail,
            manifests=base.manifests,
            store=base.store,
            backend=open_backend(),
            budget=self.budget,
            scans=ScanBudget(),
            objective=lambda _shard: 0.95,
            clock=base.clock,
        )

    def resident(self) -> dict[ShardId, Shard]:
        return self.tail.shards

    def weights(self) -> dict[str, int]:
        return {}

    def is_in_use(self, shard: ShardId) -> bool:
        return True

    def pinned(self) -> list[ShardId]:
        return [self.docs]

    def evict(self, shard: ShardId) -> None:
        self.unload(shard)

    def unload(self, shard: ShardId) -> None:
        self.unloaded.append(shard)
        self.tail.remove(shard)

    def begin(self) -> None:
        end = self.base.log.end(VECTORS_TOPIC, self.docs.slot)
        self.tail.begin({self.docs.slot: end}, {self.docs.slot: end})

    def load(self) -> Exception | None:
        return self.loader.load(self.docs, self.of.generation(), self.unload)

    def found(self) -> list[str]:
        hits = (
            self.tail.shards[self.docs].search(ShardQuery(self.docs, unit(0, D)[None], 100)).hits[0]
        )
        return sorted(h.document_id for h in hits)


def test_a_shard_has_its_segments_and_later_rows_of_the_log(base: Resources) -> None:
    s = Setting(base)
    ends = [send(base, s.docs, one(f"d{i}", i)) for i in range(1, 4)]
    seal(base, s.docs, s.of, [one("d1", 1), one("d2", 2)], ends[1])
    s.begin()
    assert s.load() is None
    assert s.found() == ["d1", "d2", "d3"]
    assert len(s.tail.shards[s.docs].snapshot.segments) == 1
    assert s.budget.resident_bytes() > 0


def test_a_loaded_shard_keeps_the_segments_that_a_newer_manifest_names_again(
    base: Resources,
) -> None:
    s = Setting(base)
    ends = [send(base, s.docs, one(f"d{i}", i)) for i in range(1, 3)]
    seal(base, s.docs, s.of, [one("d1", 1)], ends[0])
    s.begin()
    assert s.load() is None
    held = s.tail.shards[s.docs]
    before = held.snapshot.segments
    seal(base, s.docs, s.of, [one("d2", 2)], ends[1])
    assert s.load() is None
    assert s.tail.shards[s.docs] is held
    assert held.snapshot.segments[0] is before[0]
    assert (len(held.snapshot.segments), s.found()) == (2, ["d1", "d2"])


def test_a_failed_load_is_reported_and_leaves_nothing_in_memory(base: Resources) -> None:
    s = Setting(base)
    end = send(base, s.docs, one("a", 1))
    made = seal(base, s.docs, s.of, [one("a", 1)], end)
    file = Path(base.settings.store_url) / made.segments[0].objects["passages"].path
    whole = file.read_bytes()
    s.begin()
    file.write_bytes(whole[:-1])
    assert isinstance(s.load(), Corrupt)
    file.unlink()
    assert isinstance(s.load(), Corrupt), "it is in quarantine: not read, whatever its bytes are"
    assert not s.tail.shards
    assert s.budget.resident_bytes() == 0


def test_a_lost_segment_is_reported_as_an_absent_store(base: Resources) -> None:
    s = Setting(base)
    end = send(base, s.docs, one("a", 1))
    made = seal(base, s.docs, s.of, [one("a", 1)], end)
    s.begin()
    (Path(base.settings.store_url) / made.segments[0].objects["passages"].path).unlink()
    assert isinstance(s.load(), Unavailable)


def test_without_room_for_old_and_new_segments_the_shard_is_unloaded_first(base: Resources) -> None:
    s = Setting(base)
    batches = [one(f"d{i}", i) for i in range(1, 60)]
    ends = [send(base, s.docs, b) for b in batches]
    seal(base, s.docs, s.of, batches[:1], ends[0])
    s.begin()
    assert s.load() is None
    seal(base, s.docs, s.of, batches[1:], ends[-1])
    s.budget.bytes_max = s.budget.resident_bytes() + 100
    assert isinstance(s.load(), Unavailable)
    assert s.unloaded == [s.docs]
    assert not s.tail.shards
