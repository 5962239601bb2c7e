"""Whose job is next, and whose rows may be written: decided without threads, clock or I/O."""

import random
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.jobs import Job, Write
from ingest.lines import OF_ONE_MAX, PROBES_MAX, RETRY_S, WORKERS, Lines, Task
from tenants.entities import Class, Tenant
from vicinage.records import Document


def task(name: str, partition: int = 0, *, n: int = 1, priority: Class = "silver") -> Task:
    """A job of `n` documents."""
    job = Job(Tenant(name, priority), (f"docs.{name}", partition), 0)
    unseen: Any = None
    job.writes = [Write(unseen, "a", 0, 0, Document("c", "a", text="x"), unseen)] * n
    return Task(job)


def lines_with(*tasks: Task) -> Lines:
    lines = Lines()
    for one in tasks:
        lines.add(one)
    return lines


def taken(lines: Lines, now: float = 0.0) -> list[Task]:
    """Everything that workers are given at once."""
    found = []
    while (one := lines.take(now)) is not None:
        found.append(one)
    return found


def names(tasks: list[Task]) -> Counter[str]:
    return Counter(t.job.tenant.name for t in tasks)


def test_a_backlog_has_two_workers_and_no_more() -> None:
    lines = lines_with(*(task("long") for _ in range(80)), task("short"))
    assert names(taken(lines)) == {"long": OF_ONE_MAX, "short": 1}


def test_workers_are_as_many_as_they_are() -> None:
    lines = lines_with(*(task(f"t{i}") for i in range(WORKERS + 4)))
    first = taken(lines)
    assert len(first) == WORKERS
    lines.done(first[0])
    lines.free(first[0])
    assert len(taken(lines)) == 1


def test_who_waits_is_served_by_weight_and_by_what_it_costs() -> None:
    """All workers are taken; the two that come free go to whose turn it is: gold weighs four times what bronze does."""
    lines = lines_with(*(task(f"other{i}") for i in range(WORKERS)))
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


def test_one_whose_embedder_is_away_gives_its_worker_back_and_comes_again() -> None:
    first, second = task("a"), task("a")
    lines = lines_with(first, second)
    assert taken(lines) == [first, second]
    assert lines.away(first, 10.0) == 1
    lines.free(first)
    lines.away(second, 10.0)
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
    lines = lines_with(one)
    for tries, wait_s in enumerate([*RETRY_S, RETRY_S[-1]], 1):
        assert taken(lines, now) == [one]
        assert lines.away(one, now) == tries
        lines.free(one)
        assert lines.sleep_s(now) == pytest.approx(wait_s)
        now += wait_s + 0.001


def test_all_whose_embedder_is_away_share_a_few_workers() -> None:
    lines = lines_with(*(task(f"t{i}") for i in range(WORKERS)))
    for one in taken(lines):
        lines.away(one, 0.0)
        lines.free(one)
    for i in range(WORKERS):
        lines.add(task(f"well{i}"))
    found = names(taken(lines, 1.0))
    assert sum(n for name, n in found.items() if name.startswith("t")) == PROBES_MAX
    assert sum(n for name, n in found.items() if name.startswith("well")) == WORKERS - PROBES_MAX


def test_a_partitions_rows_are_written_by_whoever_has_its_first() -> None:
    first, second, third = task("a"), task("a"), task("a")
    lines = lines_with(first, second, third)
    taken(lines)
    lines.done(second)
    assert lines.turn(first.job.tp) is None
    lines.done(first)
    assert lines.turn(first.job.tp) is first
    assert lines.turn(first.job.tp) is None, "it is being written"
    lines.written(first)
    assert lines.turn(first.job.tp) is second
    lines.written(second)
    assert lines.turn(first.job.tp) is None
    assert lines.of(first.job.tp) == len(lines) == 1


@given(st.integers(0, 2**32))
def test_in_whatever_order_jobs_end_each_is_written_once_and_in_its_partitions_order(seed: int) -> None:
    rng = random.Random(seed)
    tasks = [task(f"t{rng.randrange(12)}", rng.randrange(2)) for _ in range(rng.randrange(1, 60))]
    come, written = defaultdict(list), defaultdict(list)
    lines, waiting, working, writing, now = Lines(), list(tasks), [], [], 0.0
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
                    lines.away(one, now)
                else:
                    lines.done(one)
                    if (head := lines.turn(one.job.tp)) is not None:
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
        assert not working or max(names(working).values()) <= OF_ONE_MAX
    assert written == come
