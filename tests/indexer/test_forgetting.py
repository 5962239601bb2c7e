"""A deletion is past once ingest is beyond all records of its time, in every partition and map."""

from indexer.forgetting import Observation, RoundState, after_observation, is_past
from vicinage.partition_maps import PartitionMap, pack_version
from vicinage.records import Position

OLD, NEW = PartitionMap("old", 1, (0,)), PartitionMap("new", 1, (0,))


def looks(*seen: tuple[tuple[int, ...], tuple[int, ...], float]) -> RoundState:
    known = None
    for committed, ends, now in seen:
        known = after_observation(known, Observation(committed, ends), now=now, age_s=100)
    assert known is not None
    return known


def test_a_lagging_partition_keeps_deletions_of_all_others() -> None:
    first = ((10, 3), (10, 6), 0.0)
    lagging = looks(first, ((50, 5), (50, 9), 500.0), ((90, 5), (90, 9), 5_000.0))
    assert not is_past(lagging, [], pack_version(0, Position(0, 5)))
    over = looks(first, ((50, 6), (50, 9), 500.0), ((90, 6), (90, 9), 601.0))
    assert is_past(over, [], pack_version(0, Position(0, 9)))
    assert not is_past(over, [], pack_version(0, Position(0, 10)))
    assert not is_past(over, [], pack_version(0, Position(1, 3)))


def test_new_partitions_begin_a_new_round() -> None:
    grown = looks(
        ((10,), (10,), 0.0),
        ((10, 0), (10, 5), 50.0),
        ((10, 5), (10, 5), 60.0),
        ((10, 5), (10, 5), 161.0),
    )
    assert is_past(grown, [], pack_version(0, Position(0, 9)))
    assert not is_past(grown, [], pack_version(1, Position(1, 0)))
    assert is_past(
        looks(((5,), (5,), 0.0), ((5,), (5,), 101.0)), [], pack_version(0, Position(0, 4))
    )


def test_deletions_of_an_earlier_topic_are_past_after_one_round_of_the_new_one() -> None:
    old = pack_version(0, Position(0, 1_000))
    begun = looks(((900,), (2_000,), 0.0), ((0,), (2,), 10.0))
    assert not is_past(begun, [OLD, NEW], old)
    over = looks(
        ((900,), (2_000,), 0.0), ((0,), (2,), 10.0), ((2,), (2,), 20.0), ((2,), (2,), 121.0)
    )
    assert is_past(over, [OLD, NEW], old)
