"""Large answers: complete, charged to their tenant until read; lists read the log once."""

import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
import pytest
from gate import Caller, platform, problem, serving
from resources import eventually

from query.quality.lag_reader import LagReader
from tenants import provisioning
from vicinage.settings import GatewaySettings

N = 2_000


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    gateway = GatewaySettings(timeout_ms=20_000, answers_bytes_max=32 << 20)
    with platform(tmp_path_factory.mktemp("large"), gateway) as caller:
        yield caller


@pytest.fixture(scope="module")
def key(call: Caller) -> str:
    made = call.tenant()[1]
    call.collection(made)
    passages = [f"passage {i} " + "\x01" * 480 for i in range(N)]  # six bytes each in JSON
    call.write(
        made, [{"id": "large", "passages": passages, "vectors": [[1, i, 0, 0] for i in range(N)]}]
    )
    token = call.write(made, [{"id": "small", "vector": [1, 0, 0, 0]}])
    call.search(made, vector=[1, 0, 0, 0], wait_for=token)
    return made


def test_a_document_of_many_passages_is_returned_completely(call: Caller, key: str) -> None:
    app = call.another()
    with serving(app) as url:
        found = httpx2.get(
            f"{url}/v1/collections/c/documents/large",
            headers={"authorization": f"Bearer {key}"},
            trust_env=False,
        )
    body = orjson.loads(found.content)
    assert int(found.headers["content-length"]) == len(found.content) > 5 << 20
    assert [p["passage"] for p in body["passages"]] == list(range(N))
    assert body["passages"][7]["text"].startswith("passage 7 ")
    assert app.state.gateway.pipeline.admission.answers_bytes == 0


def test_unread_answers_are_charged_to_their_tenant(call: Caller, key: str) -> None:
    _, neighbor = call.tenant()
    call.collection(neighbor)
    app = call.another()
    admission = app.state.gateway.pipeline.admission
    request = (
        "GET /v1/collections/c/documents/large HTTP/1.1\r\nhost: x\r\n"
        f"authorization: Bearer {key}\r\n\r\n"
    ).encode()
    with serving(app) as url:
        place = urlsplit(url)
        held = [
            socket.create_connection((place.hostname, place.port), timeout=10) for _ in range(24)
        ]
        try:
            for connection in held:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.sendall(request)
            eventually(lambda: admission.answers_bytes > 12 << 20)
            eventually(lambda: admission.in_flight == 0)
            assert admission.answers_bytes <= 32 << 20
            refused = sum(c.recv(12) == b"HTTP/1.1 429" for c in held)
            assert refused > 10
            path = f"{url}/v1/collections/c"
            theirs = httpx2.get(
                path, headers={"authorization": f"Bearer {neighbor}"}, trust_env=False
            )
            assert theirs.status_code == 200
            mine = httpx2.get(
                f"{path}/documents/large",
                headers={"authorization": f"Bearer {key}"},
                trust_env=False,
            )
            problem(mine, 429, "overloaded")
        finally:
            for connection in held:
                connection.close()
        eventually(lambda: admission.answers_bytes == 0)
    assert call("GET", "/v1/collections/c/documents/large", key).status_code == 200


class Counted:
    """The log, with a count of the calls of each method."""

    def __init__(self, log: Any) -> None:
        self._log, self.calls = log, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)

        def called(*given: Any, **named: Any) -> Any:
            self.calls[name] += 1
            return found(*given, **named)

        return called


def test_a_list_of_collections_reads_the_log_as_often_as_one_collection(call: Caller) -> None:
    name, key = call.tenant()
    for i in range(40):
        provisioning.create_collection(
            call.base.registry,
            call.base.log,
            name,
            f"c{i:02d}",
            dimension=4,
            slots_total=8,
            actor="test",
        )
    found = call("GET", "/v1/collections", key).json()["collections"]
    assert [c["name"] for c in found] == [f"c{i:02d}" for i in range(40)]
    assert {c["freshness"]["lag_ms"] for c in found} == {0}
    tenant = call.base.registry.tenant(name)
    generations = [c.generation() for c in call.base.registry.collections(name)]
    log = Counted(call.base.log)
    reader = LagReader(log, call.base.registry, call.base.clock)  # type: ignore[arg-type]
    watermarks = {slot: 0 for g in generations for slot in g.slots}
    many = reader.lags_ms(tenant, generations, watermarks)
    calls = log.calls.total()
    assert calls <= 4 + 2 * len(watermarks)
    assert many == [reader.lag_ms(tenant, g, dict.fromkeys(g.slots, 0)) for g in generations]
