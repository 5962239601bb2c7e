"""How fresh an answer is, and waiting until it is fresh enough.

A token is positions in the tenant's documents log. Once ingest has committed beyond them, and the
lanes of the generation are beyond them, their rows are in the vectors log (law 3); once the
searchers' watermarks reach the end that the vectors log has then, they are searchable.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from query.scatter import Searchers
from tenants.entities import Generation, Group, IngestLane, Tenant
from tenants.ingested import ingested
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Clock, Deadline
from vicinage.errors import (
    DeadlineExceeded,
    NotFound,
    Overloaded,
    Refused,
    Unavailable,
    VicinageError,
)
from vicinage.log import Log, TopicPartition
from vicinage.records import LATEST, Position, Token
from vicinage.telemetry import events

LAG_FRESH_S: Final = 0.2
"""A lag measured this long ago is said as it is; then it is measured again beside the answers."""
LAG_COST_TIMES: Final = 10
LAG_STALE_S: Final = 1.0
"""A lag older than this is not said any more: the answer waits for a new one."""
LOOK_S: Final = 0.5
"""How often a wait looks whether anybody still waits for it."""
LANE_LOOK_S: Final = (0.02, 0.2)
"""How often a wait looks where a lane of ingest is: often at first, then less."""
LAG_WAIT_S: Final = 0.25
"""How long an answer waits for it; then it says that the lag is not known."""
WAITERS_MAX: Final = 64
WAITERS_OF_ONE_TENANT_MAX: Final = 24
"""So that one tenant whose documents are not ingested leaves room for the others' waits (law 7)."""
_event = events("query")


@dataclass(frozen=True, slots=True)
class _Known:
    lag_ms: int | None
    at: float
    cost_s: float

    def age_s(self) -> float:
        return time.monotonic() - self.at

    def fresh(self) -> bool:
        """Looking takes at most a tenth of the time, where it is dear (on Kafka, while there is a backlog), as long as it is not stale."""
        return self.age_s() < min(max(LAG_FRESH_S, LAG_COST_TIMES * self.cost_s), LAG_STALE_S * 0.8)


@contextmanager
def _named(token: Token) -> Iterator[None]:
    """A deadline that passes in here names the token waited for, so that the next wait goes on with the same."""
    try:
        yield
    except DeadlineExceeded as late:
        late.waited_for = str(token)
        raise


class Freshness:
    """Belongs to one event loop; asks the log on threads of its own."""

    def __init__(self, log: Log, registry: Registry, searchers: Searchers, clock: Clock) -> None:
        self._log = log
        self._registry = registry
        self._lanes = registry.lanes
        self._searchers = searchers
        self._clock = clock
        self._known: dict[tuple[str, str], _Known] = {}
        self._looking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._waiters = ThreadPoolExecutor(WAITERS_MAX, thread_name_prefix="wait-for")
        self._reaching: set[asyncio.Future[None]] = set()
        self._draining = False
        self._waiting: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._lookers = ThreadPoolExecutor(2, thread_name_prefix="freshness")

    async def reach(
        self, token: Token, tenant: Tenant, generation: Generation, deadline: Deadline
    ) -> None:
        """Return when everything up to `token` is searchable in this generation.

        Raises DeadlineExceeded, Overloaded, Unavailable once drained, and Refused for a position
        that the log never gave out.
        """
        reaching = asyncio.ensure_future(self._reach(token, tenant, generation, deadline))
        self._reaching.add(reaching)
        try:
            await reaching
        except asyncio.CancelledError:
            if self._draining:
                raise Unavailable("this gateway is shutting down", dependency="gateway") from None
            raise
        finally:
            self._reaching.discard(reaching)

    async def _reach(
        self, token: Token, tenant: Tenant, generation: Generation, deadline: Deadline
    ) -> None:
        self._count(tenant)
        abandoned = threading.Event()
        waiting = self._waiters.submit(self._ends, token, tenant, generation, deadline, abandoned)
        waiting.add_done_callback(
            partial(self._count_off, tenant)
        )  # its thread is free: not before, whoever went away
        try:
            waited, ends = await asyncio.wrap_future(waiting)
        finally:
            abandoned.set()
        with _named(waited):
            await self._searchers.reach(ends, deadline)

    def drain(self) -> None:
        """Whoever waits, waits elsewhere: raises Unavailable in every `reach` under way.

        Idempotent.
        """
        self._draining = True
        for reaching in self._reaching:
            reaching.cancel()

    def waits(self) -> int:
        """Threads that wait for ingest."""
        return self._waiting.total()

    def _count(self, tenant: Tenant) -> None:
        with self._counting:
            if (
                self._waiting.total() >= WAITERS_MAX
                or self._waiting[tenant.name] >= WAITERS_OF_ONE_TENANT_MAX
            ):
                raise Overloaded("too many searches wait for their writes", retry_after_s=0.5)
            self._waiting[tenant.name] += 1

    def _count_off(self, tenant: Tenant, _waiting: object) -> None:
        with self._counting:
            self._waiting -= Counter([tenant.name])

    def _ends(
        self,
        token: Token,
        tenant: Tenant,
        generation: Generation,
        deadline: Deadline,
        abandoned: threading.Event,
    ) -> tuple[Token, dict[int, int]]:
        """Returns what was waited for, and where the vectors log ended once ingest was beyond it."""
        waited = Token(tuple(self._latest(tenant.documents_topic))) if token == LATEST else token
        with _named(waited):
            self._wait_for_ingest(waited, tenant, generation, deadline, abandoned)
        return waited, {slot: self._log.end(VECTORS_TOPIC, slot) for slot in generation.slots}

    def _wait_for_ingest(
        self,
        token: Token,
        tenant: Tenant,
        generation: Generation,
        deadline: Deadline,
        abandoned: threading.Event,
    ) -> None:
        topic = tenant.documents_topic
        for p in token.positions:
            self._check_given_out(topic, p)
            while not abandoned.is_set() and not self._committed(topic, p, deadline):
                if deadline.passed():
                    ahead = (
                        p.offset
                        + 1
                        - ingested(self._log, self._registry, [(topic, p.partition)]).get(
                            (topic, p.partition), self._log.begin(topic, p.partition)
                        )
                    )
                    raise DeadlineExceeded(
                        f"position {p.partition}-{p.offset} was not ingested in time: {max(1, ahead)} records are to be "
                        f"ingested up to it{self._halted(tenant, p)}",
                        dependency="ingest",
                        ahead=max(1, ahead),
                    )
            self._wait_for_lane(p, tenant, generation, deadline, abandoned)

    def _latest(self, topic: str) -> list[Position]:
        """The last position of each partition of the topic that has one."""
        try:
            partitions = self._log.partitions(
                topic
            )  # as of now: one that was just added may have records
        except NotFound:
            return []
        extents = self._log.extents([(topic, p) for p in range(partitions)])
        return [Position(p, end - 1) for (_, p), (_, end) in extents.items() if end]

    def _halted(self, tenant: Tenant, p: Position) -> str:
        """Returns why ingest does not read the partition, for the tenant; empty where it does."""
        for state in self._registry.positions.not_reading(tenant.name):
            if state.partition == p.partition and state.state == "halted":
                return f": its partition is halted ({state.kind}), until an operator resumes it"
        return ""

    def _committed(self, topic: str, p: Position, deadline: Deadline) -> bool:
        """Whether ingest is beyond it, looked at for a while."""
        wait_s = min(LOOK_S, deadline.left_s())
        if self._log.wait_committed(Group.INGEST, topic, p.partition, p.offset, wait_s=wait_s):
            return True
        tp = (topic, p.partition)
        return (
            ingested(self._log, self._registry, [tp]).get(tp, 0) > p.offset
        )  # the log may have forgotten it

    def _wait_for_lane(
        self,
        p: Position,
        tenant: Tenant,
        generation: Generation,
        deadline: Deadline,
        abandoned: threading.Event,
    ) -> None:
        """Wait until the generation's lane is beyond the position, if it has one there.

        Raises DeadlineExceeded.

        Ingest is committed beyond the position: a lane that still owes its record is in the
        catalog.
        """
        wait_s = LANE_LOOK_S[0]
        while (lane := self._lane_behind(p, tenant, generation)) is not None:
            if deadline.passed():
                raise DeadlineExceeded(
                    f"position {p.partition}-{p.offset} was not ingested in time: "
                    f"documents of {lane.collection!r} wait for the model {lane.model!r}",
                    dependency="ingest",
                    ahead=p.offset + 1 - lane.position,
                )
            if abandoned.wait(min(wait_s, deadline.left_s())):
                return
            wait_s = min(2 * wait_s, LANE_LOOK_S[1])

    def _lane_behind(
        self, p: Position, tenant: Tenant, generation: Generation
    ) -> IngestLane | None:
        lanes = self._lanes.of(tenant.name, generation.collection, [generation.number])
        return next(
            (x for x in lanes if x.partition == p.partition and x.position <= p.offset), None
        )

    def _check_given_out(self, topic: str, position: Position) -> None:
        """A position that does not exist yet is nobody's write: it is refused, and holds up no thread until its deadline."""
        try:
            known = position.offset < self._log.end(topic, position.partition)
        except NotFound:
            known = False
        if not known:
            raise Refused(
                f"wait_for names position {position.partition}-{position.offset}, which no write has",
                field="wait_for",
            )

    async def lag_ms(
        self, tenant: Tenant, generation: Generation, watermarks: Mapping[int, int]
    ) -> int | None:
        """The tenant's freshness lag in this collection, measured at most LAG_STALE_S ago.

        None while it cannot be known: the log is away, or a slot of the collection has no
        watermark.
        """
        if any(slot not in watermarks for slot in generation.slots):
            return None
        name = (tenant.name, generation.collection)
        known = self._known.get(name)
        if known is not None and known.fresh():
            return known.lag_ms
        looking = self._looking.get(name)
        if looking is None:
            looking = self._looking[name] = asyncio.create_task(
                self._look(tenant, generation, watermarks)
            )
        if known is None or known.age_s() > LAG_STALE_S:
            await asyncio.wait((looking,), timeout=LAG_WAIT_S)
            known = self._known.get(name)
        return known.lag_ms if known is not None and known.age_s() < LAG_STALE_S else None

    async def lags_ms(
        self, tenant: Tenant, generations: Sequence[Generation], watermarks: Mapping[int, int]
    ) -> list[int | None]:
        """Returns the lag in each of the tenant's collections, as `lag_ms` does; the log is read once for all of them."""
        names = [(tenant.name, g.collection) for g in generations]
        known = [self._known.get(name) for name in names]
        if len(generations) == 1 or all(k is not None and k.fresh() for k in known):
            return [await self.lag_ms(tenant, g, watermarks) for g in generations]
        began = time.monotonic()
        looking = asyncio.get_running_loop().run_in_executor(
            self._lookers, self.measure_all, tenant, generations, watermarks
        )
        try:
            async with asyncio.timeout(LAG_STALE_S):
                lags = await looking
        except (VicinageError, TimeoutError) as error:
            _event.warning("freshness lag is not known", tenant=tenant.name, reason=str(error))
            return [None] * len(generations)
        cost_s = (time.monotonic() - began) / len(generations)
        self._keep(
            {
                name: _Known(lag, time.monotonic(), cost_s)
                for name, lag in zip(names, lags, strict=True)
            }
        )
        return [
            lag if all(slot in watermarks for slot in g.slots) else None
            for g, lag in zip(generations, lags, strict=True)
        ]

    async def _look(
        self, tenant: Tenant, generation: Generation, watermarks: Mapping[int, int]
    ) -> None:
        name = (tenant.name, generation.collection)
        lag: int | None = None
        began = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            lag = await loop.run_in_executor(
                self._lookers, self.measure, tenant, generation, watermarks
            )
        except VicinageError as error:
            _event.warning("freshness lag is not known", tenant=tenant.name, reason=str(error))
        finally:
            del self._looking[name]
        self._keep({name: _Known(lag, now := time.monotonic(), now - began)})

    def _keep(self, measured: Mapping[tuple[str, str], _Known]) -> None:
        """Keeps what was measured until it is stale."""
        known = {**self._known, **measured}
        self._known = {name: k for name, k in known.items() if k.age_s() < LAG_STALE_S}

    def measure(self, tenant: Tenant, generation: Generation, watermarks: Mapping[int, int]) -> int:
        """Milliseconds since the oldest record that is accepted but not yet searchable; 0 when none waits. Blocks."""
        oldest = min(self._waiting_since(tenant, generation, watermarks), default=None)
        return 0 if oldest is None else max(0, self._clock.now_ms() - oldest)

    def measure_all(
        self, tenant: Tenant, generations: Sequence[Generation], watermarks: Mapping[int, int]
    ) -> list[int]:
        """Returns what `measure` does of each generation.

        Blocks; reads each partition and slot once.
        """
        committed, not_ingested = self._not_ingested(tenant)
        lanes: dict[tuple[str, int], list[IngestLane]] = {}
        for lane in self._lanes.every():
            if lane.tenant == tenant.name:
                lanes.setdefault((lane.collection, lane.generation), []).append(lane)
        slots = {slot for g in generations for slot in g.slots}
        not_applied: dict[tuple[int, str], int] = {}
        for slot in slots & watermarks.keys():
            for name, event_time_ms in self._first_of_each(
                slot, watermarks[slot], tenant.name
            ).items():
                not_applied[slot, name] = event_time_ms
        now_ms = self._clock.now_ms()
        lags: list[int] = []
        for g in generations:
            times = [
                *not_ingested,
                *self._owed(tenant, lanes.get((g.collection, g.number), ()), committed),
            ]
            times.extend(
                not_applied[slot, g.collection]
                for slot in g.slots
                if (slot, g.collection) in not_applied
            )
            lags.append(max(0, now_ms - min(times)) if times else 0)
        return lags

    def _first_of_each(self, slot: int, watermark: int, tenant: str) -> dict[str, int]:
        """Returns the event time of each collection's first message as `_unapplied` does, of all of a tenant's."""
        try:
            if watermark >= self._log.end(VECTORS_TOPIC, slot):
                return {}
        except NotFound:
            return {}
        found: dict[str, int] = {}
        for stored in self._log.read(VECTORS_TOPIC, slot, watermark, bytes_max=1 << 20):
            of, _, rest = (stored.record.key or b"").decode(errors="replace").partition("/")
            if of == tenant:
                found.setdefault(rest.partition("/")[0], stored.record.event_time_ms)
        return found

    def _waiting_since(
        self, tenant: Tenant, generation: Generation, watermarks: Mapping[int, int]
    ) -> list[int]:
        committed, times = self._not_ingested(tenant)
        lanes = self._lanes.of(tenant.name, generation.collection, [generation.number])
        times.extend(self._owed(tenant, lanes, committed))
        for slot, watermark in watermarks.items():
            times.extend(self._unapplied(slot, watermark, tenant.name, generation.collection))
        return times

    def _not_ingested(self, tenant: Tenant) -> tuple[Mapping[TopicPartition, int], list[int]]:
        """Returns ingest's position in each partition, and the event time of the first record beyond it."""
        topic = tenant.documents_topic
        times: list[int] = []
        partitions = self._log.topics(topic).get(topic, 0)
        every = [(topic, p) for p in range(partitions)]
        committed = ingested(self._log, self._registry, every)
        for tp, (first, end) in self._log.extents(every).items():
            place = max(committed.get(tp, 0), first)
            if place < end:
                times.extend(
                    s.record.event_time_ms for s in self._log.read(*tp, place, bytes_max=1)
                )
        return {tp: committed.get(tp, 0) for tp in every}, times

    def _owed(
        self, tenant: Tenant, lanes: Sequence[IngestLane], committed: Mapping[TopicPartition, int]
    ) -> Iterator[int]:
        """Yields the event time of the first record that each lane of a generation still owes."""
        for lane in lanes:
            tp = (tenant.documents_topic, lane.partition)
            place = max(lane.position, self._log.begin(*tp)) if tp in committed else 0
            if place < committed.get(tp, 0):
                yield from (s.record.event_time_ms for s in self._log.read(*tp, place, bytes_max=1))

    def _unapplied(self, slot: int, watermark: int, tenant: str, collection: str) -> list[int]:
        """Event time of this collection's first message at or beyond the watermark, among the next megabyte."""
        try:
            if watermark >= self._log.end(VECTORS_TOPIC, slot):
                return []
        except NotFound:
            return []
        for stored in self._log.read(VECTORS_TOPIC, slot, watermark, bytes_max=1 << 20):
            if (stored.record.key or b"").startswith(f"{tenant}/{collection}/".encode()):
                return [stored.record.event_time_ms]
        return []

    def close(self) -> None:
        """End its threads; no look at the log is under way any more when this returns.

        Idempotent.
        """
        self._waiters.shutdown(wait=False, cancel_futures=True)
        self._lookers.shutdown(wait=True, cancel_futures=True)
