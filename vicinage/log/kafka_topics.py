"""The topics of Kafka: their numbers of partitions and their identities.

A background thread lists them every LOOK_S, so that partitions added while the platform runs are
noticed without a request that waits for the broker.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vicinage.errors import Unavailable
from vicinage.threads import EssentialThread

LOOK_S: Final = 2.0
"""Interval of listing topics; longer if a listing takes more than 1/COST_TIMES of the time."""
COST_TIMES: Final = 20
OLD_S: Final = 30.0
"""A listing older than this is not used: the caller lists the topics itself and gets the error."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic: its number of partitions, and its identity.

    A topic that is deleted and created again has another identity.
    """

    partitions: int
    id: str


class Topics:
    """Lists topics, and remembers the last listing. Safe for many threads."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._admin: Any = None
        self._lock = threading.Lock()
        self._seen: tuple[float, Mapping[str, Topic]] = (-1e9, {})
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def lately(self, topic: str) -> Topic | None:
        """Returns the topic as of the last listing, or None if unknown or OLD_S old. No I/O."""
        at, known = self._seen
        return known.get(topic) if time.monotonic() - at < OLD_S else None

    def every(self) -> tuple[float, Mapping[str, Topic]]:
        """Returns the last listing and when it began (monotonic). No I/O."""
        return self._seen

    def look(self) -> Mapping[str, Topic]:
        """Lists the topics now. Raises KafkaError, or Unavailable if it cannot connect."""
        with self._lock:
            began = time.monotonic()
            found = _topics(self._administrator().describe_topics())
            self._seen = (began, found)
        self._watch()
        return found

    def describe(self, topic: str) -> Topic | None:
        """Describes one topic now; returns None if it does not exist. Raises as `look` does."""
        with self._lock:
            found = _topics(self._administrator().describe_topics([topic])).get(topic)
            at, known = self._seen
            if found is not None and topic in known:
                self._seen = (at, {**known, topic: found})
        return found

    def forget(self) -> None:
        """Drops the last listing, so that the next call lists the topics."""
        self._seen = (-1e9, {})

    def close(self) -> None:
        """Ends the thread and the connection. Idempotent."""
        self._closed = True
        self._wake.set()
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def _administrator(self) -> Any:
        if self._admin is None:
            self._admin = self._connect()
        return self._admin

    def _watch(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = EssentialThread("kafka-topics", self._run, stopping=lambda: self._closed)
            self._thread.start()

    def _run(self) -> None:
        from kafka.errors import KafkaError

        pause_s = LOOK_S
        while not self._wake.wait(pause_s):
            began = time.monotonic()
            try:
                self.look()
            except (
                KafkaError,
                Unavailable,
                OSError,
                RuntimeError,
            ):  # RuntimeError: closed meanwhile
                # the last listing ages; after OLD_S callers get the error themselves
                pause_s = LOOK_S
            else:
                pause_s = max(LOOK_S, COST_TIMES * (time.monotonic() - began))


def _topics(described: Iterable[Mapping[str, Any]]) -> dict[str, Topic]:
    """Returns the topics with partitions; one without is being created or deleted, or is absent."""
    return {
        t["name"]: Topic(n, str(t["topic_id"])) for t in described if (n := len(t["partitions"]))
    }
