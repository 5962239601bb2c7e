"""The vectors log is trimmed an age after every shard of the slot sealed it; the rest suffices."""

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from resources import make_indexer, resources_in
from sealed import append, contents, gone, make_collection, up, version

from indexer import trim
from indexer.reindex_jobs import start
from indexer.run import Indexer
from indexer.trim import Note, below, floors, noted
from tenants.entities import Group, Manifest
from tenants.provisioning import VECTORS_TOPIC
from vicinage.clock import ManualClock
from vicinage.records import ShardId

KEEP_S = 3_600.0


@pytest.fixture
def base(tmp_path: Path):
    """A platform with a manual clock, which seals each message and advances idle shards at once."""
    made = resources_in(
        tmp_path / "data", keep_sealed_s=KEEP_S, seal_passages=1, replay_records_max=1
    )
    yield replace(made, clock=ManualClock(time.time_ns() // 1_000_000))
    made.close()


def after(base, indexer: Indexer, seconds: float) -> None:
    """Advances the clock; the indexer steps every 10 minutes."""
    while seconds > 0:
        base.clock.advance(min(seconds, 600))
        seconds -= 600
        for _ in range(3):
            indexer.step()
            indexer._maintenance.settle()


def begin(base, generation) -> int:
    return base.log.begin(VECTORS_TOPIC, generation.slots[0])


# deciding


def test_a_slot_is_needed_from_its_least_sealed_shard_on(base) -> None:
    one, two = make_collection(base, "one"), make_collection(base, "two")
    a, b = (replace(g, slots=(0,), starts=(start,)) for g, start in ((one, 7), (two, 9)))
    served = {s: g for g in (a, b) for s in g.shards()}
    ends = {0: 20, 1: 30}
    assert floors(range(2), served, [], ends) == {0: 7, 1: 30}
    sealed = Manifest(a.shards()[0], 1, 1, 12, ())
    assert floors(range(2), served, [sealed], ends) == {0: 9, 1: 30}
    stranger = Manifest(ShardId("acme", "gone", 1, 0), 1, 1, 2, ())
    assert floors(range(2), served, [sealed, stranger], ends) == {0: 9, 1: 30}


def test_an_offset_counts_once_it_was_observed_an_age_ago() -> None:
    notes = noted((), 10, now=0.0, keep_s=24)
    assert below(notes, now=23.9, keep_s=24) == 0
    notes = noted(notes, 15, now=23.9, keep_s=24)
    assert below(notes, now=24, keep_s=24) == 10
    assert below(notes, now=48, keep_s=24) == 15


def test_a_floor_that_falls_lowers_all_earlier_notes() -> None:
    notes = noted((), 10, now=0.0, keep_s=24)
    notes = noted(notes, 4, now=20.0, keep_s=24)
    notes = noted(notes, 30, now=23.0, keep_s=24)
    assert below(notes, now=24, keep_s=24) == 4
    assert below(notes, now=44, keep_s=24) == 4
    assert below(notes, now=47, keep_s=24) == 30


def test_notes_stay_few_at_any_number_of_observations() -> None:
    notes: tuple[Note, ...] = ()
    for minute in range(10_000):
        notes = noted(notes, minute, now=minute * 60.0, keep_s=86_400)
        assert len(notes) <= trim.NOTES + 2
        trimmable = below(notes, now=minute * 60.0, keep_s=86_400)
        assert minute < 1_440 or minute - 1_440 - 61 <= trimmable <= minute - 1_440


# doing


def test_sealed_messages_are_trimmed_an_age_later_and_every_document_is_still_found(base) -> None:
    generation, indexer = make_collection(base), make_indexer(base)
    for i in range(5):
        append(base, generation, up(f"d{i}", i))
    after(base, indexer, KEEP_S)
    assert begin(base, generation) == 0
    append(base, generation, up("late", 5), gone("d0", 6))
    after(base, indexer, 1_200)
    assert begin(base, generation) == 5
    expected = {**{f"d{i}": (version(i), 1) for i in range(1, 5)}, "late": (version(5), 1)}
    assert contents(base, generation) == expected
    again = make_indexer(base, "another")
    indexer._drop(generation.slots[0])
    again._start_slot(generation.slots[0])
    append(base, generation, up("later", 7))
    assert again._read(1.0)


def test_unsealed_messages_are_kept_at_any_age(tmp_path: Path) -> None:
    made = resources_in(tmp_path / "data", keep_sealed_s=KEEP_S, seal_age_s=1e9)
    base = replace(made, clock=ManualClock(0))
    generation, indexer = make_collection(base), make_indexer(base)
    append(base, generation, up("a", 1))
    after(base, indexer, 3 * KEEP_S)
    assert begin(base, generation) == 0
    assert contents(base, generation) == {"a": (version(1), 1)}
    made.close()


def test_a_step_trims_only_a_few_messages(base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trim, "STEP_MESSAGES", 2)
    generation, indexer = make_collection(base), make_indexer(base)
    for i in range(5):
        append(base, generation, up(f"d{i}", i))
    after(base, indexer, KEEP_S + 600)
    begun = [begin(base, generation)]
    for _ in range(4):
        base.clock.advance(1.1)
        indexer.step()
        begun.append(begin(base, generation))
    assert begun[-1] == 5
    assert all(b - a <= 2 for a, b in pairwise(begun))


def test_an_indexer_that_leads_again_starts_its_observations_again(base) -> None:
    generation, indexer = make_collection(base), make_indexer(base)
    append(base, generation, up("a", 1))
    after(base, indexer, KEEP_S)
    indexer._maintenance.step(leading=False)
    after(base, indexer, 1_200)
    assert begin(base, generation) == 0
    after(base, indexer, KEEP_S)
    assert begin(base, generation) == 1


def test_a_reindex_copies_every_document_after_the_log_was_trimmed(base) -> None:
    generation, indexer = make_collection(base, shards=2), make_indexer(base)
    append(base, generation, *(up(f"d{i}", i) for i in range(8)))
    after(base, indexer, KEEP_S + 1_200)
    assert begin(base, generation) == 1
    append(base, generation, up("new", 9))
    base.log.commit(Group.INGEST, {("vicinage.docs.acme", 0): 10})
    start(base.registry, base.jobs, "acme", "docs", index="", model=None, shards=1, actor="test")
    after(base, indexer, 6_000)
    base.registry.refresh()
    live = base.registry.collection("acme", "docs").generation()
    assert live.number == generation.number + 1
    assert contents(base, live) == {
        **{f"d{i}": (version(i), 1) for i in range(8)},
        "new": (version(9), 1),
    }
