"""Equal scores are ordered by document id and passage at any k; a cosine is at most 1."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import message, unit

from indexer.backends import open_backend
from indexer.index import ties
from indexer.index.rows import newest
from indexer.index.segment import load
from indexer.index.segment_writer import write
from indexer.index.shard import Shard
from tenants.entities import Manifest
from vicinage.records import Hit, ShardId, ShardQuery
from vicinage.store.local import LocalStore

SHARD = ShardId("acme", "docs", 1, 0)
BACKEND = open_backend()
N = 90
ROWS = [(f"d{i * 37 % N:02d}", i + 1, [unit(1)] * (1 + i % 2), "{}") for i in range(N)]


def empty() -> Shard:
    return Shard(
        SHARD,
        dimension=4,
        metric="cosine",
        recall=0.95,
        backend=BACKEND,
        manifest=Manifest(SHARD, 0, 0, 0, ()),
    )


def shard(folder: Path, where: str) -> Shard:
    made = empty()
    batches = [message(ROWS[:30]), message(ROWS[30:])]
    for offset, batch in enumerate(
        batches if where == "delta" else batches[1:] if where == "both" else []
    ):
        made.apply(batch, offset + 2)
    if where != "delta":
        sealed = batches[:1] if where == "both" else batches
        spec = "hnsw" if where == "graph" else "flat"
        store = LocalStore(folder)
        ref = write(
            *newest(sealed), shard=SHARD, spec=spec, metric="cosine", dimension=4,
            backend=BACKEND, store=store, flat_max=8, threads=1,
        )  # fmt: skip
        made.adopt(Manifest(SHARD, 1, 0, 2, (ref,)), [load(ref, store, BACKEND, "cosine")])
    return made


def hits(of: Shard, k: int, **more: object) -> list[tuple[str, int]]:
    found: tuple[Hit, ...] = of.search(ShardQuery(SHARD, unit(1)[None], k, **more)).hits[0]  # type: ignore[arg-type]
    assert all(h.score <= 1 for h in found)
    return [(h.document_id, h.passage) for h in found]


@pytest.mark.parametrize("where", ["delta", "flat", "both", "graph"])
def test_fewer_hits_are_the_first_of_more(tmp_path: Path, where: str) -> None:
    made = shard(tmp_path, where)
    every = sorted(
        (name, passage) for name, _, vectors, _ in ROWS for passage in range(len(vectors))
    )
    for k in (1, 2, 7, 40, 200):
        assert hits(made, k) == every[:k]


def test_lexical_hits_have_the_same_order(tmp_path: Path) -> None:
    made = shard(tmp_path, "both")
    for k in (1, 5, 30):
        query = ShardQuery(SHARD, np.empty((1, 0), np.float32), k, mode="lexical", texts=("text",))
        [found] = made.search(query).lexical
        names = [h.document_id for h in found]
        assert len(names) == k
        scores = [(-h.score, h.document_id, h.passage) for h in found]
        assert scores == sorted(scores)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_the_best_are_those_of_a_whole_sort(scores: list[int], k: int, random: object) -> None:
    names = [(f"d{i}", i % 3) for i in range(len(scores))]
    random.shuffle(names)  # type: ignore[attr-defined]
    addresses = [(0, i) for i in range(len(scores))]
    found = ties.best(np.array(scores, np.float32), addresses, k, lambda address: names[address[1]])
    assert found == sorted(range(len(scores)), key=lambda i: (-scores[i], names[i]))[:k]


def test_a_run_of_equal_scores_is_followed_to_its_end() -> None:
    widths: list[int] = []

    def find(width: int) -> tuple[np.ndarray, np.ndarray]:
        widths.append(width)
        scores = np.array([[2.0, *([1.0] * 20), 0.5, 0.4]], np.float32)[:, :width]
        return scores, np.arange(scores.shape[1])[None]

    _, rows = ties.settled(find, 3, 23)
    assert widths == [4, 16, 23]
    assert rows.shape == (1, 23)
    widths.clear()
    ties.settled(find, 1, 23)
    assert widths == [2]
