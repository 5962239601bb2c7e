"""One tenant's slow client or slow searcher delays neither reads nor lists of other tenants."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from gate import Caller, build, platform, serving
from resources import eventually

from vicinage.settings import GatewaySettings


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with platform(
        tmp_path_factory.mktemp("bulkheads"), GatewaySettings(timeout_ms=3_000)
    ) as caller:
        yield caller


def reader(call: Caller) -> tuple[str, str]:
    """Creates a tenant with one searchable document; returns its name and key."""
    name, key = call.tenant()
    call.collection(key)
    token = call.write(key, [{"id": "a", "vector": [1, 0, 0, 0]}])
    call.search(key, vector=[1, 0, 0, 0], wait_for=token)
    return name, key


def test_slow_bodies_hold_no_turn(call: Caller) -> None:
    _, slow = call.tenant()
    _, key = reader(call)
    app = call.another()
    admission = app.state.gateway.pipeline.admission
    with serving(app) as url, ExitStack() as held:
        place = urlsplit(url)
        for action in ("replay", "purge") * 2:
            connection = held.enter_context(
                socket.create_connection((place.hostname, place.port), timeout=10)
            )
            connection.sendall(
                f"POST /v1/dead-letters:{action} HTTP/1.1\r\nhost: x\r\n"
                f"authorization: Bearer {slow}\r\n"
                "content-type: application/json\r\ncontent-length: 10\r\n\r\n{".encode()
            )
        eventually(lambda: admission.in_flight == 4)
        for path in ("/v1/collections", "/v1/collections/c/documents/a", "/v1/dead-letters"):
            found = httpx2.get(
                f"{url}{path}", headers={"authorization": f"Bearer {key}"}, trust_env=False
            )
            assert found.status_code == 200, found.text


class Stuck:
    """A searcher that never answers one tenant's reads of documents, but all else."""

    def __init__(self, searcher: Any, tenant: str) -> None:
        self._searcher, self._tenant = searcher, tenant
        self.waiting = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._searcher, name)

    async def document(self, shard: Any, document_id: str, deadline: Any) -> Any:
        if shard.tenant == self._tenant:
            self.waiting += 1
            await asyncio.sleep(deadline.left_s() + 1)
        return await self._searcher.document(shard, document_id, deadline)


def test_reads_that_a_searcher_leaves_waiting_hold_no_turn(call: Caller) -> None:
    name, stuck = reader(call)
    _, key = reader(call)
    searcher = Stuck(call.searcher, name)
    app = build(call.base, [searcher], call.state.settings)
    path = "/v1/collections/c/documents/a"
    with serving(app) as url:

        def read(with_key: str) -> int:
            headers = {"authorization": f"Bearer {with_key}"}
            return httpx2.get(
                f"{url}{path}", headers=headers, trust_env=False, timeout=20
            ).status_code

        threads = [threading.Thread(target=read, args=(stuck,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        eventually(lambda: searcher.waiting == 2)
        assert read(key) == 200
        assert searcher.waiting == 2, "the stuck reads still wait"
        for thread in threads:
            thread.join()
