"""Parses the records of each partition into jobs while the partition's queue has room."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from ingest.jobs import Job
from ingest.parsing import Parsing
from ingest.partitions import Partitions
from ingest.workers import Workers
from tenants.entities import Tenant
from tenants.positions import PREFIX
from tenants.registry import Registry
from vicinage.errors import NotFound, Unavailable
from vicinage.log import LogRecord, TopicPartition
from vicinage.telemetry import events

_event = events("ingest")


class JobParser:
    """Parses a few records at once, and the others by turns among tenants.

    `route` gets each job. If it raises Unavailable, it gets the job again later.
    """

    def __init__(
        self,
        partitions: Partitions,
        registry: Registry,
        workers: Workers,
        stopping: threading.Event,
        *,
        route: Callable[[Job], None],
    ) -> None:
        self._partitions = partitions
        self._registry = registry
        self._stopping = stopping
        self._route = route
        self._turns = Parsing(self._parse_next, workers)

    def start(
        self, tp: TopicPartition, tenant: Tenant, records: Sequence[LogRecord], jobs: Iterator[Job]
    ) -> None:
        """Parses `records` into `jobs` while the queue has room.

        The partition is paused while unparsed records remain.
        """
        self._partitions.unparsed[tp] = jobs
        if self._turns.is_light(tenant.name, records):
            began = time.monotonic()
            while self._parse_next(tp):
                pass
            self._turns.took(tenant.name, time.monotonic() - began)
        else:
            self._turns.put(tp, tenant)
        if tp in self._partitions.unparsed or not self._partitions.has_room(tp):
            self._partitions.pause(tp)

    def proceed(self) -> None:
        """Continues with the partitions that have unparsed records and room in their queue."""
        for tp in [tp for tp in list(self._partitions.unparsed) if self._partitions.has_room(tp)]:
            try:
                self._turns.put(tp, self._registry.tenant(tp[0].removeprefix(PREFIX)))
            except NotFound:
                self._partitions.unparsed.pop(tp, None)  # deleted since it was read

    def partitions(self) -> set[TopicPartition]:
        """Returns the partitions that wait for a turn or are being parsed."""
        return self._turns.partitions()

    def in_progress(self) -> set[TopicPartition]:
        """Returns the partitions with records that are not parsed yet, or are being parsed."""
        return {*self._partitions.unparsed, *self._turns.partitions()}

    def stop(self) -> None:
        """Stops the threads after their current turns. Idempotent."""
        self._turns.stop()

    def _parse_next(self, tp: TopicPartition) -> bool:
        """Parses and routes the partition's next job; returns whether another can follow now."""
        unparsed = self._partitions.unparsed
        jobs = unparsed.get(tp)
        if jobs is None or not self._partitions.has_room(tp) or self._stopping.is_set():
            return False
        if (job := next(jobs, None)) is None:
            unparsed.pop(tp, None)
            return False
        try:
            self._route(job)
        except Unavailable as error:
            _event.warning("job.route_failed", reason=str(error))
            if tp in unparsed:
                unparsed[tp] = chain([job], jobs)
            return False
        return True
