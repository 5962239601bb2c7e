"""The order of jobs and of writes, decided without threads, clock or I/O."""

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.jobs import Job, Write
from ingest.scheduler import (
    OF_MODEL_MAX,
    OF_ONE_MAX,
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


def lines_with(*tasks: Task) -> Scheduler:
    lines = Scheduler()
    for one in tasks:
        lines.add(one)
    return lines


def taken(lines: Scheduler, now: float = 0.0) -> list[Part]:
    """Returns everything that workers are given at once."""
    found = []
    while (one := lines.take(now)) is not None:
        found.append(one)
    return found


def names(parts: list[Part]) -> Counter[str]:
    return Counter(p.task.job.tenant.name for p in parts)


def test_a_backlog_has_two_workers_and_no_more() -> None:
    lines = lines_with(*(task("long") for _ in range(80)), task("short"))
    assert names(taken(lines)) == {"long": OF_ONE_MAX, "short": 1}


def test_a_model_has_a_bounded_number_of_workers() -> None:
    lines = lines_with(
        *(task(f"t{i}") for i in range(OF_MODEL_MAX + 4)), task("other", models=("n",))
    )
    first = taken(lines)
    assert Counter(p.model for p in first) == {"m": OF_MODEL_MAX, "n": 1}
    done = next(p for p in first if p.model == "m")
    lines.done(done)
    lines.free(done)
    assert [p.model for p in taken(lines)] == ["m"]


def test_no_more_jobs_run_than_there_are_workers() -> None:
    models = [f"m{i}" for i in range(WORKERS + 4)]
    lines = lines_with(*(task("t", i, models=(m,)) for i, m in enumerate(models)))
    assert len(taken(lines)) == WORKERS


def test_a_job_of_several_models_is_ready_once_each_has_its_part() -> None:
    one = task("a", models=("m", "n"))
    lines = lines_with(one)
    m, n = sorted(taken(lines), key=lambda p: str(p.model))
    lines.done(m)
    assert lines.turn(one.line) is None
    lines.failed(n, 0.0, "gone")
    assert lines.away(("a", "n")) is not None
    assert lines.away(("a", "m")) is None
    lines.skip(one.line, frozenset({("n", 1)}))
    assert lines.turn(one.line) is one, "the rest of it is embedded"
    lines.free(n)
    lines.free(m)
    lines.written(one)
    assert taken(lines, 10.0) == []
    assert len(lines) == 0


def test_the_rest_of_a_part_is_queued_again() -> None:
    one = task("a")
    one.job.writes += task("a", models=("n",)).job.writes
    one.job.writes[-1] = Write(
        collection("n", "m"), "b", 0, 0, Document("n", "b", text="x"), one.job.writes[0].stored
    )
    one = Task(one.job)
    lines = lines_with(one)
    [old] = taken(lines)
    [new] = lines.skip(one.line, frozenset({("m", 1)}))
    assert (old.over, new.over, new.asks) == (True, False, True)
    lines.offer(new)
    lines.done(old)
    lines.free(old)
    assert lines.turn(one.line) is None
    assert taken(lines) == [new]


def test_a_held_partition_is_not_written() -> None:
    one, two = task("a"), task("a", 1)
    lines = lines_with(one, two)
    for part in taken(lines):
        lines.done(part)
    assert lines.hold(one.line)
    assert lines.turn(one.line) is None
    lines.release(one.line)
    assert lines.turn(one.line) is one
    assert not lines.hold(one.line), "it is being written"


def test_discarded_jobs_are_neither_embedded_nor_written() -> None:
    tasks = [task("a") for _ in range(4)]
    lines = lines_with(*tasks)
    under_way = taken(lines)
    lines.discard(tasks[0].line)
    assert len(lines) == 0
    for part in under_way:
        assert part.over
        lines.failed(part, 0.0, "gone")
        lines.free(part)
    assert taken(lines, 10.0) == []
    assert lines.turn(tasks[0].line) is None


def test_waiting_tenants_are_served_by_weight_and_cost() -> None:
    """All workers are busy; free ones follow the turns: gold weighs four times bronze."""
    lines = lines_with(*(task(f"other{i}") for i in range(OF_MODEL_MAX)))
    free, served = taken(lines)[:2], Counter[str]()
    for name in ("gold", "bronze") * 3:
        for _ in range(100):
            lines.add(task(f"{name}{len(served)}", n=100, priority=name))
        served[f"{name}{len(served)}"] = 0
    for _ in range(90):
        one = free.pop(0)
        lines.done(one)
        lines.free(one)
        free += (more := taken(lines))
        served += names(more)
    gold = sum(n for name, n in served.items() if name.startswith("gold"))
    assert gold / (90 - gold) == pytest.approx(4, rel=0.25)


def test_a_job_whose_embedder_is_away_releases_its_worker_and_retries() -> None:
    tasks = task("a"), task("a")
    lines = lines_with(*tasks)
    first, second = map(only, tasks)
    assert taken(lines) == [first, second]
    assert lines.failed(first, 10.0, "gone") == 1
    lines.free(first)
    lines.failed(second, 10.0, "gone")
    lines.free(second)
    assert lines.working == 0
    assert lines.sleep_s(10.0) == pytest.approx(RETRY_S[0])
    assert taken(lines, 10.0) == []
    assert taken(lines, 10.1) == [first], "one at a time, until one succeeds"
    lines.done(first)
    lines.free(first)
    assert taken(lines, 11.0) == [second]


def test_waits_grow_until_a_try_succeeds() -> None:
    one, now = task("a"), 0.0
    part = only(one)
    lines = lines_with(one)
    for tries, wait_s in enumerate([*RETRY_S, RETRY_S[-1]], 1):
        assert taken(lines, now) == [part]
        assert lines.failed(part, now, f"try {tries}") == tries
        lines.free(part)
        assert lines.sleep_s(now) == pytest.approx(wait_s)
        known = lines.away(part.share)
        assert known is not None
        assert (known.tries, known.since, known.reason) == (tries, 0.0, f"try {tries}")
        now += wait_s + 0.001


def test_all_jobs_whose_embedder_is_away_share_a_few_workers() -> None:
    lines = lines_with(*(task(f"t{i}") for i in range(OF_MODEL_MAX)))
    for one in taken(lines):
        lines.failed(one, 0.0, "gone")
        lines.free(one)
    for i in range(OF_MODEL_MAX):
        lines.add(task(f"well{i}"))
    found = names(taken(lines, 1.0))
    assert sum(n for name, n in found.items() if name.startswith("t")) == PROBES_MAX
    assert (
        sum(n for name, n in found.items() if name.startswith("well")) == OF_MODEL_MAX - PROBES_MAX
    )


def test_a_partitions_rows_are_written_by_the_worker_with_its_first_job() -> None:
    first, second, third = task("a"), task("a"), task("a")
    lines = lines_with(first, second, third)
    taken(lines)
    lines.done(only(second))
    assert lines.turn(first.line) is None
    lines.done(only(first))
    assert lines.turn(first.line) is first
    assert lines.turn(first.line) is None, "it is being written"
    lines.written(first)
    assert lines.turn(first.line) is second
    lines.written(second)
    assert lines.turn(first.line) is None
    assert lines.of(first.line) == len(lines) == 1


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
    lines, waiting, working, writing, now = Scheduler(), list(tasks), [], [], 0.0
    while waiting or len(lines):
        match rng.choice(["add", "take", "end", "write", "time"]):
            case "add" if waiting:
                come[waiting[0].job.tp].append(waiting[0])
                lines.add(waiting.pop(0))
            case "take" if (one := lines.take(now)) is not None:
                working.append(one)
            case "end" if working:
                one = working.pop(rng.randrange(len(working)))
                if rng.random() < 0.3:
                    lines.failed(one, now, "gone")
                else:
                    lines.done(one)
                    if (head := lines.turn(one.task.line)) is not None:
                        writing.append(head)
                lines.free(one)
            case "write" if writing:
                one = writing.pop(rng.randrange(len(writing)))
                written[one.job.tp].append(one)
                lines.written(one)
                if (head := lines.turn(one.job.tp)) is not None:
                    writing.append(head)
            case "time":
                now += rng.random()
        assert lines.working == len(working) <= WORKERS
        assert not working or max(Counter(p.share for p in working).values()) <= OF_ONE_MAX
    assert written == come
