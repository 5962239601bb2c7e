"""Dead letters over HTTP: shown completely, written again once the cause is fixed, and removed."""

from collections.abc import Iterator

import orjson
import pyarrow as pa
import pytest
from gate import Caller, platform, problem
from resources import eventually

from vicinage.log import Record
from vicinage.wire import ARROW


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with platform(tmp_path_factory.mktemp("letters")) as caller:
        yield caller


def send(
    call: Caller, tenant: str, value: bytes | None, key: bytes | None = None, **headers: str
) -> None:
    record = Record(
        value, key, tuple((name.replace("_", "-"), v.encode()) for name, v in headers.items())
    )
    call.base.log.append(f"vicinage.docs.{tenant}", 0, [record])


def letters(call: Caller, key: str, n: int) -> list[dict]:
    found: list[dict] = []

    def there() -> bool:
        found[:] = call("GET", "/v1/dead-letters", key).json()["letters"]
        return len(found) >= n

    eventually(there)
    return found


def test_a_letter_is_replayed_once_its_cause_is_fixed(call: Caller) -> None:
    name, key = call.tenant()
    document = {"collection": "late", "id": "a", "vector": [1, 0, 0, 0], "metadata": {"n": 1}}
    send(call, name, orjson.dumps(document), b"late/a")
    [letter] = letters(call, key, 1)
    assert "late" in letter["reason"]
    assert call("GET", f"/v1/dead-letters/{letter['position']}", key).json()["value_base64"]
    call.collection(key, "late")
    done = call("POST", "/v1/dead-letters:replay", key, json={}).json()
    assert (done["replayed"], done["skipped"]) == (1, 0)
    found = call.search(key, "late", vector=[1, 0, 0, 0], wait_for=done["token"])
    assert [h["document_id"] for h in found["hits"]] == ["a"]
    assert call("POST", "/v1/dead-letters:purge", key, json={"to": letter["position"]}).json() == {
        "purged": 1
    }
    assert call("GET", "/v1/dead-letters", key).json()["letters"] == []
    problem(call("GET", f"/v1/dead-letters/{letter['position']}", key), 404)


def test_a_replay_writes_only_the_rejected_documents_of_a_record(
    call: Caller,
) -> None:
    name, key = call.tenant()
    call.collection(key, "c")
    schema = pa.schema(
        [("id", pa.utf8()), ("vector", pa.list_(pa.float32(), 4)), ("metadata", pa.utf8())]
    )
    vectors = [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    rows = {"id": ["good", "zero", "other"], "vector": vectors, "metadata": [None] * 3}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table(rows, schema=schema))
    send(call, name, sink.getvalue().to_pybytes(), b"c/", content_type=ARROW)
    [letter] = letters(call, key, 1)
    assert letter["n_rejected"] == 1
    token = call.write(key, [{"id": "good", "vector": [0, 0, 1, 0]}])
    done = call.admin("POST", f"/tenants/{name}/dead-letters:replay", {}, status=202)
    assert done["replayed"] == 1
    again = letters(call, key, 2)
    assert (again[1]["n_rejected"], again[1]["id"]) == (1, "zero"), (
        "refused again, and nothing else was sent"
    )
    best = call.search(key, vector=[0, 0, 1, 0], k=1, wait_for=token)["hits"][0]
    assert (best["document_id"], best["score"]) == ("good", pytest.approx(1)), (
        "the newer version stays"
    )


def test_a_bad_request_is_refused_with_the_reason(call: Caller) -> None:
    name, key = call.tenant()
    problem(call("POST", "/v1/dead-letters:purge", key, json={}), 400, field="to")
    problem(call("POST", "/v1/dead-letters:replay", key, json={"from": -1}), 400, field="from")
    problem(call("GET", "/v1/dead-letters/x", key), 400, field="position")
    problem(call("GET", "/v1/dead-letters", call.operator), 403)
    assert call.admin("GET", f"/tenants/{name}/dead-letters") == {"letters": [], "next": None}
    call.admin("GET", "/tenants/absent/dead-letters", status=404)


def test_classes_and_objectives_change_while_the_platform_runs(call: Caller) -> None:
    name, key = call.tenant("bronze")
    assert call.admin("PATCH", f"/tenants/{name}", {"class": "gold"})["class"] == "gold"
    call.admin("PATCH", f"/tenants/{name}", {"class": "lead"}, status=400)
    call.collection(key, "c", objectives={"recall": 0.9, "latency_ms": 50})
    changed = call("PATCH", "/v1/collections/c", key, json={"objectives": {"recall": 0.99}}).json()
    assert changed["objectives"] == {"recall": 0.99, "freshness_ms": 1000, "latency_ms": 50}
    path = f"/tenants/{name}/collections/c"
    assert (
        call.admin("PATCH", path, {"objectives": {"latency_ms": 20}})["objectives"]["latency_ms"]
        == 20
    )
    problem(call("PATCH", "/v1/collections/c", key, json={}), 400, field="objectives")
    call.admin("DELETE", path, status=400)
    assert call.admin("DELETE", f"{path}?confirm=c") == {"deleted": "c"}
    for query in ("/freshness", "/recall", "/collections", "/keys"):
        call.admin("GET", f"{query}?tenant=absent", status=404)


def test_the_last_key_of_operators_is_not_revoked(call: Caller) -> None:
    made = call.admin("POST", "/keys", {"tenant": None, "scopes": ["operate"]}, status=201)
    assert call.admin("DELETE", f"/keys/{made['id']}")["revoked_ms"]
    alive = [k for k in call.admin("GET", "/keys") if k["tenant"] is None and not k["revoked_ms"]]
    assert "last key" in call.admin("DELETE", f"/keys/{alive[0]['id']}", status=409)["detail"]


@pytest.mark.parametrize("body", [{}, {"to": None}])
def test_a_purge_without_a_position_removes_nothing(call: Caller, body: dict[str, None]) -> None:
    name, key = call.tenant()
    call.base.log.append(call.base.registry.tenant(name).dead_topic, 0, [Record(b"{}")])
    for path in ("/v1/dead-letters:purge", f"/v1/admin/tenants/{name}/dead-letters:purge"):
        sender = call.operator if "admin" in path else key
        problem(call("POST", path, sender, json=body), 400, "refused", "to")
    assert len(call("GET", "/v1/dead-letters", key).json()["letters"]) == 1


@pytest.mark.parametrize("body", [{}, {"partitions": None}])
def test_a_growth_without_a_number_of_partitions_is_refused(
    call: Caller, body: dict[str, None]
) -> None:
    name, _ = call.tenant()
    path = f"/v1/admin/tenants/{name}/partitions"
    problem(call("POST", path, call.operator, json=body), 400, "refused", "partitions")
