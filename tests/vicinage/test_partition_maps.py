"""Versions order all writes of one document across changes of its topic's partitions."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vicinage.errors import Refused
from vicinage.partition_maps import (
    EPOCHS_MAX,
    PARTITIONS_MAX,
    PartitionMap,
    epoch_of,
    grown,
    pack_version,
    unpack_version,
    version_of,
)
from vicinage.records import OFFSET_BITS, Position
from vicinage.routing import home_of

EPOCHS = st.integers(0, EPOCHS_MAX - 1)
POSITIONS = st.builds(
    Position, st.integers(0, PARTITIONS_MAX - 1), st.integers(0, (1 << OFFSET_BITS) - 1)
)


@given(EPOCHS, POSITIONS)
def test_a_version_is_a_signed_64_bit_number_and_says_where_it_is_from(
    epoch: int, position: Position
) -> None:
    version = pack_version(epoch, position)
    assert 0 <= version < 1 << 63
    assert unpack_version(version) == (epoch, position)


@given(EPOCHS, POSITIONS, EPOCHS, POSITIONS)
def test_versions_compare_by_map_then_offset_then_partition(
    a: int, p: Position, b: int, q: Position
) -> None:
    first, second = (a, p.offset, p.partition), (b, q.offset, q.partition)
    assert (pack_version(a, p) < pack_version(b, q)) == (first < second)


def test_the_first_map_gives_the_versions_that_were_given_before_there_were_maps() -> None:
    assert pack_version(0, Position(3, 7)) == (7 << 10) | 3 == Position(3, 7).version()


IDS = [f"d{i}" for i in range(200)]
TWO = PartitionMap("t", 2, (0, 0))
FIVE = grown(TWO, 5, [10, 20])


def test_growth_counts_from_the_ends_of_the_old_partitions_and_the_beginning_of_the_new() -> None:
    assert PartitionMap("t", 5, (10, 20, 0, 0, 0)) == FIVE
    with pytest.raises(Refused, match="at most"):
        grown(TWO, PARTITIONS_MAX + 1, [0, 0])


@given(st.sampled_from(IDS), st.integers(0, 4), st.integers(0, 40))
def test_a_record_has_the_newest_map_under_which_it_is_at_home_and_counts(
    name: str, partition: int, offset: int
) -> None:
    old, new = home_of("c", name, 2) == partition, home_of("c", name, 5) == partition
    counts = offset >= FIVE.starts[partition]
    expected = 1 if new and (counts or not old) else 0 if old else None
    assert epoch_of([TWO, FIVE], Position(partition, offset), "c", name) == expected


def test_a_producer_that_knows_added_partitions_before_their_map_wins_in_an_old_one_too() -> None:
    """The document's home moved from partition 0 and back: three maps apply to its records."""
    two = PartitionMap("t", 2, (0, 0))
    four = grown(two, 4, [4, 4])
    six = grown(four, 6, [17, 15, 2, 0])
    assert [home_of("texts", "d0", n) for n in (2, 4, 6)] == [0, 2, 0]
    assert epoch_of([two, four], Position(2, 1), "texts", "d0") == 1
    assert epoch_of([two, four, six], Position(0, 16), "texts", "d0") == 2
    assert epoch_of([two, four, six], Position(0, 3), "texts", "d0") == 0, (
        "written before the second map"
    )
    assert epoch_of([two, four], Position(0, 16), "texts", "d0") == 0, (
        "its producer knows two partitions"
    )


def test_a_record_of_another_partitioner_is_refused_with_what_to_do() -> None:
    wrong = next(i for i in IDS if home_of("docs", i, 2) == 0)
    with pytest.raises(Refused, match=f"docs/{wrong} into partition 0 of 2.*murmur2_random"):
        version_of([TWO], Position(1, 0), "docs", wrong)


@given(st.sampled_from(IDS), st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_after_a_topic_was_created_again_its_small_offsets_win(
    name: str, before: int, after: int
) -> None:
    maps = [PartitionMap("old", 1, (0,)), PartitionMap("new", 1, (0,))]
    old = version_of(maps[:1], Position(0, before), "c", name)
    assert version_of(maps, Position(0, after), "c", name) > old


@given(st.sampled_from(IDS), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.data())
def test_what_is_written_in_turn_by_the_newest_map_is_ordered_in_turn(
    name: str, sizes: list[int], data
) -> None:
    assume(sizes == sorted(set(sizes)))
    ends, maps, versions = [0] * sizes[-1], [], []
    for n in sizes:
        maps.append(
            grown(maps[-1], n, ends[: maps[-1].partitions])
            if maps
            else PartitionMap("t", n, (0,) * n)
        )
        for _ in range(data.draw(st.integers(0, 3))):
            for p in range(n):
                ends[p] += data.draw(st.integers(0, 2))
            home = home_of("c", name, n)
            versions.append(version_of(maps, Position(home, ends[home]), "c", name))
            ends[home] += 1
    assert versions == sorted(set(versions))
