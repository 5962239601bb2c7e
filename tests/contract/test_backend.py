"""The contract of index backends, for each kind and metric, against exact numpy.

GPUs: with VICINAGE_TEST_DEVICE=cuda, or emulated.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from emulated import emulated_backend
from hypothesis import given
from hypothesis import strategies as st

from indexer.backends import AUTO, CENTROIDS, EFFORTS, choose, lists_for, open_backend
from indexer.backends.widths import beam_for
from indexer.index.effort import recall
from tenants.entities import Metric
from tenants.index_spec import IndexSpec
from vicinage.errors import Corrupt, Refused

N, D, K = 6_000, 24, 10
KINDS = [
    IndexSpec("flat"),
    IndexSpec("hnsw", 16, 80),
    IndexSpec("hnsw", 16, 80, "sq8"),
    IndexSpec("ivf", lists=40),
    IndexSpec("ivfpq", lists=40),
    IndexSpec("rabitq"),
]
INDEXED = KINDS[1:]
EFFORT = {"flat": 0, "hnsw": 128, "ivf": 32, "ivfpq": 1_024, "rabitq": 1_600}
METRICS = ["cosine", "dot", "euclidean"]
DEVICE = os.environ.get("VICINAGE_TEST_DEVICE", "cpu")
backend = emulated_backend() if DEVICE == "emulated" else open_backend(DEVICE)


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats the indexes built here as large enough for a GPU."""
    monkeypatch.setattr("indexer.backends.gpu_limits.NUMBERS_MIN", 1)
    monkeypatch.setattr("indexer.backends.gpu_limits.BUILD_ROWS_MIN", 1)
    monkeypatch.setattr("indexer.backends.gpu_limits.TRAIN_PER_LIST", 8)


def built(vectors: np.ndarray, spec: IndexSpec, metric: Metric) -> Any:
    """Returns an index as a serving node loads it."""
    return backend.place(backend.build(vectors, spec, metric, threads=1), vectors, metric)


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
    scores = (
        queries @ vectors.T
        if metric != "euclidean"
        else -((queries[:, None] - vectors[None]) ** 2).sum(-1)
    )
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize("spec", KINDS, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [None, 0.99, 0.5, 0.2, 0.05, 0.001])
@pytest.mark.parametrize("always", [False, True], ids=["cheapest", "by-index"])
def test_the_nearest_allowed_rows_are_found(
    data,
    spec: IndexSpec,
    metric: str,
    share: float | None,
    always: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors, queries = data
    if always:  # even where looking at every allowed row is cheaper
        monkeypatch.setattr("indexer.backends.widths.ROWS_PER_STEP", 0)
    allowed = None if share is None else np.random.default_rng(2).random(N) < share
    index = built(vectors, spec, metric)
    scores, rows = backend.search(
        index, vectors, queries, K, metric=metric, effort=EFFORT[spec.kind], allowed=allowed
    )
    wanted_scores, wanted = truth(vectors, queries, metric, allowed)
    possible = min(K, N if allowed is None else int(allowed.sum()))
    assert (rows[:, :possible] >= 0).all() and (rows[:, possible:] == -1).all()
    assert allowed is None or allowed[rows[rows >= 0]].all()
    assert (np.diff(scores[:, :possible], axis=1) <= 1e-6).all()
    assert recall(rows[:, :possible], wanted[:, :possible]) >= (
        0.999 if spec.kind == "flat" else 0.95
    )
    if spec.kind == "flat":
        np.testing.assert_allclose(scores[:, :possible], wanted_scores[:, :possible], atol=1e-4)


@pytest.mark.skipif(DEVICE == "cuda", reason="of the CPU")
def test_a_build_leaves_half_of_the_cores_to_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.eye(64, D, dtype=np.float32)
    for cores, threads in ((1, 1), (2, 1), (8, 4)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        backend.build(vectors, IndexSpec("hnsw", 16, 80), "cosine")
        assert faiss.omp_get_max_threads() == threads
    backend.build(vectors, IndexSpec("hnsw", 16, 80), "cosine", threads=3)
    assert faiss.omp_get_max_threads() == 3


@pytest.mark.parametrize("spec", INDEXED, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_the_vectors_whatever_the_index_keeps(
    data, spec: IndexSpec, metric: str
) -> None:
    vectors, queries = data
    index = built(vectors, spec, metric)
    scores, rows = backend.search(
        index, vectors, queries, K, metric=metric, effort=EFFORT[spec.kind], allowed=None
    )
    every, _ = truth(vectors, queries, metric, None, N)
    whole = (
        queries @ vectors.T
        if metric != "euclidean"
        else -((queries[:, None] - vectors[None]) ** 2).sum(-1)
    )
    np.testing.assert_allclose(scores, np.take_along_axis(whole, rows, axis=1), atol=1e-4)
    assert every.shape == whole.shape


@pytest.mark.parametrize("spec", INDEXED, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [1, 3])
def test_a_filter_that_excludes_the_nearest_half_loses_nothing(
    data, spec: IndexSpec, metric: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the farthest half of all rows is allowed: a beam near the queries meets none of them."""
    vectors, queries = data
    monkeypatch.setattr("indexer.backends.widths.ROWS_PER_STEP", 0)
    asked = np.ascontiguousarray(queries[:1] + 0.001 * np.arange(n, dtype=np.float32)[:, None])
    scores, _ = truth(vectors, asked[:1], metric, None, N)
    whole = (
        asked[:1] @ vectors.T
        if metric != "euclidean"
        else -((asked[:1, None] - vectors[None]) ** 2).sum(-1)
    )
    allowed = whole[0] < np.median(scores)
    index = built(vectors, spec, metric)
    _, rows = backend.search(
        index, vectors, asked, K, metric=metric, effort=EFFORT[spec.kind], allowed=allowed
    )
    assert allowed[rows].all()
    # Of 3,000 rows that are all far, a bit a number tells little apart in 24 dimensions, whatever
    # is scored again.
    assert recall(rows, truth(vectors, asked, metric, allowed)[1]) >= (
        0.75 if spec.kind == "rabitq" else 0.95
    )


@pytest.mark.parametrize("spec", INDEXED, ids=str)
@pytest.mark.parametrize("k", [1, 100, 700])
def test_recall_holds_for_every_k_at_the_effort_of_ten(
    data, spec: IndexSpec, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = data
    monkeypatch.setattr("indexer.backends.widths.ROWS_PER_STEP", 0)
    index = built(vectors, spec, "cosine")
    _, rows = backend.search(
        index, vectors, queries, k, metric="cosine", effort=EFFORT[spec.kind], allowed=None
    )
    assert recall(rows, truth(vectors, queries, "cosine", None, k)[1]) >= 0.95


@given(effort=st.integers(10, 512), depth=st.floats(10, 1e6), more=st.floats(1.0, 10.0))
def test_a_beam_holds_the_rank_that_is_sought_and_widens_with_it(
    effort: int, depth: float, more: float
) -> None:
    beam = beam_for(effort, depth)
    assert beam >= depth
    assert beam_for(effort, 10) == effort
    assert beam_for(effort, depth * more) >= beam


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("spec", INDEXED[:2], ids=str)
def test_a_filter_that_excludes_most_near_rows_keeps_recall(
    data, spec: IndexSpec, metric: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine tenths of all rows are allowed, but of the nearest thousand only every fiftieth.

    A beam for nine tenths has none or one of them.
    """
    vectors, queries = data
    monkeypatch.setattr("indexer.backends.widths.ROWS_PER_STEP", 1)
    asked = np.ascontiguousarray(np.repeat(queries[:1], n, axis=0))
    nearest = truth(vectors, asked[:1], metric, None, 600)[1][0]
    allowed = np.ones(N, np.bool_)
    allowed[nearest] = np.arange(600) % 50 == 0
    index = built(vectors, spec, metric)
    _, rows = backend.search(index, vectors, asked, K, metric=metric, effort=64, allowed=allowed)
    assert recall(rows, truth(vectors, asked, metric, allowed)[1]) >= 0.95


@pytest.mark.parametrize("metric", METRICS)
def test_exact_is_exact_for_one_and_for_many(data, metric: str) -> None:
    vectors, queries = data
    for some in (queries[:1], queries):
        _, rows = backend.exact(vectors, some, K, metric=metric, allowed=None)
        assert recall(rows, truth(vectors, some, metric, None)[1]) >= 0.999


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [3, 1_536, 4_096])
@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_exact_is_exact_at_every_dimension(metric: str, d: int, n: int) -> None:
    rng = np.random.default_rng(d)
    vectors, queries = (rng.standard_normal((m, d)).astype(np.float32) for m in (500, n))
    scores, rows = backend.exact(vectors, queries, K, metric=metric, allowed=None)
    wanted, nearest = truth(vectors, queries, metric, None)
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-3)
    assert recall(rows, nearest) >= 0.999


def test_fewer_rows_than_k_are_said_by_minus_one(data) -> None:
    vectors, queries = data
    nothing = np.zeros(N, np.bool_)
    for few, allowed, n in ((vectors[:3], None, 3), (vectors[:0], None, 0), (vectors, nothing, 0)):
        _, rows = backend.exact(
            np.ascontiguousarray(few), queries[:2], K, metric="cosine", allowed=allowed
        )
        assert rows.shape == (2, K) and (rows >= 0).sum() == 2 * n


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [10, 1_000])
def test_rows_that_the_graph_cannot_reach_are_found_all_the_same(metric: str, k: int) -> None:
    """Many equal vectors split an HNSW graph: a walk finds a few hundred of 9,000."""
    vectors = np.repeat(np.eye(3, 16, dtype=np.float32), 3_000, axis=0)
    index = built(vectors, KINDS[1], metric)
    for allowed in (None, np.arange(len(vectors)) % 2 == 0):
        scores, rows = backend.search(
            index, vectors, vectors[:2], k, metric=metric, effort=16, allowed=allowed
        )
        assert all(len(set(found)) == k for found in rows.tolist()) and (rows >= 0).all()
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("share", [None, 0.5, 0.1])
@pytest.mark.parametrize("n", [1, 3, 64])
def test_exact_euclidean_distances_survive_vectors_far_from_zero(
    share: float | None, n: int
) -> None:
    """|q|² + |v|² − 2·q·v cancels a distance of 0.04 between vectors of length 20,000."""
    rng = np.random.default_rng(3)
    vectors = (1_000 + rng.standard_normal((3_000, 384))).astype(np.float32)
    allowed = None if share is None else (np.arange(3_000) < n) | (rng.random(3_000) < share)
    scores, rows = backend.exact(
        vectors, vectors[:n] + 0.01, 5, metric="euclidean", allowed=allowed
    )
    wanted, nearest = truth(
        vectors.astype(np.float64), (vectors[:n] + 0.01).astype(np.float64), "euclidean", allowed, 5
    )
    np.testing.assert_array_equal(rows[:, 0], np.arange(n))
    np.testing.assert_allclose(scores, wanted, rtol=1e-3)
    assert recall(rows, nearest) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_a_masked_scan_by_blocks_is_the_same_as_in_one(
    data, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = data
    allowed = np.arange(N) % 3 != 0
    whole = backend.exact(vectors, queries, K, metric=metric, allowed=allowed)
    monkeypatch.setattr("indexer.backends.exact.CELLS_MAX", 7 * N)
    blocks = backend.exact(vectors, queries, K, metric=metric, allowed=allowed)
    np.testing.assert_array_equal(whole[1], blocks[1])


@pytest.mark.parametrize("spec", INDEXED, ids=str)
def test_threads_search_one_index_at_once(
    data, spec: IndexSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = data
    monkeypatch.setattr("indexer.backends.widths.ROWS_PER_STEP", 0)
    index = built(vectors, spec, "cosine")
    allowed = np.random.default_rng(5).random(N) < 0.5
    ask = lambda: backend.search(  # noqa: E731
        index, vectors, queries, K, metric="cosine", effort=64, allowed=allowed
    )[1]
    alone = ask()
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: ask(), range(24)):
            np.testing.assert_array_equal(rows, alone)


@pytest.mark.parametrize("spec", INDEXED, ids=str)
def test_an_index_is_the_same_after_saving(
    data, spec: IndexSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = data
    monkeypatch.setattr("indexer.backends.widths.ROWS_PER_STEP", 0)
    index = built(vectors, spec, "cosine")
    backend.save(index, tmp_path / "index")
    again = backend.place(backend.load(tmp_path / "index"), vectors, "cosine")
    search = {"metric": "cosine", "effort": 64, "allowed": None}
    np.testing.assert_array_equal(
        backend.search(index, vectors, queries, K, **search)[1],
        backend.search(again, vectors, queries, K, **search)[1],
    )


def test_a_file_that_is_no_index_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"not an index at all")
    with pytest.raises(Corrupt):
        backend.load(tmp_path / "index")


def test_the_kind_is_chosen_by_size() -> None:
    assert choose("auto", 100, flat_max=100).kind == "flat"
    assert choose("auto", 101, flat_max=100).kind == "hnsw"
    assert choose("hnsw:M=16,efc=40", 5, flat_max=100) == IndexSpec("hnsw", 16, 40)
    assert choose("hnsw:codes=sq8", 5, flat_max=100) == IndexSpec("hnsw", codes="sq8")
    assert choose("ivfpq:lists=7", CENTROIDS, flat_max=100) == IndexSpec("ivfpq", lists=7)
    assert choose("ivfpq:lists=7", CENTROIDS - 1, flat_max=100) == IndexSpec("flat"), (
        "fewer have no such codes"
    )
    assert choose("rabitq", 0, flat_max=100) == IndexSpec("flat"), "there is nothing to index"


def test_auto_takes_smaller_codes_where_the_graph_is_more_than_may_be_spent() -> None:
    n, d = 10_000, 384
    graph = backend.bytes(AUTO, n, d)

    def within(bytes_max: int) -> IndexSpec:
        return choose(
            "auto", n, flat_max=100, fits=lambda spec: backend.bytes(spec, n, d) <= bytes_max
        )

    assert within(graph) == AUTO
    assert backend.bytes(within(graph - 1), n, d) < graph / 5
    assert choose("hnsw", n, flat_max=100, fits=lambda _spec: False) == IndexSpec("hnsw"), (
        "what is named is taken"
    )


@pytest.mark.parametrize("spec", [*KINDS, AUTO, IndexSpec("ivf")], ids=str)
def test_a_manifest_names_a_kind_as_a_spec_does(spec: IndexSpec) -> None:
    assert choose(str(spec), CENTROIDS, flat_max=100) == spec


@pytest.mark.parametrize("spec", INDEXED, ids=str)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_fewer_hits_are_found_as_surely_as_ten(
    data, spec: IndexSpec, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches at the least effort that finds ten."""
    vectors, queries = data
    monkeypatch.setattr("indexer.backends.widths.ROWS_PER_STEP", 0)
    asked = np.ascontiguousarray(np.concatenate([queries, queries[::-1] * 0.5 + queries * 0.5]))
    index = built(vectors, spec, "dot")
    _, wanted = truth(vectors, asked, "dot", None)

    def found(k: int, effort: int) -> float:
        _, rows = backend.search(
            index, vectors, asked, k, metric="dot", effort=effort, allowed=None
        )
        return recall(rows, wanted[:, :k])

    enough = next(effort for effort in EFFORTS[spec.kind] if found(10, effort) >= 0.95)
    assert found(k, enough) >= 0.95


@pytest.mark.parametrize("spec", INDEXED, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_few_passages_are_indexed_as_asked_or_exactly(spec: IndexSpec, metric: Metric) -> None:
    for n in (1, 2, CENTROIDS - 1, CENTROIDS, CENTROIDS + 1):
        chosen = choose(str(spec), n, flat_max=0)
        vectors = np.eye(n, D, dtype=np.float32) + 1
        index = built(vectors, chosen, metric)
        effort = EFFORT[chosen.kind]
        _, rows = backend.search(
            index, vectors, vectors[:1], K, metric=metric, effort=effort, allowed=None
        )
        assert min(rows[0, : min(K, n)].tolist()) >= 0


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(Refused, match="cannot build an index ivfpq"):
        backend.build(np.eye(3, D, dtype=np.float32), IndexSpec("ivfpq"), "cosine", threads=1)


def test_lists_are_no_more_than_centroids_can_be_found_for() -> None:
    assert lists_for(IndexSpec("ivf", lists=65_536), 1_000_000) == 8_000
    assert lists_for(IndexSpec("ivf", lists=1_000), 1_000_000) == 1_000


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "best",
        "hnsw:M=1",
        "hnsw:M=129",
        "hnsw:M=x",
        "hnsw:M=16,efc=1",
        "hnsw:M=16,efc=9999",
        "hnsw:",
        "hnsw:codes=pq",
        "hnsw:lists=3",
        "ivf:M=8",
        "flat:M=8",
        "rabitq:lists=2",
        "ivf:lists=0",
        "ivf:lists=99999",
        "hnsw:M=8,=",
        "HNSW",
    ],
)
def test_a_spec_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(Refused) as refused:
        choose(bad, 5, flat_max=100)
    assert refused.value.field == "index"


@pytest.mark.parametrize("d", [3, 24, 384])
@pytest.mark.parametrize("spec", [*INDEXED, AUTO], ids=str)
def test_accounted_bytes_are_what_the_file_takes(spec: IndexSpec, d: int, tmp_path: Path) -> None:
    vectors = np.random.default_rng(7).standard_normal((3_000, d)).astype(np.float32)
    backend.save(backend.build(vectors, spec, "cosine", threads=2), tmp_path / "index")
    assert backend.bytes(spec, len(vectors), d) == pytest.approx(
        (tmp_path / "index").stat().st_size, rel=0.1
    )
