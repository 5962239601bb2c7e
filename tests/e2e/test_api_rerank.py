"""Reranking by a real cross-encoder behind a real server, and answers while it is away.

The cross-encoder is small and has random weights. Its scores are compared with those of the
library.
"""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from gate import Caller, build, calling, platform, problem, serving
from resources import eventually
from sentence_transformers import CrossEncoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.doctor import examine
from cluster.wiring import build_embedder
from ingest.embedding import reranker as reranker_room
from ingest.embedding.reranker import LocalReranker
from ingest.embedding.server import create_app
from ingest.embedding.tokenizer import model_folder
from query.rerank import TeiReranker, reranked
from tenants.entities import DEFAULT_MODEL
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Overloaded, Refused, Unavailable
from vicinage.records import Hit
from vicinage.settings import GatewaySettings, RerankSettings, Settings
from vicinage.tenant_context import TenantContext

WORDS = ["fox", "dog", "cat", "owl", "bee", "elk", "ant", "cow", "hen", "pig", "rat", "bat"]
TEXT = "which animal is quick?"


def cross_encoder(folder: Path, labels: int = 1) -> Path:
    """A small BERT that scores pairs, with the tokenizer of the default model."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(7)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=labels,
        max_position_embeddings=512,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(model_folder(DEFAULT_MODEL))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_encoder(tmp_path_factory.mktemp("cross-encoder"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LocalReranker]:
    made = LocalReranker(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with serving(create_app({}, key="inner", reranker=LocalReranker(folder))) as url:
        yield url


@pytest.fixture(scope="module")
def call(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    reranker = TeiReranker(server, key="inner", ours=True)
    settings = GatewaySettings(timeout_ms=10_000, rerank_max=50)
    given = {"reranker": reranker, "close_embedders": reranker.aclose}
    with platform(tmp_path_factory.mktemp("api"), settings, **given) as caller:
        yield caller


def filled(call: Caller) -> tuple[str, str]:
    """Creates a tenant with a document for each word; returns its key and last token."""
    _, key = call.tenant()
    call.collection(key, model="all-minilm-l6-v2")
    return key, call.write(
        key, [{"id": w, "text": f"the quick {w} jumps", "metadata": {"w": w}} for w in WORDS]
    )


def true_order(folder: Path, texts: dict[str, str]) -> list[tuple[str, float]]:
    scores = CrossEncoder(str(folder)).predict([(TEXT, text) for text in texts.values()])
    return sorted(zip(texts, map(float, scores), strict=True), key=lambda pair: -pair[1])


def order(found: dict[str, Any]) -> list[str]:
    return [hit["document_id"] for hit in found["hits"]]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_the_best_hits_have_the_order_of_the_cross_encoder(
    call: Caller, folder: Path, mode: str
) -> None:
    key, token = filled(call)
    asked = {"text": TEXT, "mode": mode, "wait_for": token}
    plain = call.search(key, k=12, **asked)
    found = call.search(key, k=3, rerank=12, **asked)
    wanted = true_order(folder, {h["document_id"]: h["text"] for h in plain["hits"]})
    assert order(found) == [name for name, _ in wanted[:3]]
    assert [h["score"] for h in found["hits"]] == pytest.approx(
        [score for _, score in wanted[:3]], abs=1e-5
    )
    before = {h["document_id"]: h for h in plain["hits"]}
    for hit in found["hits"]:
        own = before[hit["document_id"]]
        assert hit["text"] == own["text"]
        if mode == "hybrid":
            assert (hit["dense_score"], hit["lexical_score"]) == (
                own["dense_score"],
                own["lexical_score"],
            )
        else:
            assert hit[f"{mode}_score"] == own["score"]
    assert found["degraded"] is None
    assert set(found) == set(plain)


def test_texts_are_reranked_and_returned_only_if_requested(call: Caller) -> None:
    key, token = filled(call)
    found = call.search(key, text=TEXT, k=3, rerank=12, include=["metadata"], wait_for=token)
    assert all(
        set(h) == {"document_id", "passage", "score", "dense_score", "metadata"}
        for h in found["hits"]
    )
    whole = call.search(key, text=TEXT, k=3, rerank=12)
    assert order(found) == order(whole)


def test_each_search_of_a_batch_may_be_reranked(call: Caller) -> None:
    key, token = filled(call)
    asked = {"text": TEXT, "k": 3, "rerank": 12, "wait_for": token}
    lines = call(
        "POST", "/v1/collections/c/search:batch", key, json={"searches": [asked, asked]}
    ).content.splitlines()
    one = call.search(key, **asked)
    assert len(lines) == 2
    assert all(f'"document_id":"{order(one)[0]}"'.encode() in line for line in lines)


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": TEXT, "rerank": 0},
        {"text": TEXT, "rerank": 51},
        {"text": TEXT, "rerank": "12"},
        {"text": TEXT, "rerank": True},
        {"text": TEXT, "k": 10, "rerank": 9},
        {"vector": [0.1] * 384, "rerank": 12},
    ],
)
def test_a_search_that_cannot_be_reranked_is_refused(call: Caller, wrong: dict[str, Any]) -> None:
    key, _ = filled(call)
    problem(call("POST", "/v1/collections/c/search", key, json=wrong), 400, field="rerank")


def test_without_a_reranker_the_search_is_refused_with_the_setting(tmp_path: Path) -> None:
    with platform(tmp_path) as call:
        key, _ = filled(call)
        asked = {"text": TEXT, "rerank": 12}
        said = problem(
            call("POST", "/v1/collections/c/search", key, json=asked), 400, field="rerank"
        )
        assert "rerank.model" in said["detail"]


async def _never(_request: Request) -> Response:
    await asyncio.sleep(30)
    raise AssertionError("no caller waits so long")


async def _busy(_request: Request) -> Response:
    return JSONResponse({"error": "overloaded"}, 429, {"retry-after": "3"})


async def _nonsense(_request: Request) -> Response:
    return JSONResponse([{"index": 0, "score": 0.5}, {"index": 99, "score": 1}])


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (None, "cannot be reached"),
        (_never, "in time"),
        (_busy, "busy"),
        (_nonsense, "invalid ranking"),
    ],
)
def test_without_an_answer_of_the_reranker_hits_keep_their_order_and_degraded_says_so(
    call: Caller, answers: Any, said: str
) -> None:
    key, token = filled(call)
    plain = call.search(key, text=TEXT, k=3, wait_for=token)
    with serving(Starlette(routes=[Route("/rerank", answers or _busy, methods=["POST"])])) as url:
        reranker = TeiReranker("http://127.0.0.1:9" if answers is None else url, key=None)
        given = {"reranker": reranker, "close_embedders": reranker.aclose}
        app = build(call.base, [call.searcher], GatewaySettings(), **given)
        with calling(call.base, call.searcher, app) as other:
            found = other.search(key, text=TEXT, k=3, rerank=12, timeout_ms=1_000)
    assert order(found) == order(plain)
    assert [h["score"] for h in found["hits"]] == [h["score"] for h in plain["hits"]]
    assert found["degraded"]["reason"].startswith("not reranked: ")
    assert said in found["degraded"]["reason"]


def test_without_time_left_the_reranker_is_not_called() -> None:
    reranker = TeiReranker("http://127.0.0.1:9", key=None)
    asked = reranker.scores("a", ["b"], tenant=TenantContext("t"), deadline=Deadline.after(0))
    with pytest.raises(DeadlineExceeded, match="no time was left"):
        asyncio.run(asked)


def hit(name: str, score: float, text: str | None) -> Hit:
    return Hit(name, 0, score, 1, text=text)


def test_a_passage_without_text_comes_last() -> None:
    hits = [
        hit("none", 0.9, None),
        hit("low", 0.8, "x"),
        hit("high", 0.7, "y"),
        hit("also", 0.6, None),
    ]
    found = reranked(hits, np.array([0.1, 0.4], np.float32), "dense")
    assert [h.document_id for h in found] == ["high", "low", "none", "also"]
    assert [h.dense_score for h in found] == [0.7, 0.8, 0.9, 0.6]
    assert [h.score for h in found] == pytest.approx([0.4, 0.1, 0, 0])


# the embedder's /rerank


def test_the_embedder_answers_as_text_embeddings_inference_does(server: str, folder: Path) -> None:
    texts = {w: f"the quick {w} jumps" for w in WORDS}
    body = {"query": TEXT, "texts": list(texts.values())}
    assert httpx2.post(f"{server}/rerank", json=body).status_code == 401
    answered = httpx2.post(f"{server}/rerank", json=body, headers={"authorization": "Bearer inner"})
    wanted = true_order(folder, texts)
    found = answered.json()
    assert [WORDS[line["index"]] for line in found] == [name for name, _ in wanted]
    assert [line["score"] for line in found] == pytest.approx(
        [score for _, score in wanted], abs=1e-5
    )
    assert httpx2.get(f"{server}/readyz").json()["models"] == {"rerank": True}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"texts": ["a"]}, "query"),
        ({"query": "", "texts": ["a"]}, "query"),
        ({"query": "a", "texts": "a"}, "texts"),
        ({"query": "a", "texts": [1]}, "texts"),
        ({"query": "a", "texts": ["a"] * 2_049}, "texts"),
    ],
)
def test_an_invalid_rerank_request_is_refused(
    server: str, body: dict[str, Any], field: str
) -> None:
    answered = httpx2.post(f"{server}/rerank", json=body, headers={"authorization": "Bearer inner"})
    assert (answered.status_code, answered.json()["error"]["param"]) == (400, field)


def test_a_passage_longer_than_the_models_input_is_truncated_and_scored(
    model: LocalReranker,
) -> None:
    scores = model.submit(
        "a", ["word " * 5_000, ""], tenant=TenantContext("t"), deadline=Deadline.after(30)
    ).result(30)
    assert scores.shape == (2,)
    start = time.perf_counter()
    vast = model.submit(
        "a " * 10_000_000, ["b"] * 20, tenant=TenantContext("t"), deadline=Deadline.after(30)
    ).result(30)
    assert time.perf_counter() - start < 10, "truncated before it is tokenized"
    assert len(set(vast.tolist())) == 1
    assert ((scores >= 0) & (scores <= 1)).all()


def test_the_queue_is_bounded_and_abandoned_requests_are_skipped(
    model: LocalReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"tenant": TenantContext("t"), "deadline": Deadline.after(30)}
    read: list[int] = []
    own = model._model.predict

    def predict(pairs: list[Any], **more: Any) -> Any:
        read.append(len(pairs))
        return own(pairs, **more)

    monkeypatch.setattr(model._model, "predict", predict)
    with model._worker.lock:  # the worker cannot take a request meanwhile
        waiting = model.submit("a", ["b"] * reranker_room.QUEUE_PAIRS, **given)
        with pytest.raises(Overloaded):
            model.submit("a", ["b"], **given)
        waiting.cancel()

    def nothing_waits() -> bool:
        with model._worker.lock:
            return len(model._queue) == 0

    eventually(nothing_waits)
    assert model.submit("a", ["b"], **given).result(30).shape == (1,)
    assert sum(read) <= reranker_room.CALL_PAIRS + 1, "of the abandoned requests, at most one call"


def test_a_reranker_that_was_closed_refuses(folder: Path) -> None:
    closing = LocalReranker(folder)
    closing.close()
    assert not closing.alive()
    with pytest.raises(Unavailable):
        closing.submit("a", ["b"], tenant=TenantContext("t"), deadline=Deadline.after(1))


def test_a_model_that_fails_again_and_again_ends_the_role(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[BaseException] = []
    broken = LocalReranker(folder, on_failure=died.append)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(broken._model, "predict", fail)
    for _ in range(reranker_room.FAILURES_MAX):
        with pytest.raises(Unavailable):
            broken.submit(
                "a", ["b"], tenant=TenantContext("t"), deadline=Deadline.after(30)
            ).result(30)
    broken._worker._thread.join(10)
    assert [str(error) for error in died] == ["the device is gone"]
    assert not broken.alive()


def test_a_folder_without_a_reranker_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"config\.json"):
        LocalReranker(tmp_path / "nothing")
    with pytest.raises(Refused, match="3 scores"):
        LocalReranker(cross_encoder(tmp_path / "three", labels=3))


# wiring


def test_the_embedder_serves_the_cross_encoder_that_settings_name(
    tmp_path: Path, folder: Path
) -> None:
    settings = Settings(data=tmp_path, rerank=RerankSettings(model=str(folder))).resolved()
    with serving(build_embedder(settings, [], key=None)) as url:
        answered = httpx2.post(f"{url}/rerank", json={"query": "a", "texts": ["b", "c"]})
    assert sorted(line["index"] for line in answered.json()) == [0, 1]


def test_an_embedder_whose_cross_encoder_is_missing_starts_without(tmp_path: Path) -> None:
    settings = Settings(
        data=tmp_path, rerank=RerankSettings(model=str(tmp_path / "gone"))
    ).resolved()
    with serving(build_embedder(settings, [], key=None)) as url:
        assert httpx2.post(f"{url}/rerank", json={"query": "a", "texts": ["b"]}).status_code == 400


def checked(tmp_path: Path, **given: str) -> dict[str, Any]:
    rows = examine(Settings(data=tmp_path, rerank=RerankSettings(**given)))
    return next(row for row in rows if row["check"] == "reranker")


def test_the_doctor_checks_the_reranker(tmp_path: Path, folder: Path, server: str) -> None:
    assert checked(tmp_path)["ok"]
    assert checked(tmp_path, model=str(folder))["ok"]
    assert checked(tmp_path, url=server, key="inner")["ok"]
    for wrong in (
        {"model": str(tmp_path / "gone")},
        {"url": server, "key": "other"},
        {"url": "http://127.0.0.1:9"},
    ):
        row = checked(tmp_path, **wrong)
        assert not row["ok"]
        assert "rerank.model or rerank.url" in row["next"]
