"""★ The only file that constructs everything: settings in, roles out.

Roles do not know what runs them.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
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
    from ingest.run import Ingest
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
"""How long a role that starts waits for the log: brokers may start beside it, or be restarted just now."""
LOG_AGAIN_S: Final = 0.5
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

    Waits up to `log_wait_s` for the log.

    Raises ConfigurationError if the audit key is missing. With `audit_key_optional`, only writing
    an audit record does.
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
    usable_data(s.data)  # tenants' documents lie in it
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
            if time.monotonic() + LOG_AGAIN_S > end:
                raise
            time.sleep(LOG_AGAIN_S)
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
    from capacity.report import report
    from capacity.snapshot import Rates, take
    from ingest.embedding.check import check
    from ingest.embedding.gather import GatheringEmbedder
    from ingest.embedding.openai import OpenAIEmbedder
    from query.embedder_look import EmbedderLook
    from query.embedding_cache import CachingEmbedder, EmbeddingCache
    from query.gateway import create_app
    from query.state import Dependencies, open_state
    from tenants.audit import Audit
    from tenants.keys import Keys
    from tenants.recall_history import RecallHistory

    rates = Rates()
    cache = EmbeddingCache(resources.settings.gateway.embedding_cache_bytes_max)
    gathering: list[GatheringEmbedder] = []
    caching: dict[str, CachingEmbedder] = {}

    def embedder_for(model: str) -> CachingEmbedder:
        if model not in caching:
            entry = resources.registry.model(model)
            client = _embedder(resources, entry, embedder_key)
            assert isinstance(client, OpenAIEmbedder), "every kind of embedder is reached over HTTP"
            gathering.append(GatheringEmbedder(client))
            caching[model] = CachingEmbedder(gathering[-1], entry, cache)
        return caching[model]

    def keep_recent_queries(of: Generation, vectors: Floats) -> None:
        resources.manifests.recent_queries.keep(of.tenant, of.collection, of.model, vectors)

    reranker = _reranker(resources.settings, embedder_key)

    async def close_embedders() -> None:
        for each in (*gathering, look, *((reranker,) if reranker else ())):
            await each.aclose()

    look = EmbedderLook(resources.settings.embedder.url)

    def check_model(model: EmbeddingModel) -> None:
        model_key = resources.settings.embedder.model_keys.get(model.name)
        check(model, model_key=model_key.get_secret_value() if model_key else None)

    async def measure_capacity(asked: "Searchers") -> dict[str, Any]:
        from starlette.concurrency import run_in_threadpool

        stats = await asked.stats()
        taken = await run_in_threadpool(
            take, resources.registry, resources.log, stats, rates, resources.clock.now_ms()
        )
        return report(taken, resources.settings.indexer)

    state = open_state(
        Dependencies(
            registry=resources.registry,
            keys=Keys(
                resources.engine, resources.clock, grace_s=resources.settings.gateway.key_grace_s
            ),
            audit=Audit(resources.engine),
            jobs=resources.jobs,
            log=resources.log,
            searchers=tuple(searchers),
            embedder_for=embedder_for,
            embedder_ready=look.ready,
            measure_capacity=measure_capacity,
            check_model=check_model,
            settings=resources.settings.gateway,
            limits=resources.settings.ingest,
            slots_total=resources.settings.slots,
            clock=resources.clock,
            local_operator=local_operator,
            on_failure=on_failure,
            keep_recent_queries=keep_recent_queries,
            recall_history=RecallHistory(resources.engine, resources.clock),
            close_embedders=close_embedders,
            reranker=reranker,
        )
    )
    return create_app(state)


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
    """Returns the embedder's app over the local models and the optional cross-encoder, calibrated and warm.

    A model whose files are missing on this machine is left out with an event: the other models are needed.
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
    model_key = s.model_keys.get(model.name)
    return open_embedder(
        model, url=s.url, key=key, model_key=model_key.get_secret_value() if model_key else None
    )


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
