"""The log on Apache Kafka, through kafka-python; no other module imports Kafka for the log.

Law 2: with acks=all and an idempotent producer, `append` returns when the broker has acknowledged
every record. Where a data team writes in transactions, only committed records are read. Group
positions are stored in Kafka as a hint; correctness depends neither on them nor on transactions.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, Self, TypeVar

from vicinage.errors import NotFound, Refused, Unavailable
from vicinage.log import LogRecord, Record, TopicPartition, check_start
from vicinage.log.kafka_clients import connect, open_client
from vicinage.log.kafka_facts import MESSAGE_BYTES_MAX
from vicinage.log.kafka_producer import KafkaAppender
from vicinage.log.kafka_reader import CALL_MS, DEADLINE_S, KafkaReader
from vicinage.log.kafka_security import client_options, macs, or_refused
from vicinage.log.kafka_topics import Topic, Topics
from vicinage.log.mac import Macs
from vicinage.settings import KafkaSettings

COORDINATOR_MOVES: Final = (
    "CoordinatorNotAvailableError",
    "CoordinatorLoadInProgressError",
    "NotCoordinatorError",
)
T = TypeVar("T")
SLICE_MS: Final = 500
"""How long a call about one partition may delay other calls that use the same client."""
LEADER_WAIT_S: Final = 0.05
"""Pause before the offsets of a partition without a known leader are looked up again."""
COMMITTED_EVERY_S: Final = 0.005
COMMITTED_EVERY_MAX_S: Final = 0.05
"""Interval at which a wait polls for a commit, because brokers do not announce commits.

The interval grows from COMMITTED_EVERY_S to COMMITTED_EVERY_MAX_S.
"""

logging.getLogger("kafka").setLevel(logging.CRITICAL)


class _Shared:
    """One client for many threads, made when first needed.

    A call that hangs delays only the other callers of this client.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._client: Any = None
        self._lock = threading.Lock()

    @contextmanager
    def using(self) -> Iterator[Any]:
        """Lends the client to one thread at a time."""
        with self._lock:
            if self._client is None:
                self._client = self._make()
            yield self._client

    def close(self) -> None:
        """Closes the client after the current call ends."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class KafkaLog:
    """A Log on the brokers `host:port[,host:port]`.

    Safe for many threads; each reader belongs to one.
    """

    def __init__(self, servers: str, security: KafkaSettings | None = None) -> None:
        self._servers = servers.split(",")
        self._lock = threading.Lock()
        """Guards the table of groups."""
        self._client = client_options(security) if security is not None else {}
        self._macs = macs(security) if security is not None else Macs()
        self._appender = KafkaAppender(self._servers, self._client)
        self._changes = _Shared(self._new_administrator)
        """Creates, grows, trims and deletes topics; slow (seconds) if a partition has no leader."""
        self._positions = _Shared(self._new_administrator)
        """Reads group positions, often: waits poll through it."""
        self._looker = _Shared(self.consumer)
        """Looks up offsets."""
        self._groups: dict[str, _Shared] = {}
        """The consumers that commit, by group."""
        self._topics = Topics(self._new_administrator)
        self._closed = False

    # topics

    def ensure_topic(
        self, topic: str, partitions: int = 1, *, retention_ms: int | None = None
    ) -> int:
        """See Log."""
        from kafka.errors import TopicAlreadyExistsError

        if found := self._known(topic):
            return found
        configs = {
            "retention.ms": str(-1 if retention_ms is None else retention_ms),
            "max.message.bytes": str(MESSAGE_BYTES_MAX),
        }
        with (
            self._errors("creating a topic"),
            suppress(TopicAlreadyExistsError),
            self._changes.using() as admin,
        ):
            wanted = {topic: {"num_partitions": partitions, "configs": configs}}
            admin.create_topics(wanted, timeout_ms=CALL_MS, wait_for_metadata=True)
        end = time.monotonic() + DEADLINE_S
        while not (found := self._known(topic, fresh=True)):
            if time.monotonic() > end:
                raise Unavailable(
                    f"topic {topic} was created but is not visible yet", dependency="log"
                )
            time.sleep(0.05)
        return found

    def topics(self, prefix: str = "", *, max_age_s: float = 0.0) -> dict[str, int]:
        """See Log. The number of an existing topic may be kafka_topics.LOOK_S old."""
        if prefix and (found := self._known(prefix)):
            return {prefix: found}
        at, every = self._topics.every()
        if time.monotonic() - at > max_age_s:
            every = self._every_topic()
        return {name: t.partitions for name, t in every.items() if name.startswith(prefix)}

    def partitions(self, topic: str) -> int:
        """See Log."""
        with self._errors("listing partitions"):
            found = self._topics.describe(topic)
        if found is None:
            raise NotFound(f"the log has no topic {topic!r}")
        return found.partitions

    def add_partitions(self, topic: str, partitions: int) -> int:
        """See Log."""
        if (found := self.partitions(topic)) >= partitions:
            return found
        with self._errors("adding partitions"), self._changes.using() as admin:
            admin.create_partitions({topic: partitions}, timeout_ms=CALL_MS)
        end = time.monotonic() + DEADLINE_S
        while (found := self.partitions(topic)) < partitions:
            if time.monotonic() > end:
                raise Unavailable(
                    f"partitions of {topic} were added but are not visible yet", dependency="log"
                )
            time.sleep(0.05)
        return found

    def topic_ids(self, prefix: str = "") -> dict[str, str]:
        """See Log. Returns Kafka's topic ids, from the broker.

        Asks about one topic only, if `prefix` is the whole name of a topic.
        """
        with self._errors("looking up a topic"):
            if prefix and (found := self._topics.describe(prefix)) is not None:
                return {prefix: found.id}
        return {name: t.id for name, t in self._every_topic().items() if name.startswith(prefix)}

    def delete_topic(self, topic: str) -> None:
        """See Log."""
        from kafka.errors import UnknownTopicOrPartitionError

        with (
            self._errors("deleting a topic"),
            suppress(UnknownTopicOrPartitionError),
            self._changes.using() as admin,
        ):
            admin.delete_topics([topic], timeout_ms=CALL_MS)
        self._topics.forget()

    def begin(self, topic: str, partition: int) -> int:
        """See Log."""
        return self._offset("beginning_offsets", topic, partition)

    def end(self, topic: str, partition: int) -> int:
        """See Log."""
        return self._offset("end_offsets", topic, partition)

    def extents(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, int]]:
        """See Log. Makes two requests per broker, however many partitions there are."""
        from kafka import TopicPartition as Tp

        counts = {topic: self._count(topic) for topic in {topic for topic, _ in partitions}}
        wanted = [Tp(*tp) for tp in partitions if 0 <= tp[1] < counts[tp[0]]]

        def ask(topics: Mapping[str, Topic] | None) -> dict[TopicPartition, tuple[int, int]]:
            tps = [tp for tp in wanted if topics is None or _has(topics, tp)]
            if not tps:
                return {}
            timeout_ms = SLICE_MS + len(tps)  # time to encode and decode them
            with self._looker.using() as looker:
                firsts = _offsets(looker.beginning_offsets, tps, timeout_ms)
                ends = _offsets(looker.end_offsets, tps, timeout_ms)
            return {(tp.topic, tp.partition): (int(firsts[tp]), int(ends[tp])) for tp in tps}

        with self._errors("looking up offsets"):
            return self._in_slices(ask)

    def disk_bytes(self) -> int | None:
        """See Log. Returns None: brokers store the log."""
        return None

    def keeping(self, topic: str, partition: int, bytes_max: int) -> int:
        """See Log. Returns `begin`: the sizes of records are not known here."""
        del bytes_max
        return self.begin(topic, partition)

    def trim(self, topic: str, partition: int, before: int) -> None:
        """See Log."""
        from kafka import TopicPartition as Tp

        with self._errors("trimming"), self._changes.using() as admin:
            admin.delete_records({Tp(topic, partition): before}, timeout_ms=CALL_MS)

    # writing

    def append(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        """See Log."""
        return self._appender.append(topic, partition, self._macs.sign(topic, partition, records))

    def topic_problems(self, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See Log."""
        return self._appender.problems(topics)

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """See Log."""
        from kafka import OffsetAndMetadata
        from kafka import TopicPartition as Tp

        consumers = self._group(group)

        def ask(topics: Mapping[str, Topic] | None) -> None:
            there = {tp: at for tp, at in positions.items() if topics is None or _has(topics, tp)}
            offsets = {Tp(*tp): OffsetAndMetadata(offset, "", -1) for tp, offset in there.items()}
            with consumers.using() as consumer:
                _retry_while_coordinator_moves(
                    lambda: consumer.commit(offsets, timeout_ms=SLICE_MS)
                )

        with self._errors("committing"):
            self._in_slices(ask)

    def committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """See Log."""
        from kafka import TopicPartition as Tp

        if not partitions:
            return {}
        with self._errors("reading positions"), self._positions.using() as admin:
            asked = {group: [Tp(*tp) for tp in partitions]}
            found = _retry_while_coordinator_moves(lambda: admin.list_group_offsets(asked))[group]
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
            if now >= end or self._closed:
                return False
            time.sleep(
                min(max(COMMITTED_EVERY_S, (now - began) / 10), COMMITTED_EVERY_MAX_S, end - now)
            )

    # reading

    def read(
        self, topic: str, partition: int, start: int, *, bytes_max: int = 4 << 20
    ) -> list[LogRecord]:
        """See Log."""
        log_start, log_end = self.begin(topic, partition), self.end(topic, partition)
        check_start(topic, partition, start, log_start, log_end)
        if start == log_end:
            return []
        reader = self.reader({(topic, partition): start})
        try:
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                if found := reader.poll(bytes_max=bytes_max, wait_s=0.5):
                    return _within(found, bytes_max)
                if halt := reader.halted().get((topic, partition)):
                    raise Refused(halt.reason, field="offset")
                if reader.position(topic, partition) >= reader.readable(topic, partition):
                    return []  # only transaction markers, or a transaction that is still open
        finally:
            reader.close()
        raise Unavailable(
            f"{topic}/{partition}: no record from offset {start} within {DEADLINE_S:.0f} s",
            dependency="log",
        )

    def reader(self, starts: Mapping[TopicPartition, int]) -> KafkaReader:
        """See Log."""
        return KafkaReader(self.consumer, self._topics, self._extent, starts, self._macs.check)

    def _extent(self, topic: str, partition: int) -> tuple[int, int]:
        return self.begin(topic, partition), self.end(topic, partition)

    def close(self) -> None:
        """See Log."""
        self._closed = True
        self._appender.close()
        self._topics.close()
        with self._lock:
            groups = list(self._groups.values())
            self._groups.clear()
        for shared in (self._changes, self._positions, self._looker, *groups):
            shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # clients, made when first needed

    def consumer(self, **more: Any) -> Any:
        """Returns a new KafkaConsumer, which the caller owns. Raises Unavailable."""
        from kafka import KafkaConsumer

        with self._errors("connecting"):
            return open_client(
                KafkaConsumer,
                self._servers,
                self._client,
                answer_ms=CALL_MS,
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                **more,
            )

    def _new_administrator(self) -> Any:
        from kafka import KafkaAdminClient

        return open_client(
            KafkaAdminClient,
            self._servers,
            self._client,
            answer_ms=CALL_MS,
            request_timeout_ms=CALL_MS,
        )

    def _group(self, group: str) -> _Shared:
        with self._lock:
            return self._groups.setdefault(group, _Shared(partial(self.consumer, group_id=group)))

    def _offset(self, which: str, topic: str, partition: int) -> int:
        from kafka import TopicPartition as Tp

        if partition < 0 or (
            partition >= self._known(topic) and partition >= self.partitions(topic)
        ):
            raise NotFound(f"the log has no partition {partition} of a topic {topic!r}")
        tp = Tp(topic, partition)

        def ask(topics: Mapping[str, Topic] | None) -> int:
            if topics is not None and not _has(topics, tp):
                raise NotFound(f"the log has no partition {partition} of a topic {topic!r}")
            with self._looker.using() as looker:
                return int(_offsets(getattr(looker, which), [tp], SLICE_MS)[tp])

        with self._errors("looking up an offset"):
            return self._in_slices(ask)

    def _in_slices(self, ask: Callable[[Mapping[str, Topic] | None], T]) -> T:
        """Returns the result of `ask` within CALL_MS, in short attempts. Raises KafkaTimeoutError.

        kafka-python retries a request about a deleted partition until its timeout, while other
        callers wait for the client. So each attempt is short; from the second on, `ask` receives
        the topics that exist.
        """
        from kafka.errors import KafkaTimeoutError

        end, topics = time.monotonic() + CALL_MS / 1000, None
        while True:
            try:
                return ask(topics)
            except KafkaTimeoutError:
                if time.monotonic() > end:
                    raise
            topics = self._every_topic()

    def _count(self, topic: str) -> int:
        """Returns the topic's number of partitions, from the broker if unknown; 0 without a topic."""
        try:
            return self._known(topic) or self.partitions(topic)
        except NotFound:
            return 0

    def _known(self, topic: str, *, fresh: bool = False) -> int:
        """Returns the topic's number of partitions, from a recent listing or (`fresh`) a new one.

        Returns 0 if there is no such topic.
        """
        found = self._every_topic().get(topic) if fresh else self._topics.lately(topic)
        return found.partitions if found else 0

    def _every_topic(self) -> Mapping[str, Topic]:
        # fails at once if no broker can be reached, not after the client's timeout
        connect(self._servers)
        with self._errors("listing topics"):
            return self._topics.look()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        from kafka.errors import KafkaError, UnknownTopicOrPartitionError

        if self._closed:
            raise Unavailable("the log is closed", dependency="log")
        try:
            yield
        except KafkaError as error:
            if isinstance(error, UnknownTopicOrPartitionError):
                raise NotFound(f"the log has no such topic or partition ({what})") from error
            detail = (
                f"the log is unavailable ({what}): {type(error).__name__} "
                f"{error}{or_refused(self._client)}"
            )
            raise Unavailable(detail, dependency="log") from error


def _has(topics: Mapping[str, Topic], tp: TopicPartition) -> bool:
    found = topics.get(tp[0])
    return found is not None and tp[1] < found.partitions


def _offsets(
    ask: Callable[..., Mapping[Any, int]], tps: Sequence[Any], timeout_ms: int
) -> Mapping[Any, int]:
    """Returns an offset for each partition. Raises KafkaTimeoutError.

    kafka-python asks only about partitions whose leader it knows. It raises KeyError for the
    others: the topic is new to it, or has no leader now. Meanwhile it looks up their leaders, so
    the next attempt succeeds.
    """
    from kafka.errors import KafkaTimeoutError

    try:
        return ask(tps, timeout_ms=timeout_ms)
    except KeyError as unknown:
        time.sleep(LEADER_WAIT_S)
        raise KafkaTimeoutError(f"the leader of {unknown} is not known") from unknown


def _retry_while_coordinator_moves(ask: Callable[[], Any]) -> Any:
    """Returns the result of `ask`, retried for up to CALL_MS while the group's coordinator moves.

    A broker that has just started first answers with such an error.
    """
    end = time.monotonic() + CALL_MS / 1000
    while True:
        try:
            return ask()
        except Exception as error:
            if type(error).__name__ not in COORDINATOR_MOVES or time.monotonic() > end:
                raise
            time.sleep(0.1)


def _within(found: list[LogRecord], bytes_max: int) -> list[LogRecord]:
    """Returns the first records, until their size reaches `bytes_max`; at least one."""
    taken, size = [], 0
    for record in found:
        taken.append(record)
        size += record.size()
        if size >= bytes_max:
            break
    return taken
