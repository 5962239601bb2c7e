"""The tail of a searcher: applies the vectors log of its slots to the shards in memory, in order.

For every other shard, it notes the offsets of the rows that it passes. A shard joins by reading
those rows alone, and misses none. A watermark is published only when everything below it is
searchable: applied, or found by the search that loads the shard.
"""

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from indexer.index.shard import Shard
from indexer.vectors_log import quarantine, readable
from query.searcher.passed import Noted, Passed
from tenants.provisioning import VECTORS_TOPIC
from vicinage.clock import Clock, Deadline
from vicinage.errors import Corrupt, DeadlineExceeded, Refused, Unavailable
from vicinage.log import Halt, Log, LogRecord, TopicPartition, read_between
from vicinage.log.halts import Halts
from vicinage.metrics import counter, gauge, histogram
from vicinage.records import ShardId
from vicinage.telemetry import events
from vicinage.wire import parse_rows_key, rows_key

POLL_S: Final = 0.25
POLL_BYTES: Final = 16 << 20
NEAR: Final = 16
"""Maximum distance of a shard's rows that are read together, with the records between them."""
JOIN_TURNS: Final = 20
"""Turns after which a shard whose rows keep arriving joins while the tail is blocked."""
NEAR_BYTES: Final = 1 << 20
RETRY_S: Final = 0.5
ANEW_S: Final = 60.0
"""Minimum run time after which a tail ends if a slot's next records are gone.

Its next start reads the manifests.
"""
LAGS_KEPT: Final = 500
"""Number of recent index lags kept per tenant that writes: 16 KB."""

_event = events("searcher")
_applied = counter("vicinage_searcher_applied_passages_total")
_halted = gauge("vicinage_searcher_halted_slots")
_lag = histogram("vicinage_searcher_index_lag_seconds")


class Tail:
    """Applies the vectors log. One thread runs `run`; others may call `join` and `remove`.

    `serves` returns whether a shard is served, and so its rows are needed.
    """

    def __init__(
        self,
        log: Log,
        slots: Iterable[int],
        clock: Clock,
        serves: Callable[[ShardId], bool],
    ) -> None:
        self._log = log
        self._slots = frozenset(slots)
        self._clock = clock
        self._serves = serves
        self.shards: dict[ShardId, Shard] = {}
        """The shards that receive rows."""
        self._writing = threading.RLock()
        """Held while rows are applied, so that a shard that joins misses none."""
        self._passed = Passed()
        self._watermarks: dict[int, int] = {}
        self._targets: dict[int, int] = {}
        self._caught_up = threading.Event()
        self._reached = threading.Condition()
        self._waiters: list[tuple[Mapping[int, int], Future[None]]] = []
        self._halts = Halts(_event, _halted)
        self._n_applied = 0
        self._lags: dict[str, deque[float]] = {}
        self._n_replayed: Counter[str] = Counter()

    # progress: any thread

    def caught_up(self) -> bool:
        """Returns whether everything that was in the log at the start is searchable."""
        return self._caught_up.is_set()

    def watermarks(self) -> dict[int, int]:
        """Returns slot → the offset up to which everything is searchable."""
        return dict(self._watermarks)

    def watermark(self, slot: int) -> int:
        """Returns the watermark of one slot; 0 before the start."""
        return self._watermarks.get(slot, 0)

    def applied(self) -> int:
        """Returns the number of passages made searchable, without those in the log at the start."""
        return self._n_applied

    def lags_ms(self, tenant: str | None = None) -> dict[str, tuple[float, ...]]:
        """Returns recent index lags per tenant, or of one tenant, newest last.

        Only messages after those in the log at the start count.
        """
        every = (
            list(self._lags.items()) if tenant is None else [(tenant, self._lags.get(tenant, ()))]
        )
        return {name: tuple(recent) for name, recent in every if recent}

    def replayed(self, tenant: str | None = None) -> dict[str, int]:
        """Returns the number of messages per tenant that were in the log at the start.

        The time when each was first searchable is not known.
        """
        every = dict(self._n_replayed)
        return every if tenant is None else {name: n for name, n in every.items() if name == tenant}

    def halted(self) -> dict[int, Halt]:
        """Returns slot → why its part of the vectors log is not read."""
        return {slot: halt for (_, slot), halt in self._halts.known().items()}

    async def reach(self, positions: Mapping[int, int], deadline: Deadline) -> dict[int, int]:
        """Waits until every slot's watermark reaches its position; returns all watermarks.

        Raises DeadlineExceeded, and Unavailable if a slot below its position is not being read.
        """
        with self._reached:
            if self._has_reached(positions):
                return self.watermarks()
            if self._is_hopeless(positions):
                raise _not_read()
            future: Future[None] = Future()
            self._waiters.append((positions, future))
        await within(future, deadline, f"slots {sorted(positions)}")
        return self.watermarks()

    def give_up(self, error: Exception) -> None:
        """Fails all waits for positions with `error`."""
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(error)

    # shards that receive rows: any thread

    def join(self, shard: Shard, sealed: int) -> None:
        """Brings a shard from `sealed` up to its slot's watermark, and then applies every new row.

        The shard must be complete up to `sealed`.
        """
        slot = shard.id.slot
        for turn in range(JOIN_TURNS):  # reads without the lock; the next turn reads newer rows
            reached = self.watermark(slot)
            self._catch_up(shard, sealed, reached)
            sealed = reached
            with self._writing:
                if turn + 1 < JOIN_TURNS and self._passed.noted(shard.id)[1] >= reached:
                    continue
                self._catch_up(shard, reached, self.watermark(slot))
                self.shards[shard.id] = shard
                self._passed.forget(shard.id)
                return

    def remove(self, shard: ShardId) -> None:
        """Stops applying rows to the shard, and notes the offsets of its rows that no segment has.

        A no-op if the shard receives no rows.
        """
        with self._writing:
            held = self.shards.pop(shard, None)
            if held is not None:
                self._passed.put(shard, held.unsealed())

    def sealed(self, shard: ShardId, below: int) -> None:
        """Notes that segments have a shard's rows below that offset. For shards not in memory."""
        with self._writing:
            self._passed.sealed(shard, below)

    def noted(self, shard: ShardId) -> Noted:
        """Returns what was noted of a shard that is not in memory."""
        return self._passed.noted(shard)

    def noted_up_to(self, shard: ShardId) -> tuple[int, Noted]:
        """Returns the watermark of the shard's slot, and what was noted of the shard below it."""
        with self._writing:
            return self.watermark(shard.slot), self.noted(shard)

    def knows_all(self, shard: ShardId, sealed: int) -> bool:
        """Returns whether every row of the shard from `sealed` on was noted.

        Rows before the start of the replay were not.
        """
        return sealed >= self._passed.begun(shard.slot, 0)

    def missed(self, shard: ShardId, start: int, end: int) -> Iterator[LogRecord]:
        """Yields the shard's messages from `start` to `end` that no segment has.

        Reads the log. Raises Unavailable.
        """
        key = rows_key(shard.tenant, shard.collection, shard.generation)
        return (s for s in self._missed(shard, start, end) if s.record.key == key)

    def forget(self, shard: ShardId) -> None:
        """Removes all state of a shard that is no longer served and never will be again."""
        with self._writing:
            self.shards.pop(shard, None)
            self._passed.forget(shard)

    def forget_others(self, is_over: Callable[[ShardId], bool]) -> None:
        """Removes the notes of ended shards.

        These are of deleted collections, and of generations before the live one.
        """
        with self._writing:
            self._passed.forget_where(is_over)

    def forget_tenants(self, served: Container[str]) -> None:
        """Removes the figures of tenants without a shard here."""
        with self._writing:
            for figures in (self._lags, self._n_replayed):
                for tenant in [t for t in figures if t not in served]:
                    del figures[tenant]

    def forget_what_passed(self) -> None:
        """Forgets what was noted, because segments may have fewer rows than was noted.

        A shard that joins reads every record of the log up to the present watermark.
        """
        with self._writing:
            self._passed.begin(self.watermarks())

    def _catch_up(self, shard: Shard, start: int, end: int) -> None:
        """Applies the shard's rows from `start` to `end`, which the tail has already passed."""
        key = rows_key(shard.id.tenant, shard.id.collection, shard.id.generation)
        for record in self._missed(shard.id, start, end):
            if (
                record.record.key == key
                and (batch := readable(record, shard.dimension)) is not None
            ):
                shard.apply(batch, record.offset)
        shard.advance(end)

    def _missed(self, shard: ShardId, start: int, end: int) -> Iterator[LogRecord]:
        """Yields records from `start` to `end`, including all of the shard's.

        Reads every record from before rows were noted, then the noted ones and those near them.
        """
        with self._writing:  # one consistent view: forgotten offsets are below the next `begun`
            begun, offsets = min(end, self._passed.begun(shard.slot, end)), self._passed.of(shard)
        read = partial(read_between, self._log, VECTORS_TOPIC, shard.slot)
        yield from read(start, begun, bytes_max=POLL_BYTES)
        passed = [at for at in offsets if max(start, begun) <= at < end]
        for first, last in _near(passed):
            yield from read(first, last + 1, bytes_max=POLL_BYTES if last > first else NEAR_BYTES)

    # the tail thread

    def begin(self, starts: Mapping[int, int], targets: Mapping[int, int]) -> None:
        """Sets where each slot is read from, and the offset at which it has caught up.

        A shard that joins from now on catches up by itself.
        """
        self._targets = dict(targets)
        self._passed.begin(starts)
        self._publish(starts)

    def run(self, stop: threading.Event) -> None:
        """Reads every slot from its watermark until `stop` is set."""
        reader = self._log.reader(
            {(VECTORS_TOPIC, slot): start for slot, start in self._watermarks.items()}
        )
        began = self._clock.monotonic()
        try:
            while not stop.is_set():
                try:
                    taken = reader.poll(bytes_max=POLL_BYTES, wait_s=POLL_S)
                except Unavailable as away:
                    _event.warning("the log is away", reason=str(away))
                    stop.wait(RETRY_S)
                    continue
                if taken:
                    self._apply_all(taken)
                if new := self._halts.update(reader.halted()):
                    self._stand_still(new, anew=self._clock.monotonic() - began > ANEW_S)
        finally:
            reader.close()

    def _stand_still(self, new: Mapping[TopicPartition, Halt], *, anew: bool) -> None:
        """Fails waits for slots that are not read.

        Raises Refused if records are gone and `anew`: the role's next start reads the manifests.
        """
        with self._reached:
            hopeless = [w for w in self._waiters if self._is_hopeless(w[0])]
            self._waiters = [w for w in self._waiters if w not in hopeless]
        for _, future in hopeless:
            if future.set_running_or_notify_cancel():
                future.set_exception(_not_read())
        gone = [halt.reason for halt in new.values() if halt.kind == "offset_gone"]
        if gone and anew:
            raise Refused(gone[0], field="offset")

    def _is_hopeless(self, positions: Mapping[int, int]) -> bool:
        return any(self._watermarks.get(slot, 0) < positions.get(slot, 0) for slot in self.halted())

    def _apply_all(self, taken: list[LogRecord]) -> None:
        now_ms = self._clock.now_ms()
        last = {record.partition: record.offset + 1 for record in taken}
        with self._writing:
            for record in taken:
                self._apply(record, now_ms)
            self._publish(last)
            self._passed.bound(self._watermarks)

    def _apply(self, record: LogRecord, now_ms: int) -> None:
        """Makes a record's rows searchable; quarantines a record that is not a valid message."""
        if record.record.unreadable:  # before any note: others can append any number of them
            quarantine(record, record.record.unreadable)
            return
        try:
            tenant, collection, generation = parse_rows_key(record.record.key or b"")
        except Corrupt as stranger:
            quarantine(record, stranger.detail)
            return
        of = ShardId(tenant, collection, generation, record.partition)
        shard = self.shards.get(of)
        if shard is None:  # the catalog may name it only later
            self._passed.add(of, record.offset)
            if not self._serves(of):
                return
        batch = readable(record, shard.dimension if shard is not None else None)
        if batch is None:
            return
        if shard is not None:
            shard.apply(batch, record.offset)
        if record.offset < self._targets.get(record.partition, 0):
            self._n_replayed[tenant] += 1
            return
        self._n_applied += batch.num_rows
        _applied.inc(batch.num_rows)
        lag_ms = max(0, now_ms - record.record.event_time_ms)
        self._lags.setdefault(tenant, deque(maxlen=LAGS_KEPT)).append(float(lag_ms))
        _lag.observe(lag_ms / 1000)

    def _publish(self, watermarks: Mapping[int, int]) -> None:
        with self._reached:
            for slot, offset in watermarks.items():
                self._watermarks[slot] = max(self._watermarks.get(slot, 0), offset)
            if not self._caught_up.is_set() and self._has_reached(self._targets):
                self._caught_up.set()
            done = [w for w in self._waiters if self._has_reached(w[0])]
            self._waiters = [w for w in self._waiters if w not in done and not w[1].done()]
        for _, future in done:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def _has_reached(self, positions: Mapping[int, int]) -> bool:
        return all(self._watermarks.get(slot, 0) >= offset for slot, offset in positions.items())


def _not_read() -> Unavailable:
    return Unavailable(
        "a part of the log is not read at present; `vicinage status` says more",
        dependency="searcher",
    )


def _near(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the first and last of each run of neighbors at most NEAR apart. Pure."""
    first: int | None = None
    for i, at in enumerate(offsets):
        first = at if first is None else first
        if i + 1 == len(offsets) or offsets[i + 1] - at > NEAR:
            yield first, at
            first = None


async def within(future: Future[Any], deadline: Deadline, what: str) -> Any:
    """Returns the future's result within the deadline. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(deadline.left_s()):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise DeadlineExceeded(f"{what} was not done in time", dependency="searcher") from None
