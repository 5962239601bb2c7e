"""Clients of embedding servers: requests, unexpected answers, and combined search texts."""

import asyncio
import base64
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from resources import eventually, hash_vector
from servers import free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ingest.embedding import Lane, open_embedder
from ingest.embedding.calibration import Trial, choose
from ingest.embedding.query_batching import BATCH_MAX, CALLS_MAX, BatchingEmbedder, windows_of
from tenants.entities import DEFAULT_MODEL
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Overloaded, Refused, Unavailable
from vicinage.records import Floats
from vicinage.tenant_context import TenantContext

D = 8
MODEL = replace(DEFAULT_MODEL, name="m", kind="openai", dimension=D)


class Foreign:
    """A third-party OpenAI-compatible server: it answers as told, else with vectors of length 3."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.sizes: list[int] = []
        self.answer: Response | None = None

    async def embeddings(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        body = await request.json()
        self.sizes.append(len(body["input"]))
        if self.answer is not None:
            return self.answer
        vectors = [(hash_vector(t, D) * 3).tolist() for t in body["input"]]
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        return JSONResponse({"data": data[::-1], "model": body["model"]})


@pytest.fixture
def foreign() -> Foreign:
    return Foreign()


@pytest.fixture
def base_url(foreign: Foreign) -> Iterator[str]:
    app = Starlette(routes=[Route("/v1/embeddings", foreign.embeddings, methods=["POST"])])
    config = uvicorn.Config(app, port=free_port(), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{config.port}/v1"
    server.should_exit = True
    thread.join(10)


def test_plain_floats_in_any_order_return_in_request_order_and_normalized(
    foreign: Foreign, base_url: str
) -> None:
    texts = [f"text {i}" for i in range(2_100)]
    embedder = open_embedder(replace(MODEL, location=base_url), url="http://unused")
    vectors = embedder.embed(texts, tenant=TenantContext("t"))
    embedder.close()
    np.testing.assert_allclose(vectors, np.stack([hash_vector(t, D) for t in texts]), atol=1e-5)
    assert foreign.sizes == [2_048, 52], "no request is larger than the API accepts"


def test_a_foreign_server_learns_its_own_key_and_nothing_of_our_tenants(
    foreign: Foreign, base_url: str
) -> None:
    model = replace(MODEL, location=base_url)
    embedder = open_embedder(
        model, url="http://unused", key="our-internal-key", model_key="sk-theirs"
    )
    embedder.embed(["x"], tenant=TenantContext("acme"))
    embedder.close()
    [sent] = foreign.headers
    assert sent["authorization"] == "Bearer sk-theirs"
    assert not [name for name in sent if name.startswith("x-vicinage")]
    assert "our-internal-key" not in str(sent) and "acme" not in str(sent)


def row(vector: Any) -> dict[str, Any]:
    return {"index": 0, "embedding": vector}


NAN = base64.b64encode(np.full(D, np.nan, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    "answer",
    [
        Response("<html>hello</html>", media_type="text/html"),
        JSONResponse({}),
        JSONResponse([]),
        JSONResponse({"data": []}),
        JSONResponse({"data": [row([1.0] * D), row([1.0] * D)]}),
        JSONResponse({"data": [row([1.0] * (D + 1))]}),
        JSONResponse({"data": [row("####")]}),
        JSONResponse({"data": [row("AAAA")]}),
        JSONResponse({"data": [row(NAN)]}),
        JSONResponse({"data": [row(["a"] * D)]}),
        JSONResponse({"data": [row([[1.0] * D])]}),
        JSONResponse({"error": {"message": "no such model", "param": "model"}}, 404),
        JSONResponse({"error": {"message": "no such model", "param": "model"}}, 400),
        JSONResponse({"error": "a string"}, 401),
        Response("bad gateway", 502),
    ],
    ids=lambda a: bytes(a.body)[:40],
)
def test_errors_of_the_server_are_not_blamed_on_the_text(
    foreign: Foreign, base_url: str, answer: Response
) -> None:
    """Unavailable makes ingest wait and retry.

    Any other error would lose documents or end the role.
    """
    foreign.answer = answer
    embedder = open_embedder(replace(MODEL, location=base_url), url="http://unused")
    with pytest.raises(Unavailable):
        embedder.embed(["x"], tenant=TenantContext("t"))
    embedder.close()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("Tue, 24 Nov 2026 10:00:00 GMT", 1.0), ("9999999", 60.0)],
)
def test_overload_is_reported_with_its_retry_after(
    foreign: Foreign, base_url: str, header: str, seconds: float
) -> None:
    foreign.answer = JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": header})
    embedder = open_embedder(replace(MODEL, location=base_url), url="http://unused")
    with pytest.raises(Overloaded, match="model m is overloaded") as raised:
        embedder.embed(["x"], tenant=TenantContext("t"))
    assert raised.value.retry_after_s == seconds
    embedder.close()


def test_a_deadline_that_has_passed_is_not_even_sent(foreign: Foreign, base_url: str) -> None:
    embedder = open_embedder(replace(MODEL, location=base_url), url="http://unused")
    with pytest.raises(DeadlineExceeded):
        embedder.embed(["x"], tenant=TenantContext("t"), deadline=Deadline.after(0))
    assert foreign.sizes == []
    embedder.close()


# combining calls


@dataclass
class Slow:
    """An embedder that answers on demand; words over ten letters exceed its window."""

    window_tokens = 1_000
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[tuple[str, int, list[str]]] = field(default_factory=list)
    bug: BaseException | None = None

    async def embed_async(
        self,
        texts: Sequence[str],
        *,
        tenant: TenantContext,
        lane: Lane = Lane.QUERY,
        deadline: Deadline | None = None,
    ) -> Floats:
        self.calls.append((tenant.name, tenant.weight, list(texts)))
        await self.gate.wait()
        if self.bug is not None:
            raise self.bug
        for i, text in enumerate(texts):
            if len(text) > 10:
                raise Refused("too long", field=f"input.{i}", limit=10)
        return np.stack([hash_vector(t, D) for t in texts])


def ask(
    batching: BatchingEmbedder, text: str, tenant: str = "t", weight: int = 1, wait_s: float = 5
) -> asyncio.Task:
    return asyncio.create_task(
        batching.embed_query(
            text, tenant=TenantContext(tenant, weight), deadline=Deadline.after(wait_s)
        )
    )


async def started(slow: Slow) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(slow.calls) == CALLS_MAX


def test_texts_are_combined_during_calls_and_each_gets_its_own_vector() -> None:
    async def run() -> None:
        slow = Slow()
        batching = BatchingEmbedder(slow)
        asked = [ask(batching, f"q{i}") for i in range(30)]
        await started(slow)
        slow.gate.set()
        vectors = await asyncio.gather(*asked)
        np.testing.assert_allclose(vectors, np.stack([hash_vector(f"q{i}", D) for i in range(30)]))
        assert [len(texts) for _, _, texts in slow.calls] == [1, 29]

    asyncio.run(run())


def test_many_texts_of_one_tenant_do_not_delay_anothers_search() -> None:
    async def run() -> None:
        slow = Slow()
        batching = BatchingEmbedder(slow)
        crowd = [ask(batching, f"c{i}", "crowd") for i in range(300)]
        await started(slow)
        quiet = ask(batching, "quiet", "quiet", weight=4)
        await asyncio.sleep(0)
        slow.gate.set()
        await asyncio.gather(quiet, *crowd)
        _, weight, texts = slow.calls[1]
        assert "quiet" in texts and len(texts) == BATCH_MAX, "it is part of the next call"
        assert weight == 5, "whose weight is the sum of its tenants'"

    asyncio.run(run())


def test_bad_texts_are_refused_alone_and_the_others_are_sent_again() -> None:
    async def run() -> None:
        slow = Slow()
        batching = BatchingEmbedder(slow)
        first = [ask(batching, "first")]
        await started(slow)
        asked = [
            ask(batching, t) for t in ["a", "far too long for it", "b", "also far too long", "c"]
        ]
        await asyncio.sleep(0)
        slow.gate.set()
        a, bad, b, worse, c = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.gather(*first)
        for vector, text in ((a, "a"), (b, "b"), (c, "c")):
            np.testing.assert_allclose(vector, hash_vector(text, D))
        for refused in (bad, worse):
            assert isinstance(refused, Refused)
            assert (refused.field, refused.limit) == ("text", 10), (
                "the caller sent one text, and the error names it"
            )
        assert len(slow.calls) == 4

    asyncio.run(run())


def test_abandoned_texts_are_not_embedded() -> None:
    async def run() -> None:
        slow = Slow()
        batching = BatchingEmbedder(slow)
        first = [ask(batching, "first")]
        await started(slow)
        late, gone, here = (
            ask(batching, "late", wait_s=0.01),
            ask(batching, "gone"),
            ask(batching, "here"),
        )
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        slow.gate.set()
        await asyncio.gather(here, *first)
        assert slow.calls[1:] == [("t", 1, ["here"])]

    asyncio.run(run())


def test_a_failed_call_fails_its_waiting_requests() -> None:
    async def run() -> None:
        slow = Slow(bug=RuntimeError("a mistake of ours"))
        said = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: said.append(context["exception"])
        )
        batching = BatchingEmbedder(slow)
        slow.gate.set()
        for _ in range(3):
            with pytest.raises(Unavailable):
                await ask(batching, "q")
        slow.bug = None
        np.testing.assert_allclose(await ask(batching, "q"), hash_vector("q", D))

    asyncio.run(run())


def test_an_idle_connection_that_the_server_closed_is_reopened() -> None:
    """A server that closes after each answer without a header, as one does that is restarted."""
    body = b'{"data": [{"index": 0, "embedding": [1, 0, 0, 0, 0, 0, 0, 0]}]}'
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head)
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        embedder = open_embedder(
            replace(MODEL, location=f"http://127.0.0.1:{port}/v1"), url="http://unused"
        )
        for _ in range(5):
            assert (await embedder.embed_async(["x"], tenant=TenantContext("t"))).shape == (1, D)
        await embedder.aclose()
        await embedder.aclose()
        server.close()
        with pytest.raises(Unavailable):
            await embedder.embed_async(["x"], tenant=TenantContext("t"))
        await embedder.aclose()

    asyncio.run(run())
    assert len(asked) >= 5


def test_a_server_that_does_not_answer_is_given_up_at_the_deadline() -> None:
    async def run() -> None:
        server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        embedder = open_embedder(
            replace(MODEL, location=f"http://127.0.0.1:{port}/v1"), url="http://unused"
        )
        with pytest.raises(DeadlineExceeded):
            await embedder.embed_async(
                ["x"], tenant=TenantContext("t"), deadline=Deadline.after(0.1)
            )
        with pytest.raises(DeadlineExceeded):
            await asyncio.to_thread(
                embedder.embed, ["x"], tenant=TenantContext("t"), deadline=Deadline.after(0.1)
            )
        await embedder.aclose()
        server.close()

    asyncio.run(run())


# calibration


@given(
    st.lists(
        st.builds(
            Trial,
            st.sampled_from(["float32", "bfloat16"]),
            st.integers(1, 8),
            st.floats(1, 1000),
            st.floats(1, 100),
            st.floats(0.9, 1),
        ),
        min_size=1,
    )
)
def test_the_fastest_accurate_candidate_is_chosen(tried: list[Trial]) -> None:
    good = [t for t in tried if t.cosine >= 0.995]
    if not good:
        with pytest.raises(Refused, match="keeps a cosine"):
            choose(tried, 0.995)
        return
    c = choose(tried, 0.995)
    assert c.chosen in good and c.chosen.texts_per_s == max(t.texts_per_s for t in good)


def test_the_prompts_of_a_foreign_model_go_with_its_texts(foreign: Foreign, base_url: str) -> None:
    model = replace(MODEL, location=base_url, query_prompt="find: ", document_prompt="keep: ")
    embedder = open_embedder(model, url="http://unused")
    for lane, prompt in ((Lane.QUERY, "find: "), (Lane.DOCUMENT, "keep: ")):
        vectors = embedder.embed(["red"], tenant=TenantContext("t"), lane=lane)
        np.testing.assert_allclose(vectors, [hash_vector(prompt + "red", D)], atol=1e-5)
    embedder.close()


def test_vectors_keep_their_length_where_the_entry_says_so(foreign: Foreign, base_url: str) -> None:
    embedder = open_embedder(
        replace(MODEL, location=base_url, normalized=False), url="http://unused"
    )
    np.testing.assert_allclose(
        np.linalg.norm(embedder.embed(["red"], tenant=TenantContext("t")), axis=1), 3, atol=1e-4
    )
    embedder.close()


@pytest.mark.parametrize("status", [0, 401, 404, 500, 503])
def test_a_tenant_is_never_told_where_a_model_is_served(
    foreign: Foreign, base_url: str, status: int
) -> None:
    foreign.answer = Response("at 10.0.0.7: no", status) if status else None
    url = base_url if status else f"http://127.0.0.1:{free_port()}/v1"
    embedder = open_embedder(replace(MODEL, location=url), url="http://unused")
    with pytest.raises(Unavailable) as raised:
        embedder.embed(["x"], tenant=TenantContext("t"))
    embedder.close()
    assert "127.0.0.1" not in raised.value.detail + str(raised.value)
    assert "10.0.0.7" not in raised.value.detail
    assert url in raised.value.operator_detail


class Limited:
    """An embedder whose server refuses a text of more than `most` characters, without naming it."""

    window_tokens = 10

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    async def embed_async(self, texts: Any, **_: Any) -> Any:
        self.sizes.append(len(texts))
        if any(len(t) > self.most for t in texts):
            raise Refused("too long", field="text")
        return np.stack([hash_vector(t, D) for t in texts])

    async def aclose(self) -> None:
        return None


def asked(embedder: Limited, texts: list[str]) -> list[Any]:
    async def run() -> list[Any]:
        batching = BatchingEmbedder(embedder)
        deadline = Deadline.after(10)
        calls = [
            batching.embed_query(t, tenant=TenantContext("t"), deadline=deadline) for t in texts
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run())


def test_a_search_text_too_long_for_a_server_gets_the_mean_of_its_windows() -> None:
    embedder = Limited(30)
    [found] = asked(embedder, ["red apples in the north and blue pears in the south"])
    windows = ["red apples", "in the", "north and", "blue pears", "in the", "south"]
    assert windows_of("red apples in the north and blue pears in the south", 10) == windows
    mean = np.average(
        [hash_vector(t, D) for t in windows], axis=0, weights=[len(t) for t in windows]
    )
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)
    assert embedder.sizes == [1, 6], "one more call, whatever its length"


def test_a_text_refused_for_another_reason_is_refused() -> None:
    [found] = asked(Limited(3), ["short"])
    assert isinstance(found, Refused)


@given(st.text(min_size=1), st.integers(4, 40))
def test_windows_cover_the_whole_text_and_fit(text: str, window: int) -> None:
    windows = windows_of(text, window)
    assert all(len(w.encode()) <= window for w in windows)
    assert "".join("".join(windows).split()) == "".join(text.split())


def test_one_refused_text_of_many_costs_few_calls() -> None:
    embedder = Limited(30)
    texts = [f"text {i}" for i in range(64)]
    texts[40] = "w" * 8 + "!" * 40
    found = asked(embedder, texts)
    assert not [f for f in found if isinstance(f, Exception)]
    assert len(embedder.sizes) <= 1 + 14 + 1, "the others are sent in halves, not one by one"
