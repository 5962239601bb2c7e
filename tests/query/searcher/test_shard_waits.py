"""Waits for shards: their bound, one tenant's share, and how they are settled."""

import pytest

from query.searcher.shard_waits import ShardWait, ShardWaits, settle
from vicinage.clock import Deadline
from vicinage.errors import NotFound, Overloaded
from vicinage.records import ShardId


def wait(tenant: str, collection: str = "c", *, left_s: float = 5) -> ShardWait:
    return ShardWait(ShardId(tenant, collection, 1, 0), 0, Deadline.after(left_s))


def test_one_tenant_has_at_most_half_of_the_waits() -> None:
    waits = ShardWaits(4)
    for _ in range(2):
        waits.add(wait("loud"))
    with pytest.raises(Overloaded):
        waits.add(wait("loud"))
    for _ in range(2):
        waits.add(wait("quiet"))
    with pytest.raises(Overloaded):
        waits.add(wait("third"))


def test_waits_that_are_over_make_room() -> None:
    waits = ShardWaits(2)
    canceled = wait("one")
    waits.add(canceled)
    waits.add(wait("two", left_s=0))
    canceled.future.cancel()
    waits.add(wait("one", "new"))
    assert [w.shard.collection for w in waits] == ["new"]


def test_only_waits_with_an_outcome_are_settled() -> None:
    waits = ShardWaits(10)
    failed, canceled, waiting = wait("a"), wait("b"), wait("c")
    for each in (failed, canceled, waiting):
        waits.add(each)
    canceled.future.cancel()
    error = NotFound("there is no such generation")
    settle(waits.take_settled(lambda w: None if w is waiting else error))
    assert failed.future.exception(0) is error
    assert list(waits) == [waiting]
    assert waits.is_waited_for(waiting.shard)
    assert not waits.is_waited_for(failed.shard)
