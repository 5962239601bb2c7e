"""Deletions by filter: evaluated over all acknowledged writes, bound to their versions."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from resources import eventually, make_ingest, resources_in

import query.judge
from cluster.wiring import Resources, build_searcher
from ingest import intake
from ingest.documents import parse_json
from ingest.validation import DocumentLimits
from query.judge import Judge, Judged
from query.scatter import Searchers
from tenants import provisioning
from tenants.entities import Group, Tenant
from vicinage.clock import Deadline
from vicinage.errors import Refused, Unavailable
from vicinage.log import Record
from vicinage.records import Position, Token
from vicinage.routing import home_of

pytestmark = pytest.mark.timeout(600)

WAIT_S = 20.0


class Platform:
    """A tenant with one collection of two shards, whose ingest runs on demand."""

    def __init__(self, base: Resources, *, partitions: int = 1) -> None:
        self.base = base
        self.tenant: Tenant = provisioning.create_tenant(
            base.registry, base.log, "acme", partitions=partitions, actor="test"
        )
        provisioning.create_collection(
            base.registry,
            base.log,
            "acme",
            "docs",
            dimension=3,
            shards=2,
            slots_total=8,
            actor="test",
        )
        self.partitions = partitions
        self.searcher = build_searcher(base)
        self.searcher.start()
        self.judge = Judge(
            base.log, base.registry, Searchers([self.searcher]), base.settings.ingest, 100
        )

    def post(self, **colors: str) -> Token:
        """Writes documents of a color each, by the gateway."""
        collection = self.base.registry.collection("acme", "docs")
        rules = DocumentLimits.of(collection, self.base.settings.ingest)
        bodies = [
            {"id": i, "vector": [1, 0, 0], "metadata": {"color": c}} for i, c in colors.items()
        ]
        entries = [parse_json(body, rules, tenant="acme") for body in bodies]
        token = intake.accept(self.base.log, self.tenant, collection, entries, now_ms=1).token
        assert token is not None
        return token

    def produce(self, name: str, color: str | None) -> Token:
        """Writes a document, or its deletion, by the tenant's own producer."""
        body = {"collection": "docs", "id": name, "vector": [1, 0, 0], "metadata": {"color": color}}
        record = Record(
            json.dumps(body).encode() if color else None, f"docs/{name}".encode(), event_time_ms=1
        )
        home = home_of("docs", name, self.partitions)
        return Token(
            (Position(home, self.base.log.append("vicinage.docs.acme", home, [record])[0]),)
        )

    def ingest(self) -> None:
        ingest = make_ingest(self.base)
        while ingest.step():
            ingest.drain()
        ingest._partitions.reader.close()

    def passing(self, color: str, wait_for: Token | None = None) -> Judged:
        return asyncio.run(
            self.judge.judge(
                self.tenant,
                self.base.registry.collection("acme", "docs"),
                {"color": color},
                wait_for,
                Deadline.after(WAIT_S),
            )
        )

    def delete(self, color: str) -> Judged:
        judged = self.passing(color)
        self.append(judged)
        return judged

    def append(self, judged: Judged) -> None:
        if judged.passed:
            intake.delete(
                self.base.log,
                self.tenant,
                judged.collection,
                judged.passed,
                judged=judged.passed,
                now_ms=1,
            )

    def contents(self) -> dict[str, str]:
        """Returns ID → color of what is searchable once everything is ingested."""
        self.ingest()
        return {name: color for color in ("red", "blue") for name in self.passing(color).passed}

    def close(self) -> None:
        self.searcher.stop()


@pytest.fixture
def platform(base) -> Iterator[Platform]:
    made = Platform(base)
    yield made
    made.close()


def test_writes_newer_than_the_snapshot_decide(platform: Platform) -> None:
    platform.post(a="red", b="red", c="blue", d="red")
    platform.ingest()
    platform.post(b="blue", c="red", e="red")
    platform.produce("d", None)
    judged = platform.delete("red")
    assert sorted(judged.passed) == ["a", "c", "e"], (
        "b has changed, d is deleted, c and e are not searchable yet"
    )
    assert str(judged.token) == "0-2", "the last position that was evaluated"
    assert platform.contents() == {"b": "blue"}


def test_a_document_written_after_the_evaluation_is_spared(platform: Platform) -> None:
    platform.post(a="red", b="red")
    platform.ingest()
    judged = platform.passing("red")
    platform.post(b="red")
    platform.append(judged)
    assert platform.contents() == {"b": "red"}


def test_a_deletion_that_is_delivered_again_changes_nothing(platform: Platform) -> None:
    platform.post(a="red", b="red")
    judged = platform.delete("red")
    platform.post(a="red")
    platform.append(judged)
    assert platform.contents() == {"a": "red"}


@pytest.mark.parametrize("detached", [False, True])
def test_text_that_waits_for_the_embedder_is_covered(base, detached) -> None:
    class Away:
        def embed(self, *_: Any, **__: Any) -> Any:
            raise Unavailable("the embedder is away", dependency="embedder")

    tenant = provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    made = provisioning.create_collection(
        base.registry, base.log, "acme", "docs", slots_total=8, actor="test"
    )
    rules = DocumentLimits.of(made, base.settings.ingest)
    body = {"id": "a", "text": "some words", "metadata": {"color": "red"}}
    token = intake.accept(
        base.log, tenant, made, [parse_json(body, rules, tenant="acme")], now_ms=1
    ).token
    ingest = make_ingest(base, Away())
    ingest.step()
    if detached:
        eventually(lambda: ingest.step(0.05) == 0 and base.registry.lanes.every())
        eventually(
            lambda: (
                ingest.step(0.05) == 0
                and base.log.committed(Group.INGEST, [("vicinage.docs.acme", 0)])
            )
        )
    searcher = build_searcher(base)
    searcher.start()
    judge = Judge(base.log, base.registry, Searchers([searcher]), base.settings.ingest, 100)
    try:
        found = asyncio.run(
            judge.judge(tenant, made, {"color": "red"}, token, Deadline.after(WAIT_S))
        )
        assert found.passed == {"a": 0}
    finally:
        ingest.stop()
        searcher.stop()


def test_a_backlog_too_long_to_evaluate_deletes_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.post(a="red")
    monkeypatch.setattr(query.judge, "BACKLOG_BYTES_MAX", 100)
    with pytest.raises(Unavailable, match="nothing was deleted"):
        platform.passing("red")
    platform.ingest()
    assert platform.passing("red").passed == {"a": 0}


def test_too_many_documents_and_positions_of_no_write_are_refused(platform: Platform) -> None:
    platform.post(**{f"d{i}": "red" for i in range(101)})
    with pytest.raises(Refused, match="more than 100"):
        platform.passing("red")
    platform.ingest()
    with pytest.raises(Refused, match="more than 100"):
        platform.passing("red")
    with pytest.raises(Refused, match="no write has"):
        platform.passing("blue", Token((Position(0, 7),)))


class Deletions(RuleBasedStateMachine):
    """Writes over HTTP and Kafka, deletions by filter and ingest, in any order.

    The result follows from the order of requests.
    """

    names = st.sampled_from("abcdef")
    colors = st.sampled_from(["red", "blue"])

    @initialize(partitions=st.sampled_from([1, 3]))
    def begin(self, partitions: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vicinage-test-"))
        self.platform = Platform(resources_in(self.folder), partitions=partitions)
        self.model: dict[str, str] = {}
        self.late: list[Judged] = []

    @rule(name=names, color=colors)
    def post(self, name: str, color: str) -> None:
        self.platform.post(**{name: color})
        self.model[name] = color

    @rule(name=names, color=colors)
    def produce(self, name: str, color: str) -> None:
        self.platform.produce(name, color)
        self.model[name] = color

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.platform.produce(name, None)
        self.model.pop(name, None)

    @rule(color=colors)
    def delete_by_filter(self, color: str) -> None:
        judged = self.platform.delete(color)
        assert sorted(judged.passed) == sorted(n for n, c in self.model.items() if c == color)
        self.model = {n: c for n, c in self.model.items() if c != color}
        self.late.append(judged)

    @rule()
    def deliver_deletions_again(self) -> None:
        """The current content is newer than each of them: they are of deleted documents."""
        for judged in self.late:
            self.platform.append(judged)

    @rule()
    def ingest(self) -> None:
        self.platform.ingest()

    @rule()
    def compare(self) -> None:
        assert self.platform.contents() == self.model

    def teardown(self) -> None:
        assert self.platform.contents() == self.model
        self.platform.close()
        self.platform.base.close()
        shutil.rmtree(self.folder)


Deletions.TestCase.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestDeletions = Deletions.TestCase
