"""Large bodies are parsed in a bounded process; a body that exceeds the bounds harms no other."""

import asyncio
import os
import time
from collections.abc import Iterator

import numpy as np
import orjson
import pytest

from ingest.preparing import Body, Prepared, prepare
from ingest.validation import DocumentLimits
from query.parsers import SMALL_BYTES, Parsers
from vicinage.errors import Overloaded, Refused, TooLarge, Unavailable
from vicinage.settings import IngestSettings
from vicinage.tenant_context import TenantContext

RULES = DocumentLimits("docs", 4, "cosine", takes_text=True, settings=IngestSettings())


def body(documents: list[dict[str, object]] | bytes, tenant: str = "acme") -> Body:
    data = documents if isinstance(documents, bytes) else orjson.dumps({"documents": documents})
    return Body("application/json", data, RULES, tenant, 3)


def large(n: int = 3_000, tenant: str = "acme") -> Body:
    made = body(
        [{"id": f"d{i}", "text": "x" * 80, "vector": [1, i, 0, 0]} for i in range(n)], tenant
    )
    assert len(made.data) > SMALL_BYTES
    return made


async def run(parsers: Parsers, sent: Body) -> Prepared:
    return await parsers.run(prepare, sent, len(sent.data), tenant=TenantContext(sent.tenant))


@pytest.fixture
def parsers() -> Iterator[Parsers]:
    made = Parsers(processes=1, parse_s=30, memory_bytes=2 << 30)
    yield made
    made.close()


def test_a_process_parses_like_a_thread(parsers: Parsers) -> None:
    assert asyncio.run(run(parsers, large())) == prepare(large())


def test_a_large_body_is_refused_like_a_small_one(parsers: Parsers) -> None:
    wrong = body(b'{"documents": [' + b"[]," * SMALL_BYTES + b"[]]}")
    with pytest.raises(Refused) as refused:
        asyncio.run(run(parsers, wrong))
    assert refused.value.field == "documents"


def test_the_event_loop_continues_while_a_body_is_parsed(parsers: Parsers) -> None:
    async def beats() -> tuple[Prepared, int]:
        parsing = asyncio.ensure_future(run(parsers, large(10_000)))
        n = 0
        while not parsing.done():
            await asyncio.sleep(0.001)
            n += 1
        return parsing.result(), n

    made, n = asyncio.run(beats())
    assert made.accepted == 10_000
    assert n > 10


def test_a_body_that_takes_too_long_is_refused_and_the_next_is_parsed() -> None:
    parsers = Parsers(processes=1, parse_s=0.001, memory_bytes=2 << 30)
    try:
        with pytest.raises(TooLarge) as refused:
            asyncio.run(run(parsers, large()))
        assert refused.value.field == "body"
        parsers._parse_s = 30
    finally:
        parsers.close()


def test_a_body_that_takes_too_much_memory_is_refused_and_the_next_is_parsed() -> None:
    parsers = Parsers(processes=1, parse_s=60, memory_bytes=256 << 20)
    try:
        numbers = b",".join([b"1.5"] * 7_500_000)
        with pytest.raises(TooLarge) as refused:
            asyncio.run(
                run(parsers, body(b'{"documents":[{"id":"a","vector":[' + numbers + b"]}]}"))
            )
        assert refused.value.limit == 256 << 20
        assert asyncio.run(run(parsers, large())).accepted == 3_000
    finally:
        parsers.close()


def test_a_worker_that_dies_is_restarted(parsers: Parsers) -> None:
    async def twice() -> int:
        await run(parsers, large())
        for child in children():
            os.kill(child, 9)
        await asyncio.sleep(0.1)
        return (await run(parsers, large())).accepted

    assert asyncio.run(twice()) == 3_000


def test_a_fault_of_a_parser_fails_its_request_alone(parsers: Parsers) -> None:
    async def both() -> tuple[object, int]:
        await parsers.run(abs, 1, 1, tenant=TenantContext("acme"))
        first = children()
        failed, made = await asyncio.gather(
            parsers.run(len, 1, 1, tenant=TenantContext("acme")),
            run(parsers, large()),
            return_exceptions=True,
        )
        assert children() == first, "the worker continues"
        return failed, made.accepted

    failed, accepted = asyncio.run(both())
    assert isinstance(failed, RuntimeError)
    assert "TypeError" in str(failed)
    assert accepted == 3_000


def test_a_body_waits_for_its_turn_within_a_deadline(
    parsers: Parsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crowded() -> tuple[object, object]:
        await parsers.run(abs, 1, 1, tenant=TenantContext("acme"))
        slow = asyncio.ensure_future(parsers.run(time.sleep, 1, 1, tenant=TenantContext("acme")))
        await asyncio.sleep(0.2)
        monkeypatch.setattr("query.parsers.WAIT_S", 0.1)
        with pytest.raises(Overloaded):
            await parsers.run(abs, 1, 1, tenant=TenantContext("globex"))
        return await slow, await parsers.run(abs, -1, 1, tenant=TenantContext("globex"))

    assert asyncio.run(crowded()) == (None, 1)


def test_tenants_take_turns(parsers: Parsers) -> None:
    async def order() -> list[str]:
        done: list[str] = []

        async def one(tenant: str) -> None:
            await run(parsers, large(tenant=tenant))
            done.append(tenant)

        await asyncio.gather(*(one("loud") for _ in range(6)), one("quiet"))
        return done

    assert "quiet" in asyncio.run(order())[:3]


def test_waiting_bodies_are_refused_when_the_gateway_stops(parsers: Parsers) -> None:
    async def stopped() -> list[object]:
        waiting = [asyncio.ensure_future(run(parsers, large(10_000))) for _ in range(4)]
        await asyncio.sleep(0)
        await asyncio.to_thread(parsers.close)
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(stopped())
    assert any(isinstance(f, Unavailable) for f in found)
    assert all(isinstance(f, Unavailable | Prepared) for f in found)
    assert not children()


def children() -> list[int]:
    import psutil

    return [
        c.pid for c in psutil.Process().children() if "query.parse_worker" in " ".join(c.cmdline())
    ]


def test_vectors_are_passed_on_unchanged(parsers: Parsers) -> None:
    from vicinage.wire import decode_documents

    made = asyncio.run(run(parsers, large()))
    [(_, values), *_] = made.records
    _, [batch] = decode_documents(values[0])
    assert np.linalg.norm(batch.column("vectors")[0].as_py()[0]) == pytest.approx(1)
