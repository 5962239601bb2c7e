"""The only module that uses Ray: roles as actors, and searchers on other nodes.

Actors are detached and named, so that a gateway that was killed finds them again. Ray restarts an
actor that dies, or whose node dies; its slots then load from the manifests and the log. Until then
answers state what is missing.
"""

import asyncio
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from cluster.state_file import StateFile
from indexer.index.snapshot import StoredDocument
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Unavailable, VicinageError
from vicinage.records import ShardId, ShardQuery, ShardResult
from vicinage.scratch import sweep_scratch
from vicinage.settings import Settings
from vicinage.stats import SearcherStats
from vicinage.telemetry import configure_events, events
from vicinage.threads import EssentialThread, on_thread_death

NAMESPACE: Final = "vicinage"
WATCH_S: Final = 0.5
PING_S: Final = 5.0
START_S: Final = 120.0
SLOTS_CPU: Final = 0.01
"""CPUs that an actor reserves in Ray's scheduler: placement is by node, not by CPU."""
PUBLIC: Final = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
"""Variables that must be set before an actor's process starts.

Ray writes them to world-readable logs.
"""
NOT_FOR_ACTORS: Final = frozenset({"VICINAGE_SUPERVISED", "VICINAGE_KEY"})
_NOT_AUTHENTICATED: Final = (
    "the Ray cluster at {} requires its token: set RAY_AUTH_MODE=token, with the token in"
    " RAY_AUTH_TOKEN or ~/.ray/auth_token"
)
_event = events("cluster")


def run_gateway(settings: Settings, address: str, searchers: int) -> None:
    """Runs the gateway over a Ray cluster: places or finds the actors, then serves.

    Returns after an orderly stop.
    """
    from cluster.health import serve_health
    from cluster.roles import begin, die, internal_key, run_until_signal, serve
    from cluster.wiring import LOG_WAIT_S, build_gateway, open_resources

    begin("gateway")
    connect(address)
    resources = open_resources(settings, log_wait_s=LOG_WAIT_S)
    handles = place(_start(resources.settings), searchers, resources.settings.slots)
    watch = Watch(handles, resources.settings.data / "run" / "actors.json")
    watch.start()
    remote = [h for h in handles.values() if isinstance(h, RaySearcher)]
    app = build_gateway(resources, remote, embedder_key=internal_key(settings), on_failure=die)
    s = resources.settings.gateway
    serve_health(s.host, s.health_port or s.port + 3, app.state.gateway.readiness.parts_threadsafe)
    run_until_signal(
        serve(
            app,
            s.host,
            s.port,
            drain_s=s.drain_s,
            connections=s.connections_max,
            on_stop=app.state.gateway.drain,
        )
    )
    watch.stop()
    remove(handles)
    resources.close()


def connect(address: str) -> None:
    """Joins the cluster at `address`, with the token of Ray's environment if it asks for one.

    Raises Unavailable.
    """
    # Ray would start each worker with the `uv run` that started this process, in a copy of the
    # working directory without uv, so that no actor starts. Each node has the platform installed.
    # Ray reads this variable when it is first imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            logging_level="ERROR",
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError) as error:
        # Ray names the reason only in the text of the cause
        if "AuthenticationError" in f"{error} {error.__cause__}":
            raise Unavailable(_NOT_AUTHENTICATED.format(address), dependency="ray") from error
        raise Unavailable(
            f"no Ray cluster answers at {address}: {error}", dependency="ray"
        ) from error


def place(start: "Start", searchers: int, slots: int) -> dict[str, "RaySearcher | RayRole"]:
    """Starts or finds one embedder, one ingest with indexer, and `searchers` searchers.

    Spreads them over the nodes.
    """
    import ray

    actor = ray.remote(SearcherActor)
    role = ray.remote(RoleActor)
    nodes = sorted(n["NodeID"] for n in ray.nodes() if n["Alive"])
    handles: dict[str, RaySearcher | RayRole] = {}
    for i in range(searchers):
        own = [slot for slot in range(slots) if slot % searchers == i]
        options = _options(f"searcher-{i}", start, nodes[i % len(nodes)])
        handles[f"searcher-{i}"] = RaySearcher(
            f"searcher-{i}", actor.options(**options).remote(start, own), own
        )
    for i, name in enumerate(("embedder", "ingest")):
        options = _options(name, start, nodes[i % len(nodes)])
        handles[name] = RayRole(name, role.options(**options).remote(start, name))
    return handles


def _options(name: str, start: "Start", node: str) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {
        "name": f"{start.environment['VICINAGE_DATA']}/{name}",
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_concurrency": 1_000,
        "num_cpus": SLOTS_CPU,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True),
        "runtime_env": {"env_vars": PUBLIC},
    }


def remove(handles: Mapping[str, "RaySearcher | RayRole"]) -> None:
    """Ends the actors without a restart, for an orderly stop of the platform."""
    import ray

    for handle in handles.values():
        ray.kill(handle.actor, no_restart=True)
    ray.shutdown()


@dataclass(frozen=True, slots=True)
class Start:
    """The variables that an actor on another node needs to build the same settings.

    Passwords and keys are among them. They travel as an argument of the actor, which Ray neither
    logs nor shows.
    """

    environment: Mapping[str, str] = field(repr=False)

    def settings(self) -> Settings:
        """Returns the settings, in the actor's process."""
        os.environ.update(self.environment)
        return Settings()


def _start(settings: Settings) -> Start:
    from cluster.local import as_environment

    given = {
        k: v for k, v in os.environ.items() if k.startswith("VICINAGE_") and k not in NOT_FOR_ACTORS
    }
    return Start({**given, **as_environment(settings)})


class SearcherActor:
    """A searcher of some slots, in its own process on a node."""

    def __init__(self, start: Start, slots: list[int]) -> None:
        from cluster.roles import die
        from cluster.wiring import LOG_WAIT_S, build_searcher, open_resources

        configure_events("searcher")
        on_thread_death(die)
        sweep_scratch()
        self._searcher = build_searcher(
            open_resources(start.settings(), log_wait_s=LOG_WAIT_S), slots, on_failure=die
        )
        self._searcher.start()

    async def ping(self) -> tuple[int, bool]:
        """Returns the process id, and whether the searcher has caught up."""
        return os.getpid(), self._searcher.ready()

    async def search(self, query: ShardQuery, left_s: float) -> ShardResult:
        """See Searcher.search; a deadline crosses machines as the time that is left."""
        return await self._searcher.search(query, Deadline.after(left_s))

    async def reach(self, positions: dict[int, int], left_s: float) -> dict[int, int]:
        """See Searcher.reach."""
        return await self._searcher.reach(positions, Deadline.after(left_s))

    async def document(
        self, shard: ShardId, document_id: str, left_s: float
    ) -> StoredDocument | None:
        """See Searcher.document."""
        return await self._searcher.document(shard, document_id, Deadline.after(left_s))

    async def matching(
        self, shard: ShardId, condition: dict[str, Any], left_s: float, limit: int
    ) -> tuple[tuple[str, int], ...]:
        """See Searcher.matching."""
        return await self._searcher.matching(shard, condition, Deadline.after(left_s), limit=limit)

    async def stats(self, tenant: str | None, collection: str | None) -> SearcherStats:
        """See Searcher.stats."""
        return await self._searcher.stats(tenant, collection)


class RoleActor:
    """Ingest with the indexer, or the embedder, in a process that ends with the role."""

    def __init__(self, start: Start, name: str) -> None:
        from cluster import roles
        from cluster.wiring import LOG_WAIT_S, open_resources

        configure_events(name)
        on_thread_death(roles.die)
        sweep_scratch()
        self._stop = threading.Event()
        settings = start.settings()
        if name == "ingest":
            resources = open_resources(settings, log_wait_s=LOG_WAIT_S)
            key = roles.internal_key(settings)
            work: Any = partial(roles.work_until, self._stop, resources, key)
        else:
            work = partial(roles.serve_embedder, settings)
        EssentialThread(name, work, stopping=self._stop.is_set).start()

    async def ping(self) -> tuple[int, bool]:
        """Returns the process id and True."""
        return os.getpid(), True


class RayRole:
    """A handle of an actor whose liveness is watched."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self.actor = actor
        self.pid: int | None = None
        self.alive = False


class RaySearcher(RayRole):
    """A searcher elsewhere, with the methods of one in this process."""

    def __init__(self, name: str, actor: Any, slots: list[int]) -> None:
        super().__init__(name, actor)
        self.slots = frozenset(slots)

    def ready(self) -> bool:
        """Returns whether the last ping succeeded and reported it ready."""
        return self.alive

    async def search(self, query: ShardQuery, deadline: Deadline) -> ShardResult:
        """See Searcher."""
        found: ShardResult = await self._call(self.actor.search, deadline, query, deadline.left_s())
        return found

    async def reach(self, positions: Mapping[int, int], deadline: Deadline) -> dict[int, int]:
        """See Searcher."""
        reached: dict[int, int] = await self._call(
            self.actor.reach, deadline, dict(positions), deadline.left_s()
        )
        return reached

    async def document(
        self, shard: ShardId, document_id: str, deadline: Deadline
    ) -> StoredDocument | None:
        """See Searcher."""
        found: StoredDocument | None = await self._call(
            self.actor.document, deadline, shard, document_id, deadline.left_s()
        )
        return found

    async def matching(
        self, shard: ShardId, condition: Mapping[str, Any], deadline: Deadline, *, limit: int
    ) -> tuple[tuple[str, int], ...]:
        """See Searcher."""
        found: tuple[tuple[str, int], ...] = await self._call(
            self.actor.matching, deadline, shard, dict(condition), deadline.left_s(), limit
        )
        return found

    async def stats(
        self, tenant: str | None = None, collection: str | None = None
    ) -> SearcherStats:
        """See Searcher."""
        stats: SearcherStats = await self._call(
            self.actor.stats, Deadline.after(PING_S), tenant, collection
        )
        return stats

    async def _call(self, method: Any, deadline: Deadline, *arguments: Any) -> Any:
        """Calls the actor.

        Raises Unavailable at once if it is known to be unreachable or dies during the call.
        """
        import ray

        if not self.alive:
            raise Unavailable(f"{self.name} is unreachable", dependency="searcher")
        try:
            return await asyncio.wait_for(method.remote(*arguments), deadline.left_s())
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.name} did not answer in time", dependency="searcher"
            ) from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, VicinageError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            self.alive = False
            raise Unavailable(
                f"{self.name} is unreachable: {type(error).__name__}", dependency="searcher"
            ) from error


class Watch:
    """Pings every actor periodically, and writes the process ids to a file for operators."""

    def __init__(self, handles: Mapping[str, RayRole], path: Path) -> None:
        self._handles = handles
        self._file = StateFile(path)
        self._before = self._file.read()
        """The actors that the previous gateway recorded; actors outlive a gateway."""
        self._stop = threading.Event()
        self._threads = [
            EssentialThread(f"watch-{h.name}", partial(self._watch, h), stopping=self._stop.is_set)
            for h in handles.values()
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stops the threads and removes the file."""
        self._stop.set()
        self._file.remove()

    def _watch(self, handle: RayRole) -> None:
        import ray

        while not self._stop.is_set():
            try:
                pid, ready = ray.get(handle.actor.ping.remote(), timeout=PING_S)
            except (ray.exceptions.RayError, TimeoutError) as error:
                if handle.alive:
                    reason = type(error).__name__
                    _event.error("actor.disconnected", actor=handle.name, reason=reason)
                handle.alive = False
            else:
                handle.pid, handle.alive = pid, ready
            self._file.settle(lambda: known_actors(self._before, self._handles.values()))
            self._stop.wait(WATCH_S)


def known_actors(before: Mapping[str, Any], handles: Iterable[RayRole]) -> dict[str, Any]:
    """Returns the process id of each actor.

    It is the actor's own answer, or else the entry of the file before this gateway started.
    """
    found = {h.name: {"pid": h.pid} if h.pid is not None else before.get(h.name) for h in handles}
    return {name: entry for name, entry in found.items() if entry}
