"""The GPU backend over an emulated device: its searches, its fallbacks, and the CPU's results."""

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from emulated import EmulatedDevice, cagra_of
from rows import message

from indexer.backends import cuda, gpu_worker, open_backend
from indexer.backends.cagra import as_cagra, as_graph, is_complete
from indexer.backends.cpu import CpuBackend
from indexer.backends.cuda import is_full
from indexer.backends.gpu import GpuBackend, Placed
from indexer.backends.gpu_limits import CLASSIC
from indexer.backends.gpu_worker import DeviceThread, GpuWorker
from indexer.backends.indexes import Index
from indexer.index.effort import recall
from indexer.index.rows import newest
from indexer.index.segment import load, placed
from indexer.index.segment_writer import write
from indexer.index.shard import Shard
from tenants.entities import Manifest
from tenants.index_spec import IndexSpec
from vicinage.errors import Refused
from vicinage.filters import Filter
from vicinage.metrics import REGISTRY
from vicinage.records import ShardId, ShardQuery
from vicinage.store import LocalStore

N, D, K = 3_000, 24, 10
SPECS = [
    IndexSpec("flat"),
    IndexSpec("hnsw", 16, 80),
    IndexSpec("hnsw", 16, 80, "sq8"),
    IndexSpec("ivf", lists=20),
    IndexSpec("ivfpq", lists=20),
]
EFFORT = {"flat": 0, "hnsw": 128, "ivf": 16, "ivfpq": 64, "rabitq": 400}
METRICS = ["cosine", "dot", "euclidean"]
cpu = CpuBackend()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowers the bounds so that the device builds and serves segments of 3,000 × 24."""
    monkeypatch.setattr("indexer.backends.gpu_limits.NUMBERS_MIN", 1)
    monkeypatch.setattr("indexer.backends.gpu_limits.BUILD_ROWS_MIN", 1)
    monkeypatch.setattr("indexer.backends.gpu_limits.TRAIN_PER_LIST", 1)
    monkeypatch.setattr("indexer.backends.widths.ROWS_PER_STEP", 0)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((N, D)).astype(np.float32)
    queries = vectors[rng.choice(N, 40)] + 0.3 * rng.standard_normal((40, D)).astype(np.float32)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    return unit(vectors), unit(queries).astype(np.float32)


@pytest.fixture
def emulated() -> EmulatedDevice:
    return EmulatedDevice()


@pytest.fixture
def backend(emulated: EmulatedDevice) -> GpuBackend:
    return GpuBackend([GpuWorker(emulated)])


def built(
    backend: GpuBackend, vectors: np.ndarray, spec: IndexSpec, metric: str = "cosine"
) -> Placed:
    placed = backend.place(backend.build(vectors, spec, metric, threads=1), vectors, metric)
    assert isinstance(placed, Placed) and placed.number is not None
    return placed


def fallbacks(reason: str) -> float:
    return (
        REGISTRY.get_sample_value("vicinage_searcher_device_fallbacks_total", {"reason": reason})
        or 0.0
    )


def held(name: str = "emulated:0") -> float | None:
    return REGISTRY.get_sample_value("vicinage_searcher_device_bytes", {"device": name})


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [None, 0.97, 0.5, 0.001])
def test_results_are_right_and_scores_are_those_of_the_vectors(
    data, backend, emulated, spec, metric, share
) -> None:
    vectors, queries = data
    allowed = None if share is None else np.random.default_rng(2).random(N) < share
    placed = built(backend, vectors, spec, metric)
    scores, rows = backend.search(
        placed, vectors, queries, K, metric=metric, effort=EFFORT[spec.kind], allowed=allowed
    )
    wanted_scores, wanted = cpu.exact(vectors, queries, K, metric=metric, allowed=allowed)
    possible = min(K, N if allowed is None else int(allowed.sum()))
    assert bool(emulated.searches) == (share in (None, 0.97)), (
        "the host drops deleted rows; the CPU serves filters"
    )
    assert (rows[:, :possible] >= 0).all() and (rows[:, possible:] == -1).all()
    assert allowed is None or allowed[rows[rows >= 0]].all()
    assert recall(rows[:, :possible], wanted[:, :possible]) >= (
        0.999 if spec.kind == "flat" else 0.95
    )
    whole = (
        queries @ vectors.T
        if metric != "euclidean"
        else -((queries[:, None] - vectors[None]) ** 2).sum(-1)
    )
    np.testing.assert_allclose(
        scores[:, :possible], np.take_along_axis(whole, rows, axis=1)[:, :possible], atol=1e-4
    )
    if spec.kind == "flat":
        np.testing.assert_allclose(scores[:, :possible], wanted_scores[:, :possible], atol=1e-4)


def test_deletions_around_the_query_lose_no_hit(data, backend, emulated) -> None:
    """The 40 nearest are deleted: the device returns dead rows only, so the CPU answers."""
    vectors, queries = data
    nearest = cpu.exact(vectors, queries[:1], 40, metric="cosine", allowed=None)[1][0]
    allowed = np.ones(N, np.bool_)
    allowed[nearest] = False
    placed = built(backend, vectors, IndexSpec("flat"))
    _, rows = backend.search(
        placed, vectors, queries, K, metric="cosine", effort=0, allowed=allowed
    )
    assert emulated.searches
    np.testing.assert_array_equal(
        rows, cpu.exact(vectors, queries, K, metric="cosine", allowed=allowed)[1]
    )


@pytest.mark.parametrize("spec", SPECS[1:], ids=str)
def test_an_index_built_by_a_gpu_is_stored_in_the_cpu_form(
    data, backend, emulated, spec, tmp_path: Path
) -> None:
    vectors, queries = data
    placed = built(backend, vectors, spec)
    backend.save(placed, tmp_path / "index")
    read = cpu.load(tmp_path / "index")
    assert read.kind == spec.kind
    assert backend.bytes(spec, N, D) == pytest.approx((tmp_path / "index").stat().st_size, rel=0.1)
    _, rows = cpu.search(
        read, vectors, queries, K, metric="cosine", effort=EFFORT[spec.kind], allowed=None
    )
    assert recall(rows, cpu.exact(vectors, queries, K, metric="cosine", allowed=None)[1]) >= 0.95
    again = backend.place(backend.load(tmp_path / "index"), vectors, "cosine")
    emulated.searches.clear()
    _, rows = backend.search(
        again, vectors, queries, K, metric="cosine", effort=EFFORT[spec.kind], allowed=None
    )
    assert emulated.searches, "the device serves the loaded index"
    assert recall(rows, cpu.exact(vectors, queries, K, metric="cosine", allowed=None)[1]) >= 0.95


def test_a_graph_built_by_the_cpu_is_served_by_the_cpu(data, backend, emulated) -> None:
    """CAGRA needs every link filled, so a CPU graph is not placed; no device failed."""
    vectors, queries = data
    index = cpu.build(vectors, SPECS[1], "cosine", threads=1)
    assert not is_complete(index.faiss.hnsw)
    placed = backend.place(index, vectors, "cosine")
    _, rows = backend.search(placed, vectors, queries, K, metric="cosine", effort=128, allowed=None)
    assert not emulated.searches and emulated.n_placed == 0
    assert recall(rows, cpu.exact(vectors, queries, K, metric="cosine", allowed=None)[1]) >= 0.95


def test_a_graph_keeps_its_links_from_the_device_to_the_file_and_back(data) -> None:
    vectors, _ = data
    graph = cagra_of(vectors, 8, "cosine")
    sq8 = as_graph(graph, vectors, IndexSpec("hnsw", 8, 80, "sq8"))
    assert is_complete(sq8.hnsw)
    back = as_cagra(sq8, vectors)
    links = [cuda.faiss.vector_to_array(g.hnsw.neighbors) for g in (graph, back)]
    np.testing.assert_array_equal(*links)
    np.testing.assert_array_equal(back.storage.reconstruct_n(0, 5), vectors[:5])


def test_euclidean_distances_survive_vectors_far_from_zero(backend, emulated) -> None:
    rng = np.random.default_rng(3)
    vectors = (1_000 + rng.standard_normal((2_000, 64))).astype(np.float32)
    placed = built(backend, vectors, IndexSpec("flat"), "euclidean")
    _, rows = backend.search(
        placed, vectors, vectors[:9] + 0.01, 5, metric="euclidean", effort=0, allowed=None
    )
    assert emulated.searches
    np.testing.assert_array_equal(rows[:, 0], np.arange(9))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_device_whose_memory_runs_out_leaves_the_segment_to_the_cpu_and_counts_it(
    data, backend, emulated, spec
) -> None:
    vectors, queries = data
    placed = built(backend, vectors, spec)
    before, n_held = fallbacks("memory"), held()
    assert n_held
    emulated.full = True
    ask = lambda: backend.search(  # noqa: E731
        placed, vectors, queries, K, metric="cosine", effort=EFFORT[spec.kind], allowed=None
    )
    assert (
        recall(ask()[1], cpu.exact(vectors, queries, K, metric="cosine", allowed=None)[1]) >= 0.95
    )
    assert fallbacks("memory") == before + 1
    emulated.full = False
    n_searches = len(emulated.searches)
    ask()
    assert len(emulated.searches) == n_searches and fallbacks("memory") == before + 1, (
        "it stays with the CPU"
    )
    other = built(backend, vectors, IndexSpec("flat"))
    assert held() == backend.device_bytes(IndexSpec("flat"), N, D), "its memory is free again"
    assert other.number is not None


def test_placement_is_refused_without_room_and_freed_room_is_used_again(data) -> None:
    vectors, _ = data
    need = N * (4 * D + 4)
    emulated = EmulatedDevice("emulated:small", bytes_max=2 * need)
    backend = GpuBackend([GpuWorker(emulated)])
    two = [built(backend, vectors, IndexSpec("flat")) for _ in range(2)]
    before = fallbacks("memory")
    assert backend.place(None, vectors, "cosine") is None and fallbacks("memory") == before + 1
    assert held("emulated:small") == 2 * need
    del two
    gc.collect()
    again = built(backend, vectors, IndexSpec("flat"))
    assert held("emulated:small") == need and again.number == 3


def test_segments_spread_over_devices_by_their_bytes(data) -> None:
    vectors, _ = data
    devices = [EmulatedDevice(f"emulated:spread{i}") for i in range(3)]
    backend = GpuBackend([GpuWorker(d) for d in devices])
    placed = [
        built(backend, vectors[:n], IndexSpec("flat"))
        for n in (3_000, 2_000, 1_000, 1_000, 500, 1_500)
    ]
    assert [d.n_placed for d in devices] == [1, 2, 3]
    assert [held(d.name) for d in devices] == [n * (4 * D + 4) for n in (3_000, 2_500, 3_500)]
    assert len(placed) == 6


def test_another_device_holds_what_one_has_no_memory_for(data) -> None:
    vectors, _ = data
    devices = [
        EmulatedDevice("emulated:full", bytes_max=1 << 30),
        EmulatedDevice("emulated:next", bytes_max=1 << 29),
    ]
    devices[0].full = True
    placed = GpuBackend([GpuWorker(d) for d in devices]).place(None, vectors, "cosine")
    assert placed.worker.device is devices[1]


def test_the_cpu_does_a_build_that_fails_on_the_device(data, backend, emulated) -> None:
    vectors, _ = data
    before = fallbacks("memory")
    emulated.full = True
    index = backend.build(vectors, IndexSpec("ivfpq", lists=20), "cosine", threads=1)
    assert type(index.faiss).__name__ == "IndexIVFPQFastScan" and fallbacks("memory") == before + 1


def test_a_device_that_keeps_failing_is_abandoned(data, backend, emulated) -> None:
    vectors, queries = data
    placed = [built(backend, vectors, IndexSpec("flat")) for _ in range(4)]
    emulated.broken = True
    before = fallbacks("failed")
    for each in placed:
        _, rows = backend.search(each, vectors, queries, K, metric="cosine", effort=0, allowed=None)
        assert (rows >= 0).all()
    assert backend._workers[0].lost and fallbacks("failed") == before + 4
    emulated.broken = False
    assert backend.place(None, vectors, "cosine") is None, "an abandoned device holds no index"


def test_a_search_waits_only_briefly_for_a_busy_device(
    data, backend, emulated, monkeypatch
) -> None:
    vectors, queries = data
    placed = built(backend, vectors, IndexSpec("flat"))
    monkeypatch.setattr(gpu_worker, "QUEUE_WAIT_S", 0.05)
    emulated.hold.clear()
    ask = lambda: backend.search(  # noqa: E731
        placed, vectors, queries, K, metric="cosine", effort=0, allowed=None
    )[1]
    before = fallbacks("busy")
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(
            backend.build, vectors, IndexSpec("ivf", lists=20), "cosine", threads=1
        )
        time.sleep(0.1)
        start = time.monotonic()
        assert (ask() >= 0).all()
        assert time.monotonic() - start < 2 and fallbacks("busy") == before + 1
        emulated.hold.set()
        building.result(20)
    ask()
    assert emulated.searches, "the device is used again afterwards"


def test_a_device_that_hangs_is_abandoned(data, backend, emulated, monkeypatch) -> None:
    vectors, queries = data
    placed = built(backend, vectors, IndexSpec("flat"))
    monkeypatch.setattr(gpu_worker, "QUEUE_WAIT_S", 0.05)
    monkeypatch.setattr(gpu_worker, "RESULT_WAIT_S", 0.1)
    emulated.hold.clear()
    _, rows = backend.search(placed, vectors, queries, K, metric="cosine", effort=0, allowed=None)
    emulated.hold.set()
    assert (rows >= 0).all() and backend._workers[0].lost


def test_many_threads_search_and_one_thread_calls_the_device(data, backend, emulated) -> None:
    vectors, queries = data
    placed = built(backend, vectors, SPECS[3])
    ask = lambda: backend.search(  # noqa: E731
        placed, vectors, queries, K, metric="cosine", effort=16, allowed=None
    )[1]
    alone = ask()
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda _: ask(), range(60)):
            np.testing.assert_array_equal(rows, alone)
    assert len(emulated.threads) == 1 and threading.get_ident() not in emulated.threads


def test_a_full_queue_raises_at_once_and_errors_reach_the_caller() -> None:
    thread, go = DeviceThread("test"), threading.Event()
    with ThreadPoolExecutor(gpu_worker.QUEUE_MAX + 1) as pool:
        waiting = [
            pool.submit(thread.call, lambda: go.wait(20), queue_s=20, result_s=20)
            for _ in range(gpu_worker.QUEUE_MAX + 1)
        ]
        while not thread._waiting.full():
            time.sleep(0.01)
        with pytest.raises(gpu_worker.Busy):
            thread.call(lambda: None, queue_s=0.01, result_s=1)
        go.set()
        assert all(each.result(20) for each in waiting)
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0, queue_s=1, result_s=1)
    assert thread.call(lambda: 7, queue_s=1, result_s=1) == 7, "the thread still runs"


def test_the_cpu_serves_kinds_that_a_classic_wheel_lacks(data) -> None:
    vectors, _ = data
    backend = GpuBackend([GpuWorker(EmulatedDevice("emulated:classic", limits=CLASSIC))])
    index = backend.build(vectors, SPECS[2], "cosine", threads=1)
    assert isinstance(backend.place(index, vectors, "cosine"), Index)
    assert backend.device_bytes(SPECS[2], N, D) == 0


def test_a_delta_is_never_placed_on_a_device(data, backend, emulated) -> None:
    vectors, queries = data
    backend.exact(vectors, queries, K, metric="cosine", allowed=None)
    backend.search(None, vectors, queries, K, metric="cosine", effort=0, allowed=None)
    assert emulated.n_placed == 0


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (MemoryError("std::bad_alloc"), True),
        (
            RuntimeError("Error in ... StandardGpuResources.cpp:557: CUDA memory allocation error"),
            True,
        ),
        (
            RuntimeError(
                "StandardGpuResources: alloc fail type Other (cudaMalloc error out of memory [2])"
            ),
            True,
        ),
        (
            RuntimeError("C++ exception std::bad_alloc: out_of_memory: CUDA error at: ...rmm/mr"),
            True,
        ),
        (RuntimeError("Invalid GPU device 0"), False),
    ],
)
def test_full_memory_is_recognized_from_faiss_error_texts(error: BaseException, full: bool) -> None:
    assert is_full(error) is full


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(Refused) as refused:
        open_backend(device)
    assert refused.value.field == "device"


def test_a_trial_that_aborts_its_process_is_only_an_error_text(monkeypatch, tmp_path: Path) -> None:
    """FAISS turns a CUDA error into an abort: it must end the trial's process, not this one."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'CUDA error 35' >&2\nkill -ABRT $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert "CUDA error 35" in (cuda.trial_error(0) or "")


def test_the_trial_passes_right_results_and_fails_wrong_ones() -> None:
    cuda.trial(EmulatedDevice())

    class Wrong(EmulatedDevice):
        def search(self, placed, queries, ask):
            return np.roll(super().search(placed, queries, ask), 1, axis=0)

    with pytest.raises(AssertionError):
        cuda.trial(Wrong())


def test_a_cpu_wheel_is_refused_for_cuda() -> None:
    command = [
        sys.executable,
        "-c",
        "from indexer.backends import open_backend; open_backend('cuda')",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert ended.returncode == 1 and "Refused" in ended.stderr


@pytest.mark.parametrize("spec", ["flat", "ivf:lists=20", "hnsw:M=8,codes=sq8"])
def test_a_shard_searches_through_the_device_with_deletions_filters_and_a_delta(
    data, backend, emulated, spec: str, tmp_path: Path
) -> None:
    """A segment sealed on the device is loaded and written to: the CPU serves delta and filters."""
    vectors, _ = data
    shard_id, store = ShardId("acme", "docs", 1, 0), LocalStore(tmp_path)
    rows = [
        (f"d{i}", i + 1, [v], orjson.dumps({"even": i % 2 == 0}).decode())
        for i, v in enumerate(vectors)
    ]
    ref = write(
        *newest([message(rows, D)]), shard=shard_id, spec=spec, metric="cosine", dimension=D,
        backend=backend, store=store, flat_max=8, threads=1,
    )  # fmt: skip
    loaded = placed(load(ref, store, backend, "cosine"), backend)
    shard = Shard(
        shard_id,
        dimension=D,
        metric="cosine",
        recall=0.95,
        backend=backend,
        manifest=Manifest(shard_id, 0, 0, 0, ()),
    )
    shard.adopt(replace(shard.snapshot.manifest, version=1, segments=(ref,), sealed=1), [loaded])
    shard.apply(message([("d7", 9_000, None, ""), ("new", 9_001, [vectors[7]], "{}")], D), 1)
    emulated.searches.clear()

    def ask(**more) -> list[str]:
        found = shard.search(ShardQuery(shard_id, vectors[7:8], 10, **more)).hits[0]
        return [hit.document_id for hit in found]

    found = ask()
    assert found[0] == "new" and "d7" not in found and len(found) == 10
    assert len(emulated.searches) == 1 and emulated.searches[0].take > 10, (
        "one row is deleted, so more than ten are fetched"
    )
    assert all(int(name[1:]) % 2 == 0 for name in ask(filter=Filter.parse({"even": True})))
    assert ask(exact=True)[0] == "new" and len(emulated.searches) == 1
