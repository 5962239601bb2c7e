"""The contract of embedders: in this process, as the role, and as a foreign server."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import uvicorn
from resources import eventually
from servers import free_port

from ingest.embedding import Embedder, Lane, open_embedder
from ingest.embedding.local import LocalEmbedder
from ingest.embedding.server import create_app
from tenants.entities import DEFAULT_MODEL
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Refused, Unavailable
from vicinage.settings import EmbedderSettings
from vicinage.tenant_context import TenantContext

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("model"), pytest.mark.timeout(300)]
TEXTS = [
    "red apples",
    "the boundary layer on a flat plate",
    "x",
    "median of a list of numbers " * 20,
    "红苹果",
    "\x00 …",
]


@pytest.fixture(scope="module", params=["torch", "onnx"])
def local(request: pytest.FixtureRequest) -> Iterator[LocalEmbedder]:
    made = LocalEmbedder(
        DEFAULT_MODEL, EmbedderSettings(precision="float32", threads=1, runtime=request.param)
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(local: LocalEmbedder) -> Iterator[str]:
    config = uvicorn.Config(
        create_app({local.model: local}, key="k"), port=free_port(), log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{config.port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(params=["in process", "the role", "a foreign server"])
def embedder(request: pytest.FixtureRequest, local: LocalEmbedder, url: str) -> Iterator[Embedder]:
    match request.param:
        case "in process":
            yield local
            return
        case "the role":
            opened = open_embedder(DEFAULT_MODEL, url=url, key="k")
        case _:
            foreign = replace(DEFAULT_MODEL, kind="openai", location=f"{url}/v1")
            opened = open_embedder(foreign, url="http://unused", model_key="k")
    yield opened
    opened.close()


def test_it_says_what_it_is(embedder: Embedder) -> None:
    assert (embedder.model, embedder.dimension, embedder.window_tokens) == (
        "all-minilm-l6-v2",
        384,
        254,
    )


@pytest.mark.parametrize("lane", list(Lane))
def test_vectors_come_in_order_as_float32_of_length_one(embedder: Embedder, lane: Lane) -> None:
    vectors = embedder.embed(TEXTS, tenant=TenantContext("t"), lane=lane)
    assert vectors.shape == (len(TEXTS), 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    for i, text in enumerate(TEXTS):
        [alone] = embedder.embed([text], tenant=TenantContext("t"), lane=lane)
        assert alone @ vectors[i] > 0.9999, "whatever company a text is embedded in"


def test_nothing_asked_nothing_given(embedder: Embedder) -> None:
    assert embedder.embed([], tenant=TenantContext("t")).shape == (0, 384)


def test_more_texts_than_one_request_takes(embedder: Embedder) -> None:
    texts = [f"{i % 7}" for i in range(2_100)]
    vectors = embedder.embed(texts, tenant=TenantContext("t"))
    assert vectors.shape == (2_100, 384)
    np.testing.assert_allclose(vectors[:7], vectors[2_093:], atol=1e-3)


def test_a_text_of_just_the_window_is_read_whole_and_one_more_is_refused_by_number(
    embedder: Embedder,
) -> None:
    whole = "word " * 253
    [a, b] = embedder.embed([whole + "apple", whole + "pear"], tenant=TenantContext("t"))
    assert a @ b < 0.99999, "the last word is read too"
    with pytest.raises(Refused) as refused:
        embedder.embed(["fine", "word " * 255], tenant=TenantContext("t"))
    assert refused.value.field == "input.1"


def test_a_deadline_is_kept(embedder: Embedder) -> None:
    with pytest.raises(DeadlineExceeded):
        embedder.embed(
            ["word " * 200] * 64, tenant=TenantContext("t"), deadline=Deadline.after(0.02)
        )
    assert embedder.embed(
        ["after"], tenant=TenantContext("t"), deadline=Deadline.after(60)
    ).shape == (1, 384)


def test_many_threads_get_their_own_vectors(embedder: Embedder) -> None:
    texts = [f"the {word} of {i}" for i, word in enumerate(["sea", "hull", "wind", "mast"] * 6)]
    truth = embedder.embed(texts, tenant=TenantContext("t"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda t: embedder.embed([t], tenant=TenantContext(t[:7]))[0], texts))
    assert np.einsum("ij,ij->i", truth, np.stack(found)).min() > 0.9999


def test_closed_twice_is_closed(local: LocalEmbedder, url: str) -> None:
    remote = open_embedder(DEFAULT_MODEL, url=url, key="k")
    remote.close()
    remote.close()
    assert local.alive()


def test_a_wrong_key_is_the_platforms_trouble_not_the_texts(url: str) -> None:
    remote = open_embedder(DEFAULT_MODEL, url=url, key="another")
    with pytest.raises(Unavailable, match="is unavailable") as raised:
        remote.embed(["x"], tenant=TenantContext("t"))
    assert "401" in raised.value.operator_detail
    remote.close()
