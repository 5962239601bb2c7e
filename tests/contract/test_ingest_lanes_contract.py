"""The contract of ingest lanes, over each catalog."""

from dataclasses import replace

import pytest
from catalogs import Catalog

from tenants.entities import IngestLane
from tenants.ingest_lanes import REASON_MAX, IngestLanes, owed_from
from vicinage.errors import Conflict

LANE = IngestLane("acme", "docs", 1, 0, 7, "m")


@pytest.fixture
def lanes(catalog: Catalog) -> IngestLanes:
    return IngestLanes(catalog.engine, catalog.clock)


def test_a_lane_is_durable_as_it_was_opened(catalog: Catalog, lanes: IngestLanes) -> None:
    [made] = lanes.open([LANE])
    assert made == replace(LANE, since_ms=catalog.clock.now_ms())
    assert IngestLanes(catalog.engine, catalog.clock).every() == [made]


def test_lanes_are_opened_all_or_none_and_only_once(lanes: IngestLanes) -> None:
    [made] = lanes.open([LANE])
    with pytest.raises(Conflict, match="another ingest"):
        lanes.open([replace(LANE, partition=1), replace(LANE, position=3)])
    assert lanes.every() == [made]


def test_a_lane_moves_from_where_it_is(catalog: Catalog, lanes: IngestLanes) -> None:
    [made] = lanes.open([LANE])
    catalog.clock.advance(5)
    failed = lanes.move(made, position=9, state="unavailable", reason="x" * 1_000)
    assert (failed.position, failed.state, len(failed.reason)) == (9, "unavailable", REASON_MAX)
    assert failed.since_ms == made.since_ms + 5_000
    catalog.clock.advance(5)
    again = lanes.move(failed, position=9, state="unavailable", reason="y")
    assert again.since_ms == failed.since_ms, "the state is as old as it was"
    with pytest.raises(Conflict):
        lanes.move(made, position=8, state="behind")
    assert lanes.every() == [again]


def test_a_lane_is_closed_where_it_is_and_nowhere_else(lanes: IngestLanes) -> None:
    [made] = lanes.open([LANE])
    moved = lanes.move(made, position=10, state="behind")
    with pytest.raises(Conflict):
        lanes.close(made)
    lanes.close(moved)
    assert lanes.every() == []
    with pytest.raises(Conflict):
        lanes.close(moved)


def test_dropping_is_idempotent(lanes: IngestLanes) -> None:
    made = lanes.open([LANE, replace(LANE, generation=2)])
    lanes.drop(made[:1])
    lanes.drop(made[:1])
    assert lanes.every() == made[1:]


def test_lanes_are_found_by_tenant_collection_and_generation(lanes: IngestLanes) -> None:
    a, b, c, d = lanes.open(
        [
            LANE,
            replace(LANE, generation=2),
            replace(LANE, collection="more"),
            replace(LANE, tenant="other"),
        ]
    )
    assert lanes.of("acme") == [a, b, c]
    assert lanes.of("acme", "docs") == [a, b]
    assert lanes.of("acme", "docs", [2, 3]) == [b]
    assert lanes.of("other") == [d]
    assert lanes.of("unknown") == []


def test_what_is_owed_begins_at_the_hindmost_lane_of_the_partition() -> None:
    some = [LANE, replace(LANE, generation=2, position=5), replace(LANE, partition=1, position=1)]
    assert owed_from(some, 0, 20) == 5
    assert owed_from(some, 0, 3) == 3
    assert owed_from(some, 2, 20) == 20
