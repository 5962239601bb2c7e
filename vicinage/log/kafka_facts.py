"""Partitions and settings of Kafka topics, read from the brokers and cached for FRESH_S."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, for_code

from vicinage.errors import NotFound, Unavailable
from vicinage.log.kafka_clients import connect, open_client
from vicinage.log.kafka_security import unanswered

MESSAGE_BYTES_MAX: Final = 16 << 20
"""`max.message.bytes` of the topics that the platform creates."""
FRESH_S: Final = 60.0
TOPICS_MAX: Final = 20_000
"""Largest number of cached topics (LRU)."""
DESCRIBED_MAX: Final = 1_000
CALL_MS: Final = 3_000
RETRY_S: Final = 0.5
"""After a failed attempt to reach the brokers, further attempts fail at once for this long."""
SETTINGS_READ: Final = ("max.message.bytes", "cleanup.policy")


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """One topic. A setting is None if the brokers do not let this client read it."""

    partitions: int
    message_bytes_max: int | None = None
    cleanup_policy: str | None = None


def problems(facts: TopicFacts) -> tuple[str, ...]:
    """Returns the invalid settings of a topic, each with the value to set. Pure."""
    found = []
    if compacted(facts):
        found.append(
            f"cleanup.policy={facts.cleanup_policy} drops records that are still needed: set "
            "cleanup.policy=delete"
        )
    if facts.message_bytes_max is not None and facts.message_bytes_max < MESSAGE_BYTES_MAX:
        found.append(
            f"max.message.bytes={facts.message_bytes_max} is less than the largest document:"
            f" set max.message.bytes={MESSAGE_BYTES_MAX}"
        )
    return tuple(found)


def compacted(facts: TopicFacts) -> bool:
    """Returns whether the brokers compact the topic: they then refuse records without a key."""
    return "compact" in (facts.cleanup_policy or "")


class FactsReader:
    """Facts of topics. Safe for many threads; a call waits for others at most twice CALL_MS."""

    def __init__(self, servers: Sequence[str], client: Mapping[str, Any]) -> None:
        self._servers = tuple(servers)
        self._client = dict(client)
        self._lock = threading.Lock()
        """Guards the cache."""
        self._requesting = threading.Lock()
        """Guards the admin client, which refuses more requests than may be in flight."""
        self._admin: KafkaAdminClient | None = None
        self._known: OrderedDict[str, tuple[float, TopicFacts]] = OrderedDict()
        self._retry_at = 0.0
        self._down = False
        """The last attempt failed: one caller at a time retries, and the others fail at once."""
        self._closed = False

    def facts(self, topic: str, *, fresh_s: float = FRESH_S) -> TopicFacts:
        """Returns the topic's facts, at most `fresh_s` old. Raises as `look` does."""
        with self._lock:
            at, found = self._known.get(topic, (float("-inf"), None))
            if found is not None and time.monotonic() - at < fresh_s:
                self._known.move_to_end(topic)
                return found
        return self.look(topic)

    def look(self, topic: str) -> TopicFacts:
        """Reads the topic's facts from the brokers.

        Raises NotFound for a topic that does not exist, and Unavailable if this client may not see
        it or no broker answers within CALL_MS.
        """
        began = time.monotonic()
        if not self._requesting.acquire(timeout=0 if self._down else 2 * CALL_MS / 1000):
            raise Unavailable("no Kafka broker answers", dependency="log")
        try:
            with self._lock:
                at, known = self._known.get(topic, (float("-inf"), None))
            if known is not None and at > began:
                return known  # read by another thread while this one waited
            return self._look(topic)
        finally:
            self._requesting.release()

    def _look(self, topic: str) -> TopicFacts:
        if time.monotonic() < self._retry_at:
            raise Unavailable("no Kafka broker can be reached", dependency="log")
        try:
            connect(self._servers)
            found = self._read(topic)
        except (KafkaError, Unavailable) as error:
            self._retry_at, self._down = time.monotonic() + RETRY_S, True
            if isinstance(error, Unavailable):
                raise
            raise unanswered(self._client, error) from error
        self._down = False
        if isinstance(found, Exception):
            self.forget(topic)
            raise found
        with self._lock:
            self._known[topic] = (time.monotonic(), found)
            self._known.move_to_end(topic)
            while len(self._known) > TOPICS_MAX:
                self._known.popitem(last=False)
        return found

    def problems(self, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Returns `problems` of each topic that has any; none for a topic that does not exist.

        Requests up to DESCRIBED_MAX topics at once. Raises Unavailable if no broker answers.
        """
        found: dict[str, tuple[str, ...]] = {}
        with self._requesting:
            for start in range(0, len(topics), DESCRIBED_MAX):
                try:
                    connect(self._servers)
                    settings = self._settings(topics[start : start + DESCRIBED_MAX])
                except KafkaError as error:
                    raise unanswered(self._client, error) from error
                found |= {
                    topic: wrong for topic, facts in settings.items() if (wrong := problems(facts))
                }
        return found

    def forget(self, topic: str) -> None:
        """Removes the topic from the cache."""
        with self._lock:
            self._known.pop(topic, None)

    def close(self) -> None:
        """Closes the admin client. Idempotent."""
        self._closed = True
        with self._requesting:
            if self._admin is not None:
                self._admin.close()
                self._admin = None

    def _read(self, topic: str) -> TopicFacts | NotFound | Unavailable:
        """Returns the topic's facts, or the error to raise if the brokers do not show the topic."""
        admin = self._administrator()
        [described] = admin.describe_topics([topic])
        error = for_code(described["error_code"])
        if error.__name__ == "UnknownTopicOrPartitionError":
            return NotFound(f"the log has no topic {topic!r}")
        if error.errno != 0:
            return Unavailable(
                f"the brokers do not show topic {topic!r}: {error.__name__}",
                dependency="log",
                retry_after_s=30,
            )
        return replace(self._settings([topic])[topic], partitions=len(described["partitions"]))

    def _settings(self, topics: Sequence[str]) -> dict[str, TopicFacts]:
        """Returns each topic's settings, with 0 partitions; None for one that is not shown."""
        resources = [
            ConfigResource(ConfigResourceType.TOPIC, topic, list(SETTINGS_READ)) for topic in topics
        ]
        described = (
            self._administrator().describe_configs(resources, config_filter="all").get("topic", {})
        )
        found = {}
        for topic in topics:
            values = {name: entry["value"] for name, entry in described.get(topic, {}).items()}
            limit = values.get("max.message.bytes")
            found[topic] = TopicFacts(
                0, None if limit is None else int(limit), values.get("cleanup.policy")
            )
        return found

    def _administrator(self) -> KafkaAdminClient:
        if self._closed:
            raise Unavailable("the log is closed", dependency="log")
        if self._admin is None:
            self._admin = open_client(
                KafkaAdminClient,
                self._servers,
                self._client,
                answer_ms=CALL_MS,
                request_timeout_ms=CALL_MS,
            )
        return self._admin
