"""★ The only file that constructs everything: settings in, roles out.

Roles do not know what runs them.
"""

import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cluster.configuration import usable_data
from tenants.entities import EmbeddingModel, Generation
from vicinage.clock import SystemClock
from vicinage.errors import Unavailable
from vicinage.records import Floats
from vicinage.settings import Settings
from vicinage.telemetry import events
from vicinage.tenant_context import TenantContext

if TYPE_CHECKING:
    from fastapi import FastAPI
    from sqlalchemy import Engine
    from starlette.applications import Starlette

    from indexer.run import Indexer
    from ingest.chunking import Chunker
    from ingest.embedding import Embedder
    from ingest.embedding.query_batching import BatchingEmbedder
    from ingest.run import Ingest
    from query.embedding_cache import CachingEmbedder
    from query.rerank import TeiReranker
    from query.scatter import Searchers
    from query.searcher.run import Searcher
    from tenants.jobs import Jobs
    from tenants.manifests import Manifests
    from tenants.registry import Registry
    from vicinage.log import Log
    from vicinage.store import Store


T = TypeVar("T")
LOG_WAIT_S: Final = 30.0
"""Longest wait of a starting role for the log: brokers may be starting, too."""
LOG_RETRY_S: Final = 0.5
_event = events("cluster")


@dataclass(frozen=True, slots=True)
class Resources:
    """Log, catalog and store: what every role needs."""

    settings: Settings
    clock: SystemClock
    log: "Log"
    engine: "Engine"
    store: "Store"
    registry: "Registry"
    manifests: "Manifests"
    jobs: "Jobs"

    def close(self) -> None:
        """Closes the log and the catalog."""
        self.log.close()
        self.engine.dispose()


def open_resources(
    settings: Settings, *, audit_key_optional: bool = False, log_wait_s: float = 0.0
) -> Resources:
    """Opens log, catalog (migrated to the newest schema) and store.

    Waits up to `log_wait_s` for the log. Raises ConfigurationError if the audit key is missing;
    with `audit_key_optional`, only writing an audit record raises then.
    """
    from cluster.audit_key import load_key
    from tenants.audit import use_key
    from tenants.jobs import Jobs
    from tenants.manifests import Manifests
    from tenants.registry import Registry
    from tenants.tables import migrate
    from vicinage.catalog import open_catalog
    from vicinage.log import open_log
    from vicinage.store import open_store

    s, clock = settings.resolved(), SystemClock()
    usable_data(s.data)  # it has tenants' documents
    engine = open_catalog(s.catalog_url.get_secret_value())
    migrate(engine)
    use_key(engine, load_key(s, engine, optional=audit_key_optional))
    log = open_log(s.log_url, s.kafka)
    _ensure_vectors(log, s.slots, log_wait_s)
    store = open_store(s.store_url, cache=s.data / "cache", cache_bytes_max=s.store_cache_bytes_max)
    return Resources(
        s,
        clock,
        log,
        engine,
        store,
        Registry(engine, clock),
        Manifests(engine, clock),
        Jobs(engine, clock),
    )


def _ensure_vectors(log: "Log", slots: int, wait_s: float) -> None:
    from tenants.provisioning import ensure_vectors

    end = time.monotonic() + wait_s
    while True:
        try:
            ensure_vectors(log, slots)
        except Unavailable:
            if time.monotonic() + LOG_RETRY_S > end:
                raise
            time.sleep(LOG_RETRY_S)
        else:
            return


def build_searcher(
    resources: Resources,
    slots: Sequence[int] | None = None,
    *,
    on_failure: Callable[[BaseException], None] | None = None,
) -> "Searcher":
    """Returns a searcher of the given slots, by default of all."""
    from indexer.backends import open_backend
    from query.searcher.run import Searcher

    return Searcher(
        range(resources.settings.slots) if slots is None else slots,
        log=resources.log,
        registry=resources.registry,
        manifests=resources.manifests,
        store=resources.store,
        backend=open_backend(resources.settings.searcher.device),
        settings=resources.settings.searcher,
        clock=resources.clock,
        on_failure=on_failure,
    )


def build_gateway(
    resources: Resources,
    searchers: Sequence[Any],
    *,
    embedder_key: str | None,
    local_operator: bool = False,
    on_failure: Callable[[BaseException], None] | None = None,
) -> "FastAPI":
    """Returns the gateway's app over searchers in this process or elsewhere."""
    from query.gateway import create_app
    from query.state import Dependencies, open_state
    from tenants.audit import Audit
    from tenants.keys import Keys
    from tenants.recall_history import RecallHistory

    settings, clock = resources.settings, resources.clock
    embedders = _QueryEmbedders(resources, embedder_key)
    dependencies = Dependencies(
        registry=resources.registry,
        keys=Keys(resources.engine, clock, grace_s=settings.gateway.key_grace_s),
        audit=Audit(resources.engine),
        jobs=resources.jobs,
        log=resources.log,
        searchers=tuple(searchers),
        embedder_for=embedders.of,
        embedder_ready=embedders.ready,
        measure_capacity=_capacity_report(resources),
        check_model=partial(_check_model, settings),
        settings=settings.gateway,
        limits=settings.ingest,
        slots_total=settings.slots,
        clock=clock,
        local_operator=local_operator,
        on_failure=on_failure,
        keep_recent_queries=partial(_keep_recent_queries, resources.manifests),
        recall_history=RecallHistory(resources.engine, clock),
        close_embedders=embedders.aclose,
        reranker=embedders.reranker,
    )
    return create_app(open_state(dependencies))


class _QueryEmbedders:
    """The gateway's clients of embedder and reranker, which share one cache of query vectors."""

    def __init__(self, resources: Resources, key: str | None) -> None:
        from query.embedder_readiness import EmbedderReadiness
        from query.embedding_cache import EmbeddingCache

        self._resources = resources
        self._key = key
        self._cache = EmbeddingCache(resources.settings.gateway.embedding_cache_bytes_max)
        self._clients: dict[str, tuple[BatchingEmbedder, CachingEmbedder]] = {}
        self._readiness = EmbedderReadiness(resources.settings.embedder.url)
        self.reranker = _reranker(resources.settings, key)

    def of(self, model: str) -> "CachingEmbedder":
        """Returns the model's client; creates it at first use."""
        from ingest.embedding.openai import OpenAIEmbedder
        from ingest.embedding.query_batching import BatchingEmbedder
        from query.embedding_cache import CachingEmbedder

        if model not in self._clients:
            entry = self._resources.registry.model(model)
            client = _embedder(self._resources, entry, self._key)
            assert isinstance(client, OpenAIEmbedder), "every kind of embedder is reached over HTTP"
            batching = BatchingEmbedder(client)
            self._clients[model] = batching, CachingEmbedder(batching, entry, self._cache)
        return self._clients[model][1]

    async def ready(self) -> bool:
        """Returns whether the embedder is ready."""
        return await self._readiness.ready()

    async def aclose(self) -> None:
        """Closes the connections of all clients."""
        for batching, _ in self._clients.values():
            await batching.aclose()
        await self._readiness.aclose()
        if self.reranker is not None:
            await self.reranker.aclose()


def _capacity_report(
    resources: Resources,
) -> Callable[["Searchers"], Awaitable[dict[str, Any]]]:
    """Returns the function that measures the capacity report; its rates are since the last call."""
    from capacity.report import report
    from capacity.snapshot import Rates, take

    rates = Rates()

    async def measure(searchers: "Searchers") -> dict[str, Any]:
        from starlette.concurrency import run_in_threadpool

        stats, now_ms = await searchers.stats(), resources.clock.now_ms()
        snapshot = await run_in_threadpool(
            take, resources.registry, resources.log, stats, rates, now_ms
        )
        return report(snapshot, resources.settings.indexer)

    return measure


def _check_model(settings: Settings, model: EmbeddingModel) -> None:
    from ingest.embedding.check import check

    check(model, model_key=settings.embedder.model_key(model.name))


def _keep_recent_queries(manifests: "Manifests", of: Generation, vectors: Floats) -> None:
    manifests.recent_queries.keep(of.tenant, of.collection, of.model, vectors)


def build_ingest(resources: Resources, *, embedder_key: str | None) -> "Ingest":
    """Returns the ingest role.

    Its own view of the catalog is its reindex barrier (docs/concepts/architecture.md).
    """
    from ingest.run import Ingest
    from tenants.registry import Registry

    registry = Registry(resources.engine, resources.clock)
    return Ingest(
        resources.log,
        registry,
        _cached(lambda name: _embedder(resources, registry.model(name), embedder_key)),
        _cached(lambda name: _chunker(resources, registry.model(name))),
        resources.settings.ingest,
        resources.clock,
    )


def build_indexer(resources: Resources, *, embedder_key: str | None) -> "Indexer":
    """Returns the indexer role.

    It refreshes its own view of the catalog, so that it finds models registered later.
    """
    from indexer.backends import open_backend
    from indexer.run import Indexer
    from tenants.leases import Leases
    from tenants.registry import Registry

    registry = Registry(resources.engine, resources.clock)
    embedder_for = _cached(lambda name: _embedder(resources, registry.model(name), embedder_key))
    return Indexer(
        log=resources.log,
        registry=registry,
        manifests=resources.manifests,
        leases=Leases(resources.engine, resources.clock),
        jobs=resources.jobs,
        store=resources.store,
        backend=open_backend(resources.settings.indexer.device),
        settings=resources.settings.indexer,
        clock=resources.clock,
        owner=f"{socket.gethostname()}/{os.getpid()}",
        slots_total=resources.settings.slots,
        embed=partial(_embed_texts, embedder_for),
    )


def build_embedder(
    settings: Settings,
    models: Sequence[EmbeddingModel],
    *,
    key: str | None,
    on_failure: Callable[[BaseException], None] | None = None,
) -> "Starlette":
    """Returns the embedder's app over the local models and the optional cross-encoder.

    The models are calibrated and warm. Omits a model whose files are missing on this machine, with
    an event: the other models are needed.
    """
    from ingest.embedding.local import LocalEmbedder
    from ingest.embedding.reranker import LocalReranker
    from ingest.embedding.server import create_app
    from vicinage.errors import Refused

    reranker = None
    if settings.rerank.model and not settings.rerank.url:
        try:
            reranker = LocalReranker(
                Path(settings.rerank.model), device=settings.embedder.device, on_failure=on_failure
            )
        except Refused as refused:
            _event.error("reranker.not_served", reason=str(refused))
    served: dict[str, LocalEmbedder] = {}
    for model in (m for m in models if m.kind == "local" and not m.retired):
        try:
            served[model.name] = LocalEmbedder(model, settings.embedder, on_failure=on_failure)
        except Refused as refused:
            _event.error("model.not_served", model=model.name, reason=str(refused))
    return create_app(served, key=key, reranker=reranker)


def _reranker(settings: Settings, embedder_key: str | None) -> "TeiReranker | None":
    from query.rerank import TeiReranker

    if settings.rerank.url:
        return TeiReranker(settings.rerank.url, key=settings.rerank.key.get_secret_value() or None)
    return (
        TeiReranker(settings.embedder.url, key=embedder_key, ours=True)
        if settings.rerank.model
        else None
    )


def _embedder(resources: Resources, model: EmbeddingModel, key: str | None) -> "Embedder":
    from ingest.embedding import open_embedder

    s = resources.settings.embedder
    return open_embedder(model, url=s.url, key=key, model_key=s.model_key(model.name))


def _chunker(resources: Resources, model: EmbeddingModel) -> "Chunker":
    from ingest.chunking import open_chunker

    return open_chunker(model, resources.settings.ingest)


def _embed_texts(
    embedder_for: Callable[[str], Any], model: str, texts: Sequence[str], tenant: str
) -> Any:
    return embedder_for(model).embed(texts, tenant=TenantContext(tenant))


def _cached(make: Callable[[str], T]) -> Callable[[str], T]:
    """Returns `make`, called once for each name."""
    made: dict[str, T] = {}
    lock = threading.Lock()

    def get(name: str) -> T:
        with lock:
            if name not in made:
                made[name] = make(name)
            return made[name]

    return get
