"""The brokers of one log: makes kafka-python's clients, and translates their errors."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vicinage.errors import NotFound, Unavailable
from vicinage.log.kafka_clients import connect, open_client
from vicinage.log.kafka_reader import CALL_MS
from vicinage.log.kafka_security import client_options, or_refused
from vicinage.settings import KafkaSettings


class Brokers:
    """The brokers `host:port[,host:port]`, and the security options of their clients."""

    def __init__(self, servers: str, security: KafkaSettings | None) -> None:
        self.servers = servers.split(",")
        self.options = client_options(security) if security is not None else {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the log was closed."""
        return self._closed

    def close(self) -> None:
        """Makes further calls raise Unavailable."""
        self._closed = True

    def connect(self) -> None:
        """Raises Unavailable at once if no broker can be reached, not after a client's timeout."""
        connect(self.servers)

    def consumer(self, **more: Any) -> Any:
        """Returns a new KafkaConsumer, which the caller owns. Raises Unavailable."""
        from kafka import KafkaConsumer

        with self.errors("connecting"):
            return open_client(
                KafkaConsumer,
                self.servers,
                self.options,
                answer_ms=CALL_MS,
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                **more,
            )

    def administrator(self) -> Any:
        """Returns a new KafkaAdminClient, which the caller owns."""
        from kafka import KafkaAdminClient

        return open_client(
            KafkaAdminClient,
            self.servers,
            self.options,
            answer_ms=CALL_MS,
            request_timeout_ms=CALL_MS,
        )

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turns KafkaError into NotFound or Unavailable; `what` names the action.

        Raises Unavailable if the log is closed.
        """
        from kafka.errors import KafkaError, UnknownTopicOrPartitionError

        if self._closed:
            raise Unavailable("the log is closed", dependency="log")
        try:
            yield
        except KafkaError as error:
            if isinstance(error, UnknownTopicOrPartitionError):
                raise NotFound(f"the log has no such topic or partition ({what})") from error
            cause = f"{type(error).__name__} {error}{or_refused(self.options)}"
            raise Unavailable(
                f"the log is unavailable ({what}): {cause}", dependency="log"
            ) from error


class SharedClient:
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
