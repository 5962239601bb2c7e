"""The tail of a searcher: applies the vectors log of its slots to the shards in memory, in order.

For every other shard, it skips the rows and keeps their offsets. A shard joins by reading those
rows alone, and misses none. A watermark is published only when everything below it is
searchable: applied, or found by the search that loads the shard.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from indexer.index.shard import Shard
from indexer.vectors_log import quarantine, readable
from query.searcher.futures import result_within
from query.searcher.skipped_rows import Skipped, SkippedRows
from tenants.provisioning import VECTORS_TOPIC
from vicinage.clock import Clock, Deadline
from vicinage.errors import Corrupt, Refused, Unavailable
from vicinage.log import Halt, Log, LogRecord, TopicPartition, read_between
from vicinage.log.halts import Halts
from vicinage.metrics import counter, gauge, histogram
from vicinage.records import ShardId
from vicinage.telemetry import events
from vicinage.wire import parse_rows_key, rows_key

POLL_S: Final = 0.25
POLL_BYTES: Final = 16 << 20
GAP_MAX: Final = 16
"""Maximum distance of a shard's rows that are read together, with the records between them."""
JOIN_ROUNDS: Final = 20
"""Rounds after which a shard whose rows keep arriving joins while the tail is blocked."""
SINGLE_BYTES: Final = 1 << 20
RETRY_S: Final = 0.5
RESTART_MIN_S: Final = 60.0
"""Minimum run time after which a tail ends if a slot's next records are gone.

Its next start reads the manifests.
"""
LAGS_MAX: Final = 500
"""Number of recent index lags kept per tenant that writes: 16 KB."""

_event = events("searcher")
_applied = counter("vicinage_searcher_applied_passages_total")
_halted = gauge("vicinage_searcher_halted_slots")
_lag = histogram("vicinage_searcher_index_lag_seconds")


class Tail:
    """Applies the vectors log. One thread runs `run`; others may call `join` and `remove`.

    `is_served` returns whether a shard is served, and so its rows are needed.
    """

    def __init__(
        self,
        log: Log,
        slots: Iterable[int],
        clock: Clock,
        is_served: Callable[[ShardId], bool],
    ) -> None:
        self._log = log
        self._slots = frozenset(slots)
        self._clock = clock
        self._is_served = is_served
        self.shards: dict[ShardId, Shard] = {}
        """The shards that receive rows."""
        self._apply_lock = threading.RLock()
        """Held while rows are applied, so that a shard that joins misses none."""
        self._skipped = SkippedRows()
        self._watermarks: dict[int, int] = {}
        self._targets: dict[int, int] = {}
        self._caught_up = threading.Event()
        self._progress = threading.Condition()
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
        with self._progress:
            if self._has_reached(positions):
                return self.watermarks()
            if self._is_unreachable(positions):
                raise _not_read()
            future: Future[None] = Future()
            self._waiters.append((positions, future))
        await result_within(future, deadline, f"slots {sorted(positions)}")
        return self.watermarks()

    def fail_waits(self, error: Exception) -> None:
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
        for round_ in range(JOIN_ROUNDS):  # without the lock; the next reads newer rows
            watermark = self.watermark(slot)
            self._catch_up(shard, sealed, watermark)
            sealed = watermark
            with self._apply_lock:
                if round_ + 1 < JOIN_ROUNDS and self._skipped.summary(shard.id).last >= watermark:
                    continue
                self._catch_up(shard, watermark, self.watermark(slot))
                self.shards[shard.id] = shard
                self._skipped.drop(shard.id)
                return

    def remove(self, shard: ShardId) -> None:
        """Stops applying rows to the shard, and keeps the offsets of its rows that no segment has.

        A no-op if the shard receives no rows.
        """
        with self._apply_lock:
            removed = self.shards.pop(shard, None)
            if removed is not None:
                self._skipped.replace(shard, removed.unsealed())

    def skipped(self, shard: ShardId) -> Skipped:
        """Returns the skipped rows of a shard that is not in memory."""
        return self._skipped.summary(shard)

    def skipped_and_watermark(self, shard: ShardId) -> tuple[Skipped, int]:
        """Returns the shard's skipped rows, and the watermark of its slot that they are below."""
        with self._apply_lock:
            return self.skipped(shard), self.watermark(shard.slot)

    def has_all_skipped(self, shard: ShardId, sealed: int) -> bool:
        """Returns whether the skipped rows include every row of the shard from `sealed` on.

        They lack those before the start of the replay.
        """
        return sealed >= self._skipped.start(shard.slot, 0)

    def read_skipped(self, shard: ShardId, start: int, end: int) -> Iterator[LogRecord]:
        """Yields the shard's messages from `start` to `end` that no segment has.

        Reads the log. Raises Unavailable.
        """
        key = rows_key(shard.tenant, shard.collection, shard.generation)
        return (r for r in self._read_skipped(shard, start, end) if r.record.key == key)

    def drop_skipped_below(self, shard: ShardId, offset: int) -> None:
        """Drops the shard's skipped rows below that offset: segments have them."""
        with self._apply_lock:
            self._skipped.drop_below(shard, offset)

    def drop_skipped(self, is_over: Callable[[ShardId], bool]) -> None:
        """Drops the skipped rows of ended shards.

        These are of deleted collections, and of generations before the live one.
        """
        with self._apply_lock:
            self._skipped.drop_where(is_over)

    def reset_skipped(self) -> None:
        """Drops all skipped rows, because segments may have fewer rows than was assumed.

        A shard that joins reads every record of the log up to the present watermark.
        """
        with self._apply_lock:
            self._skipped.reset(self.watermarks())

    def forget(self, shard: ShardId) -> None:
        """Removes all state of a shard that is no longer served and never will be again."""
        with self._apply_lock:
            self.shards.pop(shard, None)
            self._skipped.drop(shard)

    def drop_figures_except(self, served: Container[str]) -> None:
        """Removes the figures of tenants without a shard here."""
        with self._apply_lock:
            for figures in (self._lags, self._n_replayed):
                for tenant in [t for t in figures if t not in served]:
                    del figures[tenant]

    def _catch_up(self, shard: Shard, start: int, end: int) -> None:
        """Applies the shard's rows from `start` to `end`, which the tail skipped."""
        key = rows_key(shard.id.tenant, shard.id.collection, shard.id.generation)
        for record in self._read_skipped(shard.id, start, end):
            if (
                record.record.key == key
                and (batch := readable(record, shard.dimension)) is not None
            ):
                shard.apply(batch, record.offset)
        shard.advance(end)

    def _read_skipped(self, shard: ShardId, start: int, end: int) -> Iterator[LogRecord]:
        """Yields records from `start` to `end`, including all of the shard's.

        Reads every record from before offsets were kept, then those at the offsets and near them.
        """
        with self._apply_lock:  # one consistent view: dropped offsets are below the next start
            complete_from = min(end, self._skipped.start(shard.slot, end))
            offsets = self._skipped.offsets(shard)
        read = partial(read_between, self._log, VECTORS_TOPIC, shard.slot)
        yield from read(start, complete_from, bytes_max=POLL_BYTES)
        skipped = [at for at in offsets if max(start, complete_from) <= at < end]
        for first, last in _runs(skipped):
            yield from read(first, last + 1, bytes_max=POLL_BYTES if last > first else SINGLE_BYTES)

    # the tail thread

    def begin(self, starts: Mapping[int, int], targets: Mapping[int, int]) -> None:
        """Sets where each slot is read from, and the offset at which it has caught up.

        A shard that joins from now on catches up by itself.
        """
        self._targets = dict(targets)
        self._skipped.reset(starts)
        self._publish(starts)

    def run(self, stop: threading.Event) -> None:
        """Reads every slot from its watermark until `stop` is set."""
        reader = self._log.reader(
            {(VECTORS_TOPIC, slot): start for slot, start in self._watermarks.items()}
        )
        started = self._clock.monotonic()
        try:
            while not stop.is_set():
                try:
                    taken = reader.poll(bytes_max=POLL_BYTES, wait_s=POLL_S)
                except Unavailable as error:
                    _event.warning("log.read_failed", reason=str(error))
                    stop.wait(RETRY_S)
                    continue
                if taken:
                    self._apply_all(taken)
                if new := self._halts.update(reader.halted()):
                    may_restart = self._clock.monotonic() - started > RESTART_MIN_S
                    self._slots_halted(new, may_restart=may_restart)
        finally:
            reader.close()

    def _slots_halted(self, new: Mapping[TopicPartition, Halt], *, may_restart: bool) -> None:
        """Fails waits for slots that are not read.

        Raises Refused if records are gone and `may_restart`: the next start reads the manifests.
        """
        with self._progress:
            unreachable = [w for w in self._waiters if self._is_unreachable(w[0])]
            self._waiters = [w for w in self._waiters if w not in unreachable]
        for _, future in unreachable:
            if future.set_running_or_notify_cancel():
                future.set_exception(_not_read())
        gone = [halt.reason for halt in new.values() if halt.kind == "offset_gone"]
        if gone and may_restart:
            raise Refused(gone[0], field="offset")

    def _is_unreachable(self, positions: Mapping[int, int]) -> bool:
        return any(self._watermarks.get(slot, 0) < positions.get(slot, 0) for slot in self.halted())

    def _apply_all(self, taken: list[LogRecord]) -> None:
        now_ms = self._clock.now_ms()
        last = {record.partition: record.offset + 1 for record in taken}
        with self._apply_lock:
            for record in taken:
                self._apply(record, now_ms)
            self._publish(last)
            self._skipped.enforce_bound(self._watermarks)

    def _apply(self, record: LogRecord, now_ms: int) -> None:
        """Makes a record's rows searchable; quarantines a record that is not a valid message."""
        if record.record.unreadable:  # keeps no offset: others can append any number of them
            quarantine(record, record.record.unreadable)
            return
        try:
            tenant, collection, generation = parse_rows_key(record.record.key or b"")
        except Corrupt as invalid:
            quarantine(record, invalid.detail)
            return
        shard_id = ShardId(tenant, collection, generation, record.partition)
        shard = self.shards.get(shard_id)
        if shard is None:  # the catalog may name it only later
            self._skipped.add(shard_id, record.offset)
            if not self._is_served(shard_id):
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
        self._lags.setdefault(tenant, deque(maxlen=LAGS_MAX)).append(float(lag_ms))
        _lag.observe(lag_ms / 1000)

    def _publish(self, watermarks: Mapping[int, int]) -> None:
        with self._progress:
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
        "a part of the log is not read at present; run `vicinage status` for the reason",
        dependency="searcher",
    )


def _runs(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the first and last of each run of neighbors at most GAP_MAX apart. Pure."""
    first: int | None = None
    for i, at in enumerate(offsets):
        first = at if first is None else first
        if i + 1 == len(offsets) or offsets[i + 1] - at > GAP_MAX:
            yield first, at
            first = None
