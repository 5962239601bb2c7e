"""What an index backend promises, for each kind and metric, against exact numpy."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from indexer.backends import IndexSpec, choose, open_backend
from indexer.segment import recall
from vicinage.errors import Corrupt, Refused

N, D, K = 6_000, 24, 10
KINDS = [IndexSpec("flat"), IndexSpec("hnsw", 16, 80)]
METRICS = ["cosine", "dot", "euclidean"]
backend = open_backend()


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((N, D)).astype(np.float32)
    queries = vectors[rng.choice(N, 40)] + 0.3 * rng.standard_normal((40, D)).astype(np.float32)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    return unit(vectors), unit(queries).astype(np.float32)


def truth(
    vectors: np.ndarray, queries: np.ndarray, metric: str, allowed: np.ndarray | None, k: int = K
) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ vectors.T if metric != "euclidean" else -((queries[:, None] - vectors[None]) ** 2).sum(-1)
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize("spec", KINDS, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [None, 0.5, 0.2, 0.05, 0.001])
def test_the_nearest_allowed_rows_are_found(data, spec: IndexSpec, metric: str, share: float | None) -> None:
    vectors, queries = data
    allowed = None if share is None else np.random.default_rng(2).random(N) < share
    index = backend.build(vectors, spec, metric, threads=1)
    scores, rows = backend.search(index, vectors, queries, K, metric=metric, effort=128, allowed=allowed)
    wanted_scores, wanted = truth(vectors, queries, metric, allowed)
    possible = min(K, N if allowed is None else int(allowed.sum()))
    assert (rows[:, :possible] >= 0).all() and (rows[:, possible:] == -1).all()
    assert allowed is None or allowed[rows[rows >= 0]].all()
    assert (np.diff(scores[:, :possible], axis=1) <= 1e-6).all()
    assert recall(rows[:, :possible], wanted[:, :possible]) >= (0.95 if spec.kind == "hnsw" else 0.999)
    if spec.kind == "flat":
        np.testing.assert_allclose(scores[:, :possible], wanted_scores[:, :possible], atol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_is_exact_for_one_and_for_many(data, metric: str) -> None:
    vectors, queries = data
    for some in (queries[:1], queries):
        _, rows = backend.exact(vectors, some, K, metric=metric, allowed=None)
        assert recall(rows, truth(vectors, some, metric, None)[1]) >= 0.999


def test_fewer_rows_than_k_are_said_by_minus_one(data) -> None:
    vectors, queries = data
    nothing = np.zeros(N, np.bool_)
    for few, allowed, n in ((vectors[:3], None, 3), (vectors[:0], None, 0), (vectors, nothing, 0)):
        _, rows = backend.exact(np.ascontiguousarray(few), queries[:2], K, metric="cosine", allowed=allowed)
        assert rows.shape == (2, K) and (rows >= 0).sum() == 2 * n


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [10, 1_000])
def test_rows_that_the_graph_cannot_reach_are_found_all_the_same(metric: str, k: int) -> None:
    """Many equal vectors cut an HNSW graph into islands: walking it finds a few hundred of 9,000."""
    vectors = np.repeat(np.eye(3, 16, dtype=np.float32), 3_000, axis=0)
    index = backend.build(vectors, KINDS[1], metric, threads=1)
    for allowed in (None, np.arange(len(vectors)) % 2 == 0):
        scores, rows = backend.search(index, vectors, vectors[:2], k, metric=metric, effort=16, allowed=allowed)
        assert all(len(set(found)) == k for found in rows.tolist()) and (rows >= 0).all()
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("share", [None, 0.5, 0.1])
@pytest.mark.parametrize("n", [1, 3, 64])
def test_exact_euclidean_distances_survive_vectors_far_from_zero(share: float | None, n: int) -> None:
    """|q|² + |v|² − 2·q·v leaves no digit of a distance of 0.04 between vectors of length 20,000."""
    rng = np.random.default_rng(3)
    vectors = (1_000 + rng.standard_normal((3_000, 384))).astype(np.float32)
    allowed = None if share is None else (np.arange(3_000) < n) | (rng.random(3_000) < share)
    scores, rows = backend.exact(vectors, vectors[:n] + 0.01, 5, metric="euclidean", allowed=allowed)
    wanted, nearest = truth(
        vectors.astype(np.float64), (vectors[:n] + 0.01).astype(np.float64), "euclidean", allowed, 5
    )
    np.testing.assert_array_equal(rows[:, 0], np.arange(n))
    np.testing.assert_allclose(scores, wanted, rtol=1e-3)
    assert recall(rows, nearest) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_a_masked_scan_by_blocks_is_the_same_as_in_one(data, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = data
    allowed = np.arange(N) % 3 != 0
    whole = backend.exact(vectors, queries, K, metric=metric, allowed=allowed)
    monkeypatch.setattr("indexer.backends.cpu.CELLS_MAX", 7 * N)
    blocks = backend.exact(vectors, queries, K, metric=metric, allowed=allowed)
    np.testing.assert_array_equal(whole[1], blocks[1])


def test_threads_search_one_index_at_once(data) -> None:
    vectors, queries = data
    index = backend.build(vectors, KINDS[1], "cosine", threads=1)
    allowed = np.random.default_rng(5).random(N) < 0.5
    ask = lambda: backend.search(index, vectors, queries, K, metric="cosine", effort=64, allowed=allowed)[1]  # noqa: E731
    alone = ask()
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: ask(), range(24)):
            np.testing.assert_array_equal(rows, alone)


def test_an_index_is_the_same_after_saving(data, tmp_path: Path) -> None:
    vectors, queries = data
    index = backend.build(vectors, KINDS[1], "cosine", threads=1)
    backend.save(index, tmp_path / "index")
    again = backend.load(tmp_path / "index")
    search = {"metric": "cosine", "effort": 64, "allowed": None}
    np.testing.assert_array_equal(
        backend.search(index, vectors, queries, K, **search)[1], backend.search(again, vectors, queries, K, **search)[1]
    )


def test_a_file_that_is_no_index_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"not an index at all")
    with pytest.raises(Corrupt):
        backend.load(tmp_path / "index")


def test_the_kind_is_chosen_by_size() -> None:
    assert choose("auto", 100, flat_max=100).kind == "flat"
    assert choose("auto", 101, flat_max=100).kind == "hnsw"
    assert choose("hnsw:M=16,efc=40", 5, flat_max=100) == IndexSpec("hnsw", 16, 40)
    for bad in ("ivf", "hnsw:M=1", "hnsw:M=129", "hnsw:M=16,efc=1", "hnsw:M=16,efc=9999", "hnsw:"):
        with pytest.raises(Refused):
            choose(bad, 5, flat_max=100)


def test_accounted_bytes_are_what_the_file_takes(data, tmp_path: Path) -> None:
    vectors, _ = data
    index = backend.build(vectors, KINDS[1], "cosine", threads=1)
    backend.save(index, tmp_path / "index")
    assert backend.bytes(KINDS[1], N, D) == pytest.approx((tmp_path / "index").stat().st_size, rel=0.1)
