"""Positions of consumer groups, stored in Kafka."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from vicinage.log import TopicPartition
from vicinage.log.kafka_brokers import Brokers, SharedClient
from vicinage.log.kafka_lookup import SLICE_MS, Lookup, exists
from vicinage.log.kafka_reader import CALL_MS
from vicinage.log.kafka_topics import Topic

COORDINATOR_MOVES: Final = (
    "CoordinatorNotAvailableError",
    "CoordinatorLoadInProgressError",
    "NotCoordinatorError",
)
COMMITTED_EVERY_S: Final = 0.005
COMMITTED_EVERY_MAX_S: Final = 0.05
"""Interval at which a wait polls for a commit, because brokers do not announce commits.

The interval grows from COMMITTED_EVERY_S to COMMITTED_EVERY_MAX_S.
"""


class GroupPositions:
    """Commits positions, and reads them. Safe for many threads."""

    def __init__(self, brokers: Brokers, lookup: Lookup) -> None:
        self._brokers = brokers
        self._lookup = lookup
        self._lock = threading.Lock()
        """Guards the table of consumers."""
        self._consumers: dict[str, SharedClient] = {}
        """The consumers that commit, by group."""
        self._client = SharedClient(brokers.administrator)
        """Reads positions, often: waits poll through it."""

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """See Log."""
        from kafka import OffsetAndMetadata
        from kafka import TopicPartition as Tp

        consumers = self._consumer(group)

        def store(topics: Mapping[str, Topic] | None) -> None:
            present = {
                tp: at for tp, at in positions.items() if topics is None or exists(topics, tp)
            }
            offsets = {Tp(*tp): OffsetAndMetadata(offset, "", -1) for tp, offset in present.items()}
            with consumers.using() as consumer:
                _retry_while_coordinator_moves(
                    lambda: consumer.commit(offsets, timeout_ms=SLICE_MS)
                )

        with self._brokers.errors("committing"):
            self._lookup.in_slices(store)

    def committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """See Log."""
        from kafka import TopicPartition as Tp

        if not partitions:
            return {}
        with self._brokers.errors("reading positions"), self._client.using() as admin:
            wanted = {group: [Tp(*tp) for tp in partitions]}
            found = _retry_while_coordinator_moves(lambda: admin.list_group_offsets(wanted))[group]
        return {(tp.topic, tp.partition): at.offset for tp, at in found.items() if at.offset >= 0}

    def wait_committed(
        self, group: str, topic: str, partition: int, offset: int, *, wait_s: float
    ) -> bool:
        """See Log."""
        began = time.monotonic()
        end = began + wait_s
        while True:
            if self.committed(group, [(topic, partition)]).get((topic, partition), 0) > offset:
                return True
            now = time.monotonic()
            if now >= end or self._brokers.closed:
                return False
            time.sleep(
                min(max(COMMITTED_EVERY_S, (now - began) / 10), COMMITTED_EVERY_MAX_S, end - now)
            )

    def close(self) -> None:
        """Closes all clients."""
        with self._lock:
            consumers = list(self._consumers.values())
            self._consumers.clear()
        for client in (self._client, *consumers):
            client.close()

    def _consumer(self, group: str) -> SharedClient:
        with self._lock:
            make = partial(self._brokers.consumer, group_id=group)
            return self._consumers.setdefault(group, SharedClient(make))


def _retry_while_coordinator_moves(call: Callable[[], Any]) -> Any:
    """Returns the result of `call`, retried for up to CALL_MS while the group's coordinator moves.

    A broker that has just started first answers with such an error.
    """
    end = time.monotonic() + CALL_MS / 1000
    while True:
        try:
            return call()
        except Exception as error:
            if type(error).__name__ not in COORDINATOR_MOVES or time.monotonic() > end:
                raise
            time.sleep(0.1)
