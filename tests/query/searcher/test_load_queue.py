"""The order in which shards are loaded."""

from query.searcher.load_queue import LoadQueue
from vicinage.records import ShardId

A = [ShardId("acme", f"a{i}", 1, 0) for i in range(4)]
B = ShardId("other", "b", 1, 0)


def queue(*shards: ShardId) -> LoadQueue:
    made = LoadQueue()
    for shard in shards:
        made.add(shard)
    return made


def test_without_waits_the_oldest_that_is_due_comes_first_and_none_twice() -> None:
    q = queue(*A[:2])
    q.schedule(A[2], 10.0)
    assert [q.take((), (), 5.0) for _ in range(3)] == [A[0], A[1], None]
    assert q.take((), (), 10.0) == A[2]
    q.remove(A[0])
    q.done(A[0])
    q.done(A[1])
    assert q.take((), (), 10.0) == A[1], "it was not dropped: it is loaded again"


def test_a_shard_that_is_waited_for_precedes_an_older_one() -> None:
    q = queue(*A)
    assert q.take([A[3]], (), 0.0) == A[3]
    assert q.take([A[3]], (), 0.0) == A[0], "that one is being loaded"


def test_a_tenant_without_a_running_load_precedes_one_with() -> None:
    q = queue(*A, B)
    waits = [*A, B]
    assert {shard.tenant for shard in (q.take(waits, (), 0.0), q.take(waits, (), 0.0))} == {
        "acme",
        "other",
    }


def test_tenants_take_turns() -> None:
    q = queue(*A, B)
    waits = [*A, B]
    taken = []
    for _ in range(4):
        shard = q.take(waits, (), 0.0)
        assert shard is not None
        q.done(shard)
        q.remove(shard)
        taken.append(shard.tenant)
        q.add(B)  # it is requested again and again
    assert taken == ["acme", "other", "acme", "other"]


def test_waits_do_not_shorten_the_backoff_of_a_failed_load() -> None:
    q = queue()
    q.schedule(A[0], 5.0)
    assert q.take([A[0]], {A[0]}, 1.0) is None
    assert q.take([A[0]], {A[0]}, 5.0) == A[0]
    q.done(A[0])
    assert q.take([A[0]], (), 1.0) == A[0], (
        "requested and not failing: at once, whatever its time was"
    )


def test_a_repeated_request_does_not_delay_a_load_and_a_new_time_keeps_its_position() -> None:
    q = queue(A[0], A[1])
    q.schedule(A[0], 3.0)
    q.add(A[0])
    assert q.due == {A[0]: 3.0, A[1]: 0.0}
    assert q.take((), (), 3.0) == A[0]
