"""A platform in one process, of real embedded parts, with a small embedder that needs no model."""

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cluster.wiring import Resources, build_searcher, open_resources
from indexer.backends import open_backend
from indexer.run import Indexer
from ingest import intake
from ingest.embedding import Embedder, Lane
from ingest.run import Ingest
from tenants.leases import Leases
from tenants.registry import Registry
from vicinage.clock import Deadline
from vicinage.records import Document, Floats, Passage
from vicinage.settings import GatewaySettings, IndexerSettings, IngestSettings, Settings
from vicinage.tenant_context import TenantContext

DIMENSION = 32


def hash_vector(text: str, dimension: int = DIMENSION) -> Floats:
    """Returns a unit vector for the text: the sum of a direction for each word."""
    total = np.zeros(dimension, np.float64)
    for word in text.lower().split():
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        total += np.random.default_rng(seed).standard_normal(dimension)
    return (total / np.linalg.norm(total)).astype(np.float32)


class HashEmbedder:
    """An embedder that hashes words: texts that share words have similar vectors."""

    model, window_tokens = "all-minilm-l6-v2", 200

    def __init__(self, dimension: int = 384) -> None:
        self.dimension = dimension

    def embed(
        self,
        texts: Sequence[str],
        *,
        tenant: TenantContext,
        lane: Lane = Lane.DOCUMENT,
        deadline: Deadline | None = None,
    ) -> Floats:
        return np.stack([hash_vector(t, self.dimension) for t in texts])

    async def embed_query(self, text: str, *, tenant: TenantContext, deadline: Deadline) -> Floats:
        return hash_vector(text, self.dimension)

    def close(self) -> None:
        return None


class WordChunker:
    """A chunker that splits after every 50 words."""

    def chunk(self, text: str) -> list[Passage]:
        pieces, start = [], 0
        words = text.split()
        for i in range(0, len(words), 50):
            first = text.index(words[i], start)
            end = first
            for word in words[i : i + 50]:
                end = text.index(word, end) + len(word)
            pieces.append(Passage(text[first:end], first, end))
            start = end
        return pieces


def settings(folder: Path, **indexer: Any) -> Settings:
    """Returns settings of a platform in `folder`, with short intervals."""
    return Settings(
        data=folder,
        gateway=GatewaySettings(key_failures_per_s=100_000.0),
        ingest=IngestSettings(discover_s=0.05),
        indexer=IndexerSettings(**{"seal_age_s": 3_600.0, "threads": 1, **indexer}),
    ).resolved()


def make_ingest(
    base: Resources,
    embedder: Embedder | None = None,
    by_model: Mapping[str, Embedder] | None = None,
) -> Ingest:
    return Ingest(
        base.log,
        Registry(base.engine, base.clock),
        lambda name: (by_model or {}).get(name) or embedder or HashEmbedder(),
        lambda _name: WordChunker(),
        base.settings.ingest,
        base.clock,
    )


def make_indexer(
    base: Resources, owner: str = "test", by_model: Mapping[str, Embedder] | None = None
) -> Indexer:
    return Indexer(
        log=base.log,
        registry=Registry(base.engine, base.clock),
        manifests=base.manifests,
        leases=Leases(base.engine, base.clock),
        jobs=base.jobs,
        store=base.store,
        backend=open_backend(),
        settings=base.settings.indexer,
        clock=base.clock,
        owner=owner,
        slots_total=base.settings.slots,
        embed=lambda model, texts, tenant: (
            (by_model or {}).get(model, HashEmbedder()).embed(texts, tenant=TenantContext(tenant))
        ),
    )


@contextmanager
def running(
    base: Resources,
    *,
    indexing: bool = True,
    embedder: Embedder | None = None,
    by_model: Mapping[str, Embedder] | None = None,
) -> Iterator[Any]:
    """Runs ingest, indexer and searcher on `base`; yields the searcher."""
    stop = threading.Event()
    works = [
        make_ingest(base, embedder, by_model).run,
        *([make_indexer(base, by_model=by_model).run] if indexing else []),
    ]
    threads = [threading.Thread(target=work, args=(stop,), daemon=True) for work in works]
    searcher = build_searcher(base)
    searcher.start()
    for thread in threads:
        thread.start()
    try:
        eventually(searcher.ready)
        yield searcher
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
        searcher.stop()


def eventually(true: Any, *, wait_s: float = 15.0) -> None:
    """Returns as soon as `true()` holds; fails after `wait_s`."""
    end = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < end, f"not true within {wait_s} s: {true}"
        time.sleep(0.01)


def resources_in(folder: Path, **indexer: Any) -> Resources:
    return open_resources(settings(folder, **indexer))


def write(base, tenant: str, collection: str, n: int, passages: int) -> None:
    found = base.registry.collection(tenant, collection)
    entries = []
    for i in range(n):
        texts = tuple(f"{collection} {i} {p}" for p in range(passages))
        vectors = [hash_vector(t) for t in texts]
        entries.append(Document(collection, f"d{i}", passages=texts, vectors=np.stack(vectors)))
    intake.accept(base.log, base.registry.tenant(tenant), found, entries, now_ms=1)
