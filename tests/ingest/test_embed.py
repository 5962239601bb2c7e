"""A document that a model's server refuses is one dead letter; each model has its own vectors."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from resources import HashEmbedder, WordChunker, eventually, hash_vector, make_ingest

from ingest import dead_letters
from ingest.documents import parse_json
from ingest.validation import DocumentLimits
from tenants import provisioning
from tenants.entities import Group, Tenant
from vicinage.clock import ManualClock
from vicinage.errors import DeadlineExceeded, Refused, Unavailable
from vicinage.log import Record
from vicinage.records import Floats, Rejected
from vicinage.tenant_context import TenantContext
from vicinage.wire import decode_rows, vectors_of

DOCS = "vicinage.docs.acme"
MOVING = (
    "the collection is being moved to another model: send text with the vectors until that is done"
)


@dataclass
class Picky(HashEmbedder):
    """A server that refuses calls with certain words.

    It may name the number of the text, or refuse more than a given number of texts at once.
    """

    words: tuple[str, ...] = ()
    names: bool = False
    most: int = 1_000
    calls: list[list[str]] = field(default_factory=list)
    dimension: int = 384

    def embed(self, texts: Sequence[str], *, tenant: TenantContext, **given: Any) -> Floats:
        self.calls.append(list(texts))
        for i, text in enumerate(texts):
            if any(word in text for word in self.words):
                raise Refused("bad words", field=f"input.{i}" if self.names else "text")
        if len(texts) > self.most:
            raise Refused(f"at most {self.most} texts")
        return super().embed(texts, tenant=tenant, **given)


@pytest.fixture
def acme(base) -> Tenant:
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    provisioning.create_collection(
        base.registry, base.log, "acme", "docs", slots_total=8, actor="test"
    )
    return tenant


def send(base, *documents: dict[str, Any]) -> None:
    base.log.append(
        DOCS, 0, [Record(json.dumps({"collection": "docs", **d}).encode()) for d in documents]
    )


def work(base, model: HashEmbedder) -> None:
    ingest = make_ingest(base, model)
    while ingest.step(0.1):
        ingest.drain()


def written(base) -> dict[tuple[str, int, int], Floats]:
    """Returns (document, generation, passage) → vector."""
    found = {}
    for slot in range(8):
        for stored in base.log.read("vicinage.vectors", slot, 0, bytes_max=1 << 30):
            message = decode_rows(stored.record.value)
            names, numbers = message.batch.column("document_id"), message.batch.column("passage")
            for name, number, vector in zip(
                names.to_pylist(), numbers.to_pylist(), vectors_of(message.batch), strict=True
            ):
                found[name, message.generation, number] = vector
    return found


def texts(n: int, **bad: str) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "text": bad.get(f"d{i}", f"text {i}")} for i in range(n)]


@pytest.mark.parametrize("names", [True, False])
def test_a_document_that_the_server_refuses_is_one_dead_letter(base, acme, names) -> None:
    send(base, *texts(100, d7="a bad word", d70="another bad word"))
    model = Picky(words=("bad",), names=names)
    work(base, model)
    found = written(base)
    assert {name for name, _, _ in found} == {f"d{i}" for i in range(100) if i not in (7, 70)}
    assert all(
        np.array_equal(v, hash_vector(f"text {name[1:]}", 384)) for (name, _, _), v in found.items()
    )
    letters = dead_letters.read(base.log, acme)
    assert [(w["id"], w["offset"], w["field"], w["collection"]) for w in letters] == [
        ("d7", 7, "text", "docs"),
        ("d70", 70, "text", "docs"),
    ]
    assert all("bad words" in w["reason"] for w in letters)
    assert base.log.committed(Group.INGEST, [(DOCS, 0)]) == {(DOCS, 0): 100}
    assert len(model.calls) < 40, "found by halves or by name, not one by one"


def test_one_refused_passage_refuses_its_whole_document(base, acme) -> None:
    long = " ".join(f"w{i}" for i in range(300))
    send(base, {"id": "long", "text": f"{long} bad {long}"}, {"id": "short", "text": "good"})
    work(base, Picky(words=("bad",)))
    assert {name for name, _, _ in written(base)} == {"short"}
    assert [w["id"] for w in dead_letters.read(base.log, acme)] == ["long"]


def test_a_server_that_refuses_many_texts_at_once_gets_fewer(base, acme) -> None:
    send(base, *texts(50))
    work(base, Picky(most=8))
    assert len(written(base)) == 50
    assert dead_letters.read(base.log, acme) == []


def test_a_server_that_refuses_everything_counts_as_away_and_no_document_is_lost(
    base, acme
) -> None:
    send(base, *texts(20, d3="bad"))
    model = Picky(words=("",))
    ingest = make_ingest(base, model)
    for _ in range(8):
        ingest.step(0.05)
    assert 0 < len(model.calls) < 60
    assert written(base) == {}
    assert dead_letters.read(base.log, acme) == []
    model.words = ("bad",)
    ingest.drain()
    assert len(written(base)) == 19
    assert [w["id"] for w in dead_letters.read(base.log, acme)] == ["d3"]


@dataclass
class Slow(HashEmbedder):
    """Makes `per_s` vectors a second, and loses a call that takes a minute."""

    clock: ManualClock = field(default_factory=ManualClock)
    per_s: float = 5.0
    calls: list[int] = field(default_factory=list)
    busy: int = 0
    dimension: int = 384

    def embed(self, texts: Sequence[str], *, tenant: TenantContext, **given: Any) -> Floats:
        self.calls.append(len(texts))
        self.busy += 1
        try:
            self.clock.advance(min(60.0, len(texts) / self.per_s))
            if len(texts) / self.per_s >= 60:
                raise DeadlineExceeded("the text was not embedded in time", dependency="embedder")
            return super().embed(texts, tenant=tenant, **given)
        finally:
            self.busy -= 1


def test_a_slow_model_gets_smaller_calls_until_it_answers_in_time(base, acme) -> None:
    """With a fixed call size, a slow machine would lose each call and make no progress."""
    clock = ManualClock()
    model = Slow(clock=clock)
    ingest = make_ingest(replace(base, clock=clock), model)

    def come_through(n: int) -> None:
        def all_written() -> bool:
            ingest.step(0.01)
            if not model.busy:  # else the calls in flight would seem slower than they are
                clock.advance(2)
            return base.log.committed(Group.INGEST, [(DOCS, 0)]).get((DOCS, 0)) == n

        eventually(all_written)

    send(base, *texts(1_000))
    come_through(1_000)
    assert model.calls[0] >= 488, "whichever of the two jobs is first, completely"
    assert max(model.calls[6:]) <= 75, "of 15 s at most, once its speed is known"
    model.per_s, slow = 1_000, len(model.calls)
    send(base, *texts(2_000))
    come_through(3_000)
    assert max(model.calls[slow:]) >= 200, "and larger again once it is faster"


def move(base) -> None:
    place = provisioning.placer(base.log, "acme", "docs", 1, 8)
    base.registry.add_generation(
        "acme", "docs", index="flat", model="other", dimension=384, place=place, actor="test"
    )


def test_vectors_of_the_live_model_do_not_enter_a_generation_of_another(base, acme) -> None:
    move(base)
    own = [0.0] * 383 + [1.0]
    text = " ".join(f"w{i}" for i in range(60))
    send(
        base,
        {"id": "a", "text": text, "vector": own},
        {"id": "b", "passages": ["x", "y"], "vectors": [own, own]},
    )
    work(base, HashEmbedder())
    found = written(base)
    assert [i for i, (name, g, _) in enumerate(found) if (name, g) == ("a", 1)] == [0]
    assert np.array_equal(found["a", 1, 0], own)
    cut = [hash_vector(p.text, 384) for p in WordChunker().chunk(text)]
    assert np.array_equal([found["a", 2, i] for i in range(2)], cut)
    assert np.array_equal([found["b", 1, i] for i in range(2)], [own, own])
    assert np.array_equal(
        [found["b", 2, i] for i in range(2)], [hash_vector("x", 384), hash_vector("y", 384)]
    )


def test_vectors_alone_are_refused_during_a_change_of_model(base, acme) -> None:
    move(base)
    send(base, {"id": "a", "vector": [1.0] * 384}, {"id": "b", "text": "x"})
    work(base, HashEmbedder())
    assert {name for name, _, _ in written(base)} == {"b"}
    [letter] = dead_letters.read(base.log, acme)
    assert (letter["id"], letter["field"], letter["reason"]) == ("a", "text", f"text: {MOVING}")
    rules = DocumentLimits.of(base.registry.collection("acme", "docs"), base.settings.ingest)
    posted = parse_json({"id": "a", "vector": [1.0] * 384}, rules, tenant="acme")
    assert isinstance(posted, Rejected)
    assert MOVING in posted.reason


def standing(base) -> dict[str, tuple[int, str | None]]:
    """Returns each document's highest version in the vectors log, and its first passage there.

    The passage is None if the document is deleted.
    """
    found: dict[str, tuple[int, str | None]] = {}
    [generation] = base.registry.collection("acme", "docs").generations
    for stored in base.log.read("vicinage.vectors", generation.slots[0], generation.starts[0]):
        for row in (
            decode_rows(stored.record.value)
            .batch.select(["document_id", "version", "text"])
            .to_pylist()
        ):
            found[row["document_id"]] = max(
                found.get(row["document_id"], (-1, None)), (row["version"], row["text"])
            )
    return found


def test_a_refused_last_write_leaves_the_one_before_it(base, acme) -> None:
    send(base, {"id": "x", "text": "first"}, {"id": "y", "text": "first"})
    work(base, Picky())
    send(base, {"id": "x", "text": "second"})
    base.log.append(DOCS, 0, [Record(None, b"docs/y")])
    send(base, {"id": "x", "text": "poison"}, {"id": "y", "text": "poison"})
    work(base, Picky(words=("poison",)))
    assert {name: text for name, (_, text) in standing(base).items()} == {"x": "second", "y": None}
    assert sorted(letter["id"] for letter in dead_letters.read(base.log, acme)) == ["x", "y"]


def test_a_deletion_of_an_id_that_no_document_can_have_is_a_dead_letter(base, acme) -> None:
    base.log.append(DOCS, 0, [Record(None, b"docs/" + b"a" * 10_000), Record(None, b"docs/a\x01b")])
    work(base, Picky())
    assert standing(base) == {}
    assert [letter["field"] for letter in dead_letters.read(base.log, acme)] == ["key", "key"]


def test_a_tenant_that_is_suspended_and_back_while_its_work_waits_is_read_once(base, acme) -> None:
    model, clock_s = Away(), 0.2
    ingest = make_ingest(base, model)
    send(base, {"id": "x", "text": "one"})
    for _ in range(3):
        ingest.step(0.05)
    base.registry.suspend_tenant("acme", actor="test")
    for _ in range(4):
        ingest.step(clock_s)
    base.registry.resume_tenant("acme", actor="test")
    for _ in range(4):
        ingest.step(clock_s)
    model.away = False
    send(base, {"id": "y", "text": "two"})
    end = time.monotonic() + 20
    while base.log.committed(Group.INGEST, [(DOCS, 0)]).get((DOCS, 0)) != 2:
        assert time.monotonic() < end
        ingest.step(0.05)
    assert set(standing(base)) == {"x", "y"}
    [generation] = base.registry.collection("acme", "docs").generations
    assert len(base.log.read("vicinage.vectors", generation.slots[0], generation.starts[0])) == 2


class Away(HashEmbedder):
    """An embedder that is away until told otherwise."""

    away = True

    def embed(self, texts: Sequence[str], *, tenant: TenantContext, **given: Any) -> Floats:
        if self.away:
            raise Unavailable("away", dependency="embedder")
        return super().embed(texts, tenant=tenant, **given)
