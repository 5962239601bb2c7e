"""The limits of a GPU, decided without one."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.backends import gpu_limits
from indexer.backends.gpu_limits import (
    CLASSIC,
    CUVS,
    DeviceSearch,
    builds,
    by_free_bytes,
    device_bytes,
    device_search,
    parts_for,
    serves,
)
from tenants.index_spec import IndexSpec

KINDS = ("flat", "hnsw", "ivf", "ivfpq", "rabitq")
ALL = {"n": 100_000, "n_allowed": 100_000}


@pytest.mark.parametrize(
    ("limits", "kind", "k", "width", "expected"),
    [
        (CLASSIC, "flat", 10, None, DeviceSearch(10, 0)),
        (CLASSIC, "flat", 2_048, None, DeviceSearch(2_048, 0)),
        (CLASSIC, "flat", 2_049, None, None),
        (CUVS, "flat", 2_049, None, DeviceSearch(2_049, 0)),
        (CUVS, "flat", 16_385, None, None),
        (CLASSIC, "ivf", 10, 2_049, None),
        (CUVS, "ivf", 10, 2_049, DeviceSearch(10, 2_049)),
        (CLASSIC, "ivfpq", 10, 64, DeviceSearch(120, 64)),
        (CLASSIC, "ivfpq", 100, 200, None),
        (CUVS, "hnsw", 10, 16, DeviceSearch(10, 32)),
        (CUVS, "hnsw", 100, 65, DeviceSearch(100, 128)),
        (CUVS, "hnsw", 1_000, 1_024, DeviceSearch(1_000, 1_024)),
        (CUVS, "hnsw", 10, 1_025, None),
    ],
)
def test_a_search_above_a_limit_goes_to_the_cpu(limits, kind, k, width, expected) -> None:
    assert device_search(kind, limits, k=k, width=width, lists=4_096, **ALL) == expected


def test_a_search_probes_at_most_the_lists_of_the_index() -> None:
    assert device_search("ivf", CLASSIC, k=10, width=9_999, lists=256, **ALL) == DeviceSearch(
        10, 256
    )


def test_deleted_rows_are_overfetched_and_a_filter_goes_to_the_cpu() -> None:
    ask = device_search("flat", CUVS, k=100, width=None, n=10_000, n_allowed=9_500)
    assert ask is not None and ask.take == 100 + 7 + 8
    assert device_search("flat", CUVS, k=10, width=None, n=10_000, n_allowed=8_999) is None
    assert device_search("flat", CUVS, k=10, width=None, n=10_000, n_allowed=0) is None
    assert device_search("hnsw", CUVS, k=10, width=None, n=10_000, n_allowed=10_000) is None, (
        "exact is cheaper there"
    )


@given(
    kind=st.sampled_from(KINDS[:4]), k=st.integers(1, 20_000), width=st.integers(1, 20_000),
    n=st.integers(1, 10**6), dead=st.floats(0, 1), limits=st.sampled_from([CLASSIC, CUVS]),
)  # fmt: skip
def test_no_search_exceeds_a_limit_and_each_may_yield_k(kind, k, width, n, dead, limits) -> None:
    n_allowed = n - int(n * dead)
    ask = device_search(kind, limits, k=k, width=width, n=n, n_allowed=n_allowed, lists=5_000)
    if ask is not None:
        assert max(ask.take, ask.width) <= (1_024 if kind == "hnsw" else limits.candidates_max)
        assert ask.take >= min(k, n_allowed)
        assert kind != "hnsw" or (ask.width >= ask.take and ask.width % 32 == 0)


@given(d=st.integers(1, 4_096))
def test_every_dimension_is_split_into_parts_that_faiss_supports(d: int) -> None:
    assert d % parts_for(d) == 0 and parts_for(d) in gpu_limits.PARTS


def test_usual_dimensions_have_parts_of_four_numbers_where_faiss_supports_it() -> None:
    assert {d: parts_for(d) for d in (24, 128, 256, 384, 768, 1_024, 1_536)} == {
        24: 8, 128: 32, 256: 64, 384: 96, 768: 96, 1_024: 64, 1_536: 96,
    }  # fmt: skip


def test_what_a_device_builds_and_serves() -> None:
    specs = [IndexSpec(kind) for kind in KINDS]  # type: ignore[arg-type]
    assert [s.kind for s in specs if builds(s, 100_000, CUVS)] == ["hnsw", "ivf", "ivfpq"]
    assert [s.kind for s in specs if builds(s, 100_000, CLASSIC)] == ["ivf", "ivfpq"]
    assert not any(builds(s, gpu_limits.BUILD_ROWS_MIN - 1, CUVS) for s in specs)
    assert not builds(IndexSpec("ivf", lists=4_000), 1_000_000, CLASSIC), (
        "more lists than the device can probe"
    )
    assert [k for k in KINDS if serves(k, 100_000, 384, CUVS)] == ["flat", "hnsw", "ivf", "ivfpq"]
    assert [k for k in KINDS if serves(k, 100_000, 384, CLASSIC)] == ["flat", "ivf", "ivfpq"]
    assert not any(serves(k, 100, 384, CUVS) for k in KINDS), "small tenants stay on the CPU"


def test_bytes_on_a_device_by_hand() -> None:
    assert device_bytes(IndexSpec("flat"), 1_000, 100, CUVS) == 1_000 * 404
    assert device_bytes(IndexSpec("hnsw", m=16), 1_000, 98, CUVS) == 1_000 * (400 + 128)
    lists = 100
    assert (
        device_bytes(IndexSpec("ivf", lists=lists), 10_000, 64, CLASSIC)
        == (10_000 + 3_100) * 264 + 2 * lists * 256
    )
    assert device_bytes(IndexSpec("ivf"), 0, 64, CUVS) == 0
    assert device_bytes(IndexSpec("ivfpq", lists=8), 10_000, 64, CUVS) < device_bytes(
        IndexSpec("ivf", lists=8), 10_000, 64, CUVS
    )


@given(rows=st.lists(st.integers(0, 5_000), min_size=1, max_size=40))
def test_the_room_of_lists_is_never_less_than_their_padded_rows(rows: list[int]) -> None:
    """FAISS pads to multiples of 32; cuVS to powers of two from 32, from 1,024 to multiples."""

    def cuvs(n: int) -> int:
        return (
            0
            if n == 0
            else -(-n // 1_024) * 1_024
            if n > 1_024
            else max(32, 1 << (n - 1).bit_length())
        )

    n, lists = sum(rows), len(rows)
    assert gpu_limits.padded_rows(n, lists, CLASSIC) >= sum(-(-r // 32) * 32 for r in rows)
    assert gpu_limits.padded_rows(n, lists, CUVS) >= sum(map(cuvs, rows))


@given(free=st.lists(st.integers(0, 100), min_size=1, max_size=6), need=st.integers(1, 100))
def test_a_segment_goes_to_the_emptiest_device_with_room(free: list[int], need: int) -> None:
    order = by_free_bytes(free, need)
    assert all(free[i] >= need for i in order) and len(order) == sum(n >= need for n in free)
    assert all(free[a] >= free[b] for a, b in pairwise(order))


def test_segments_spread_by_their_bytes() -> None:
    free = [100, 100, 100]
    for need in (60, 50, 40, 30, 30, 30, 20, 10):
        free[by_free_bytes(free, need)[0]] -= need
    assert max(free) - min(free) <= 20
