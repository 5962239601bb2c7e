"""The gateway's state: every dependency of its routes, built once by `open_state`."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from typing import Final

from query.admission import Admission
from query.answer import QueryEmbedder, SearchPipeline
from query.key_gate import Failures, KeyGate
from query.parsers import Parsers, Writers
from query.quality.freshness import Freshness
from query.quality.recall import KeepRecentQueries, RecallMonitor
from query.quality.recall_history import History
from query.readiness import Readiness
from query.rerank import Reranker
from query.scatter import Searcher, Searchers
from query.turns import Turns
from tenants.audit import Audit
from tenants.entities import EmbeddingModel
from tenants.jobs import Jobs
from tenants.keys import Keys
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.log import Log
from vicinage.settings import GatewaySettings, IngestSettings

TURNS_AT_ONCE: Final = 2
"""Large answers that are encoded at once, in slices between other requests on the event loop."""
FETCHES_AT_ONCE: Final = 16
"""Requests that wait for the content of a large answer at once: fewer than half of the threads."""
FETCHES_OF_ONE_MAX: Final = 2
"""Fetches of one tenant at once (bulkhead).

A hung searcher or topic delays its own tenants only.
"""
MeasureCapacity = Callable[[Searchers], Awaitable[Mapping[str, object]]]
"""Returns the capacity report (capacity/report.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedDependencies:
    """Dependencies that the wiring provides and the routes use as they are."""

    registry: Registry
    keys: Keys
    audit: Audit
    jobs: Jobs
    log: Log
    settings: GatewaySettings
    limits: IngestSettings
    slots_total: int
    clock: Clock
    local_operator: bool = False
    check_model: Callable[[EmbeddingModel], None]
    """Tries a model before it is registered. Raises Refused."""
    measure_capacity: MeasureCapacity
    on_failure: Callable[[BaseException], None] | None = None
    """Called when a background task of the gateway fails."""
    close_embedders: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies(SharedDependencies):
    """The platform's resources and the gateway's options, which the wiring provides."""

    searchers: tuple[Searcher, ...]
    embedder_for: Callable[[str], QueryEmbedder]
    embedder_ready: Callable[[], Awaitable[bool]]
    keep_recent_queries: KeepRecentQueries | None = None
    recall_history: History | None = None
    """Keeps measured recall over a restart."""
    reranker: Reranker | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState(SharedDependencies):
    """The dependencies that the routes share. Their state changes; the set of them does not."""

    searchers: Searchers
    freshness: Freshness
    recall: RecallMonitor
    pipeline: SearchPipeline
    readiness: Readiness
    key_gate: KeyGate
    parsers: Parsers
    writers: Writers
    fetches: Turns
    """Limits reads whose results may be large: documents, lists of collections, dead letters."""
    turns: Turns
    """Limits encoding of large answers.

    A holder never waits for a searcher, the log or a client.
    """

    def drain(self) -> None:
        """Refuses new requests and ends waits for writes; other requests in flight are answered."""
        self.pipeline.admission.drain()
        self.freshness.drain()


def open_state(given: Dependencies) -> GatewayState:
    """Returns the state of a gateway over these dependencies."""
    searchers = Searchers(given.searchers)
    freshness = Freshness(given.log, given.registry, searchers, given.clock)
    recall = _recall(given, searchers)
    return GatewayState(
        **{field.name: getattr(given, field.name) for field in fields(SharedDependencies)},
        searchers=searchers,
        freshness=freshness,
        recall=recall,
        pipeline=_pipeline(given, searchers, freshness, recall),
        readiness=Readiness(
            given.registry, given.log, searchers, given.slots_total, given.embedder_ready
        ),
        key_gate=KeyGate(
            given.keys, Failures(given.settings.key_failures_per_s, given.clock.monotonic)
        ),
        parsers=_parsers(given),
        writers=Writers(),
        fetches=Turns(FETCHES_AT_ONCE, FETCHES_OF_ONE_MAX),
        turns=Turns(TURNS_AT_ONCE),
    )


def _recall(given: Dependencies, searchers: Searchers) -> RecallMonitor:
    return RecallMonitor(
        searchers,
        share=given.settings.recall_sample_share,
        samples_min=given.settings.recall_samples_min,
        cpu_share=given.settings.recall_cpu_share,
        keep=given.keep_recent_queries,
        history=given.recall_history,
    )


def _pipeline(
    given: Dependencies, searchers: Searchers, freshness: Freshness, recall: RecallMonitor
) -> SearchPipeline:
    admission = Admission(
        in_flight_max=given.settings.in_flight_max,
        bodies_bytes_max=given.settings.bodies_bytes_max,
        answers_bytes_max=given.settings.answers_bytes_max,
    )
    return SearchPipeline(
        given.registry, searchers, given.embedder_for, freshness, recall, admission, given.reranker
    )


def _parsers(given: Dependencies) -> Parsers:
    return Parsers(
        processes=given.settings.parse_processes,
        parse_s=given.settings.parse_s,
        memory_bytes=given.settings.parse_memory_bytes,
        on_failure=given.on_failure,
    )
