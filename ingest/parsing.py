"""Schedules parsing by turns among tenants, charged like all other work (guarantee 7).

The thread that reads records also parses them if they are few, which takes about a millisecond.
Larger batches, and the batches of a tenant whose last one took long, are queued here. Tenants take
turns by weight. A turn parses one job of a partition. It is charged the milliseconds of the
partition's previous turn.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from ingest.workers import Workers
from tenants.entities import CLASS_WEIGHT, Tenant
from vicinage.arrow_stream import claimed_of
from vicinage.fair import FairQueue
from vicinage.log import LogRecord, TopicPartition
from vicinage.wire import ARROW

THREADS: Final = 2
"""All threads share the interpreter lock: more of them would slow everything else."""
LIGHT_BYTES: Final = 32 << 10
"""Records of up to this many bytes together, decompressed, are parsed by the thread that reads."""
HEAVY_S: Final = 0.02
"""A tenant whose records took longer than this to parse is heavy."""
HEAVY_FOR_S: Final = 5.0
"""Seconds that a tenant stays heavy; meanwhile all its records are queued."""
TENANTS_MAX: Final = 10_000
QUANTUM: Final = 16
"""Milliseconds of a turn."""
ITEMS_MAX: Final = 1 << 31
"""Never reached: a partition is queued at most once."""


def bytes_of(records: Sequence[LogRecord]) -> int:
    """Returns the bytes of the records; an Arrow stream counts its claimed decompressed size.

    Stops counting beyond LIGHT_BYTES.
    """
    total = 0
    for record in records:
        value = record.record.value or b""
        arrow = dict(record.record.headers).get("content-type") == ARROW.encode()
        total += max(record.size(), claimed_of(value) if arrow and len(value) <= LIGHT_BYTES else 0)
        if total > LIGHT_BYTES:
            break
    return total


class Parsing:
    """Threads that parse, by turns among tenants. Safe for many threads.

    `turn` parses one job of a partition, and returns whether another can follow now.
    """

    def __init__(self, turn: Callable[[TopicPartition], bool], workers: Workers) -> None:
        self._turn = turn
        self._workers = workers
        self._queue: FairQueue[tuple[TopicPartition, Tenant]] = FairQueue(
            items_max=ITEMS_MAX, quantum=QUANTUM
        )
        self._busy: set[TopicPartition] = set()
        self._heavy: dict[str, float] = {}
        self._changed = threading.Condition()
        self._started = self._stopped = False

    def partitions(self) -> set[TopicPartition]:
        """Returns the partitions that wait or are being parsed."""
        with self._changed:
            return set(self._busy)

    def is_light(self, tenant: str, records: Sequence[LogRecord]) -> bool:
        """Returns whether the thread that reads may parse these records."""
        if self._heavy and self._heavy.get(tenant, 0.0) > time.monotonic():
            return False
        return bytes_of(records) <= LIGHT_BYTES

    def took(self, tenant: str, seconds: float) -> None:
        """Records how long parsing a tenant's records took."""
        if seconds < HEAVY_S:
            return
        now = time.monotonic()
        with self._changed:
            if len(self._heavy) >= TENANTS_MAX:
                self._heavy = {name: until for name, until in self._heavy.items() if until > now}
            self._heavy[tenant] = now + HEAVY_FOR_S

    def put(self, tp: TopicPartition, tenant: Tenant) -> None:
        """Queues the partition, so that its next job is parsed in its tenant's turn.

        A no-op if the partition is queued already.
        """
        with self._changed:
            if tp in self._busy:
                return
            self._busy.add(tp)
            self._offer(tp, tenant, 1)
            if not self._started:
                self._started = True
                for _ in range(THREADS):
                    self._workers.start(self._work)
            self._changed.notify()

    def stop(self) -> None:
        """Stops the threads after their current turns. Idempotent."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _offer(self, tp: TopicPartition, tenant: Tenant, cost: int) -> None:
        self._queue.put(tenant.name, [((tp, tenant), cost)], weight=CLASS_WEIGHT[tenant.priority])

    def _work(self) -> None:
        while (queued := self._next()) is not None:
            tp, tenant = queued
            began = time.monotonic()
            more = self._turn(tp)
            seconds = time.monotonic() - began
            self.took(tenant.name, seconds)
            with self._changed:
                if more and not self._stopped:
                    self._offer(tp, tenant, max(1, round(1_000 * seconds)))
                    self._changed.notify()
                else:
                    self._busy.discard(tp)

    def _next(self) -> tuple[TopicPartition, Tenant] | None:
        with self._changed:
            while not self._stopped:
                if queued := self._queue.take(1):
                    return queued[0]
                self._changed.wait()
            return None
