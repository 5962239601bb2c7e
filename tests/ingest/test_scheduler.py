"""The order of jobs and of writes, decided without threads, clock or I/O."""

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.jobs import Job, Write
from ingest.scheduler import (
    PER_MODEL_MAX,
    PER_SHARE_MAX,
    PROBES_MAX,
    RETRY_S,
    WORKERS,
    Part,
    Scheduler,
    Task,
)
from tenants.entities import Class, Collection, Generation, Objectives, Tenant
from vicinage.log import LogRecord, Record
from vicinage.records import Document


def collection(name: str, model: str) -> Collection:
    live = Generation("t", name, 1, "live", model, 3, "cosine", "flat", (0,), (0,))
    return Collection("t", name, "active", 1, (live,), Objectives())


def task(
    name: str,
    partition: int = 0,
    *,
    n: int = 1,
    priority: Class = "silver",
    models: tuple[str, ...] = ("m",),
) -> Task:
    """Returns a job of `n` documents for each model, each in a collection of its name."""
    tp = (f"docs.{name}", partition)
    job = Job(Tenant(name, priority), tp, 0)
    record = LogRecord(*tp, 0, Record(b""))
    job.writes = [
        Write(collection(m, m), "a", 0, 0, Document(m, "a", text="x"), record)
        for m in models
        for _ in range(n)
    ]
    return Task(job)


def only(one: Task) -> Part:
    """Returns the part of a task with one model."""
    [part] = one.parts.values()
    return part


def scheduler_with(*tasks: Task) -> Scheduler:
    scheduler = Scheduler()
    for one in tasks:
        scheduler.add(one)
    return scheduler


def taken(scheduler: Scheduler, now: float = 0.0) -> list[Part]:
    """Returns everything that workers are given at once."""
    found = []
    while (one := scheduler.take(now)) is not None:
        found.append(one)
    return found


def names(parts: list[Part]) -> Counter[str]:
    return Counter(p.task.job.tenant.name for p in parts)


def test_a_backlog_has_two_workers_and_no_more() -> None:
    scheduler = scheduler_with(*(task("long") for _ in range(80)), task("short"))
    assert names(taken(scheduler)) == {"long": PER_SHARE_MAX, "short": 1}


def test_a_model_has_a_bounded_number_of_workers() -> None:
    scheduler = scheduler_with(
        *(task(f"t{i}") for i in range(PER_MODEL_MAX + 4)), task("other", models=("n",))
    )
    first = taken(scheduler)
    assert Counter(p.model for p in first) == {"m": PER_MODEL_MAX, "n": 1}
    done = next(p for p in first if p.model == "m")
    scheduler.done(done)
    scheduler.free(done)
    assert [p.model for p in taken(scheduler)] == ["m"]


def test_no_more_jobs_run_than_there_are_workers() -> None:
    models = [f"m{i}" for i in range(WORKERS + 4)]
    scheduler = scheduler_with(*(task("t", i, models=(m,)) for i, m in enumerate(models)))
    assert len(taken(scheduler)) == WORKERS


def test_a_job_of_several_models_is_ready_once_each_has_its_part() -> None:
    one = task("a", models=("m", "n"))
    scheduler = scheduler_with(one)
    m, n = sorted(taken(scheduler), key=lambda p: str(p.model))
    scheduler.done(m)
    assert scheduler.turn(one.source) is None
    scheduler.failed(n, 0.0, "gone")
    assert scheduler.failures(("a", "n")) is not None
    assert scheduler.failures(("a", "m")) is None
    scheduler.skip(one.source, frozenset({("n", 1)}))
    assert scheduler.turn(one.source) is one, "the rest of it is embedded"
    scheduler.free(n)
    scheduler.free(m)
    scheduler.written(one)
    assert taken(scheduler, 10.0) == []
    assert len(scheduler) == 0


def test_the_rest_of_a_part_is_queued_again() -> None:
    one = task("a")
    one.job.writes += task("a", models=("n",)).job.writes
    one.job.writes[-1] = Write(
        collection("n", "m"), "b", 0, 0, Document("n", "b", text="x"), one.job.writes[0].record
    )
    one = Task(one.job)
    scheduler = scheduler_with(one)
    [old] = taken(scheduler)
    [new] = scheduler.skip(one.source, frozenset({("m", 1)}))
    assert (old.over, new.over, new.needs_model) == (True, False, True)
    scheduler.offer(new)
    scheduler.done(old)
    scheduler.free(old)
    assert scheduler.turn(one.source) is None
    assert taken(scheduler) == [new]


def test_a_held_partition_is_not_written() -> None:
    one, two = task("a"), task("a", 1)
    scheduler = scheduler_with(one, two)
    for part in taken(scheduler):
        scheduler.done(part)
    assert scheduler.hold(one.source)
    assert scheduler.turn(one.source) is None
    scheduler.release(one.source)
    assert scheduler.turn(one.source) is one
    assert not scheduler.hold(one.source), "it is being written"


def test_discarded_jobs_are_neither_embedded_nor_written() -> None:
    tasks = [task("a") for _ in range(4)]
    scheduler = scheduler_with(*tasks)
    under_way = taken(scheduler)
    scheduler.discard(tasks[0].source)
    assert len(scheduler) == 0
    for part in under_way:
        assert part.over
        scheduler.failed(part, 0.0, "gone")
        scheduler.free(part)
    assert taken(scheduler, 10.0) == []
    assert scheduler.turn(tasks[0].source) is None


def test_waiting_tenants_are_served_by_weight_and_cost() -> None:
    """All workers are busy; free ones follow the turns: gold weighs four times bronze."""
    scheduler = scheduler_with(*(task(f"other{i}") for i in range(PER_MODEL_MAX)))
    free, served = taken(scheduler)[:2], Counter[str]()
    for name in ("gold", "bronze") * 3:
        for _ in range(100):
            scheduler.add(task(f"{name}{len(served)}", n=100, priority=name))
        served[f"{name}{len(served)}"] = 0
    for _ in range(90):
        one = free.pop(0)
        scheduler.done(one)
        scheduler.free(one)
        free += (more := taken(scheduler))
        served += names(more)
    gold = sum(n for name, n in served.items() if name.startswith("gold"))
    assert gold / (90 - gold) == pytest.approx(4, rel=0.25)


def test_a_job_whose_embedder_is_away_releases_its_worker_and_retries() -> None:
    tasks = task("a"), task("a")
    scheduler = scheduler_with(*tasks)
    first, second = map(only, tasks)
    assert taken(scheduler) == [first, second]
    assert scheduler.failed(first, 10.0, "gone") == 1
    scheduler.free(first)
    scheduler.failed(second, 10.0, "gone")
    scheduler.free(second)
    assert scheduler.working == 0
    assert scheduler.sleep_s(10.0) == pytest.approx(RETRY_S[0])
    assert taken(scheduler, 10.0) == []
    assert taken(scheduler, 10.1) == [first], "one at a time, until one succeeds"
    scheduler.done(first)
    scheduler.free(first)
    assert taken(scheduler, 11.0) == [second]


def test_waits_grow_until_a_try_succeeds() -> None:
    one, now = task("a"), 0.0
    part = only(one)
    scheduler = scheduler_with(one)
    for tries, wait_s in enumerate([*RETRY_S, RETRY_S[-1]], 1):
        assert taken(scheduler, now) == [part]
        assert scheduler.failed(part, now, f"try {tries}") == tries
        scheduler.free(part)
        assert scheduler.sleep_s(now) == pytest.approx(wait_s)
        known = scheduler.failures(part.share)
        assert known is not None
        assert (known.tries, known.since, known.reason) == (tries, 0.0, f"try {tries}")
        now += wait_s + 0.001


def test_all_jobs_whose_embedder_is_away_share_a_few_workers() -> None:
    scheduler = scheduler_with(*(task(f"t{i}") for i in range(PER_MODEL_MAX)))
    for one in taken(scheduler):
        scheduler.failed(one, 0.0, "gone")
        scheduler.free(one)
    for i in range(PER_MODEL_MAX):
        scheduler.add(task(f"well{i}"))
    found = names(taken(scheduler, 1.0))
    assert sum(n for name, n in found.items() if name.startswith("t")) == PROBES_MAX
    assert (
        sum(n for name, n in found.items() if name.startswith("well")) == PER_MODEL_MAX - PROBES_MAX
    )


def test_a_partitions_rows_are_written_by_the_worker_with_its_first_job() -> None:
    first, second, third = task("a"), task("a"), task("a")
    scheduler = scheduler_with(first, second, third)
    taken(scheduler)
    scheduler.done(only(second))
    assert scheduler.turn(first.source) is None
    scheduler.done(only(first))
    assert scheduler.turn(first.source) is first
    assert scheduler.turn(first.source) is None, "it is being written"
    scheduler.written(first)
    assert scheduler.turn(first.source) is second
    scheduler.written(second)
    assert scheduler.turn(first.source) is None
    assert scheduler.of(first.source) == len(scheduler) == 1


@given(st.integers(0, 2**32))
def test_jobs_that_end_in_any_order_are_written_once_in_partition_order(
    seed: int,
) -> None:
    rng = random.Random(seed)
    models = [("m",), ("n",), ("m", "n")]
    tasks = [
        task(f"t{rng.randrange(12)}", rng.randrange(2), models=rng.choice(models))
        for _ in range(rng.randrange(1, 60))
    ]
    come, written = defaultdict(list), defaultdict(list)
    scheduler, waiting, working, writing, now = Scheduler(), list(tasks), [], [], 0.0
    while waiting or len(scheduler):
        match rng.choice(["add", "take", "end", "write", "time"]):
            case "add" if waiting:
                come[waiting[0].job.tp].append(waiting[0])
                scheduler.add(waiting.pop(0))
            case "take" if (one := scheduler.take(now)) is not None:
                working.append(one)
            case "end" if working:
                one = working.pop(rng.randrange(len(working)))
                if rng.random() < 0.3:
                    scheduler.failed(one, now, "gone")
                else:
                    scheduler.done(one)
                    if (head := scheduler.turn(one.task.source)) is not None:
                        writing.append(head)
                scheduler.free(one)
            case "write" if writing:
                one = writing.pop(rng.randrange(len(writing)))
                written[one.job.tp].append(one)
                scheduler.written(one)
                if (head := scheduler.turn(one.job.tp)) is not None:
                    writing.append(head)
            case "time":
                now += rng.random()
        assert scheduler.working == len(working) <= WORKERS
        assert not working or max(Counter(p.share for p in working).values()) <= PER_SHARE_MAX
    assert written == come
