"""A model server that is dead, hangs or fails stops its own collections alone.

Other collections continue, even in the same partition.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from model_server import ModelServer
from resources import HashEmbedder, eventually, make_ingest, running

from ingest import dead_letters
from tenants import provisioning
from tenants.entities import Group, IngestLane, Tenant
from vicinage.log import Record
from vicinage.wire import decode_rows

DOCS = "vicinage.docs.acme"
TP = (DOCS, 0)


@pytest.fixture
def far() -> Iterator[ModelServer]:
    server = ModelServer("far")
    yield server
    server.stop()


@pytest.fixture
def acme(base, far) -> Tenant:
    """Three collections in one partition: own model, platform's model, given vectors."""
    base.registry.register_model(far.entry(), actor="test")
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    for name, given in (("far", {"model": "far"}), ("near", {}), ("flat", {"dimension": 3})):
        provisioning.create_collection(
            base.registry, base.log, "acme", name, slots_total=8, actor="test", **given
        )
    return tenant


def send(base, *documents: dict[str, Any]) -> int:
    return base.log.append(DOCS, 0, [Record(json.dumps(d).encode()) for d in documents])[-1]


def some(name: str) -> list[dict[str, Any]]:
    """Writes one document for each collection."""
    return [
        {"collection": "far", "id": name, "text": f"far {name}"},
        {"collection": "near", "id": name, "text": f"near {name}"},
        {"collection": "flat", "id": name, "vector": [1, 0, 0]},
    ]


def found(base) -> list[tuple[str, int, str]]:
    """Returns (collection, generation, ID) of every row.

    Rows of a generation are in the order of their versions in the log.
    """
    rows = []
    for slot in range(8):
        for stored in base.log.read("vicinage.vectors", slot, 0, bytes_max=1 << 30):
            message = decode_rows(stored.record.value)
            of = (message.collection, message.generation)
            rows += [
                (*of, r["document_id"]) for r in message.batch.drop_columns(["vector"]).to_pylist()
            ]
    return rows


def committed(base) -> int:
    return base.log.committed(Group.INGEST, [TP]).get(TP, 0)


def lanes(base) -> list[IngestLane]:
    return base.registry.lanes.every()


@pytest.mark.parametrize("how", ["dead", "hangs", "fails"])
def test_the_other_collections_of_the_partition_continue(base, acme, far, how) -> None:
    if how == "dead":
        far.stop()
    else:
        far.mode = how
    with running(base, indexing=False, by_model={"far": far.client()}):
        last = send(base, *some("a"), *some("b"))
        eventually(lambda: committed(base) == last + 1)
        assert {r[::2] for r in found(base)} == {
            ("near", "a"),
            ("flat", "a"),
            ("near", "b"),
            ("flat", "b"),
        }
        [lane] = lanes(base)
        assert (lane.collection, lane.model, lane.position) == ("far", "far", 0)
        assert committed(base) == send(base, *some("c"), *some("d")) - 5
        eventually(lambda: ("near", 1, "d") in found(base), wait_s=2)
        far.mode = "well"
        far.stop()
        far.start()
        eventually(lambda: lanes(base) == [])
        rows = found(base)
        assert [r[2] for r in rows if r[0] == "far"] == ["a", "b", "c", "d"]
        assert len(rows) == 12, "nothing is written twice"


def test_a_deleted_collection_is_released_within_a_second(base, acme, far) -> None:
    far.mode = "hangs"
    with running(base, indexing=False, by_model={"far": far.client()}):
        send(base, *some("a"))
        eventually(lambda: len(lanes(base)) == 1)
        base.registry.delete_collection("acme", "far", actor="test")
        eventually(lambda: lanes(base) == [], wait_s=2)
        last = send(base, *some("b"))
        eventually(lambda: committed(base) == last + 1, wait_s=2)
    assert [w["offset"] for w in dead_letters.read(base.log, acme)] == [3]


def test_a_collection_that_is_deleted_before_it_is_detached_is_released_too(
    base, acme, far
) -> None:
    far.stop()
    base.registry.delete_collection("acme", "near", actor="test")
    base.registry.delete_collection("acme", "flat", actor="test")
    ingest = make_ingest(base, by_model={"far": far.client()})
    send(base, {"collection": "far", "id": "a", "text": "x"})
    for _ in range(3):
        ingest.step(0.05)
    assert committed(base) == 0
    base.registry.delete_collection("acme", "far", actor="test")
    ingest.step(0.05)
    ingest.drain(2)
    assert committed(base) == 1
    assert found(base) == []


def test_a_generation_of_another_model_never_delays_the_live_one(base, acme, far) -> None:
    far.mode = "hangs"
    place = provisioning.placer(base.log, "acme", "near", 1, 8)
    base.registry.add_generation(
        "acme", "near", index="flat", model="far", dimension=8, place=place, actor="test"
    )
    near = HashEmbedder()
    with running(base, indexing=False, embedder=near, by_model={"far": far.client()}):
        last = send(base, *some("a")[1:])
        eventually(lambda: committed(base) == last + 1, wait_s=1.5)
        assert {r[:2] for r in found(base)} == {("near", 1), ("flat", 1)}
        [lane] = lanes(base)
        assert (lane.collection, lane.generation, lane.position) == ("near", 2, 0)
        base.registry.set_generation_state("acme", "near", 2, "failed", actor="test")
        eventually(lambda: lanes(base) == [], wait_s=2)


def test_a_generation_that_is_built_keeps_its_lane_until_it_is_live(base, acme, far) -> None:
    place = provisioning.placer(base.log, "acme", "near", 1, 8)
    base.registry.add_generation(
        "acme", "near", index="flat", model="far", dimension=8, place=place, actor="test"
    )
    with running(base, indexing=False, by_model={"far": far.client()}):
        send(base, *some("a")[1:], {"collection": "near", "id": "b", "text": "b"})
        eventually(
            lambda: (
                {r for r in found(base) if r[0] == "near"}
                == {("near", g, i) for g in (1, 2) for i in "ab"}
            )
        )
        eventually(lambda: [lane.position for lane in lanes(base)] == [3])
        base.registry.set_generation_state("acme", "near", 2, "ready", actor="test")
        base.registry.cut_over("acme", "near", 2, actor="test")
        eventually(lambda: lanes(base) == [])
        send(base, {"collection": "near", "id": "c", "text": "c"})
        eventually(lambda: ("near", 2, "c") in found(base))
        assert ("near", 1, "c") not in found(base)


def test_lanes_continue_after_a_restart(base, acme, far) -> None:
    far.stop()
    with running(base, indexing=False, by_model={"far": far.client()}):
        last = send(base, *some("a"))
        eventually(lambda: committed(base) == last + 1)
    assert len(lanes(base)) == 1
    send(base, *some("b"))
    with running(base, indexing=False, by_model={"far": far.client()}):
        eventually(lambda: ("near", 1, "b") in found(base))
        assert ("far", 1, "a") not in found(base)
        far.start()
        eventually(lambda: lanes(base) == [])
        assert [r[2] for r in found(base) if r[0] == "far"] == ["a", "b"]


def test_a_text_that_its_models_server_fails_on_is_one_dead_letter(base, acme, far) -> None:
    far.poison = "poison"
    texts = [f"text {i}" for i in range(20)]
    texts[7] = texts[13] = "a poison text"
    with running(base, indexing=False, by_model={"far": far.client()}):
        send(
            base,
            *({"collection": "far", "id": f"d{i}", "text": text} for i, text in enumerate(texts)),
        )
        eventually(lambda: len(found(base)) == 18, wait_s=30)
        eventually(lambda: lanes(base) == [] and committed(base) == 20)
    assert {r[2] for r in found(base)} == {f"d{i}" for i in range(20) if i not in (7, 13)}
    letters = dead_letters.read(base.log, acme)
    assert [letter["id"] for letter in letters] == ["d7", "d13"]
    assert all(
        "127.0.0.1" not in letter["reason"] and "CUDA" not in letter["reason"] for letter in letters
    )


def test_a_server_that_fails_on_everything_gives_up_no_document(base, acme, far) -> None:
    far.mode = "fails"
    with running(base, indexing=False, by_model={"far": far.client()}):
        send(base, *({"collection": "far", "id": f"d{i}", "text": f"text {i}"} for i in range(5)))
        eventually(lambda: len(far.calls) > 8, wait_s=30)
        assert dead_letters.read(base.log, acme) == []
        far.mode = "well"
        eventually(lambda: len(found(base)) == 5)
