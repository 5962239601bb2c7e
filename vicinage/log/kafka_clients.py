"""Makes clients of kafka-python that fail fast without a broker, and release everything then."""

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from vicinage.errors import Unavailable

CONNECT_S: Final = 1.0
BACKOFF_MAX_MS: Final = 1_000
"""Longest pause between two attempts to reconnect, and so before a restarted broker is noticed."""


def connect(servers: Sequence[str]) -> None:
    """Opens and closes one TCP connection to any of the servers.

    Raises Unavailable within CONNECT_S a server.
    """
    for server in servers:
        host, _, port = server.rpartition(":")
        with (
            suppress(OSError, ValueError),
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S),
        ):
            return
    raise Unavailable("no Kafka broker can be reached", dependency="log")


def open_client(
    kind: Callable[..., Any],
    servers: Sequence[str],
    security: Mapping[str, Any],
    *,
    answer_ms: int,
    **options: Any,
) -> Any:
    """Returns a client of the kind, once a broker has answered it.

    `kind` is KafkaConsumer, KafkaProducer or KafkaAdminClient. Raises Unavailable at once if no
    broker can be reached, and KafkaError if none answers within `answer_ms`. By default
    kafka-python waits 30 s, and leaks a thread and three descriptors for each client without an
    answer.
    """
    from kafka.net.compat import KafkaNetClient

    opened: list[KafkaNetClient] = []

    def remembered(**given: Any) -> KafkaNetClient:
        opened.append(KafkaNetClient(**given))
        return opened[-1]

    connect(servers)
    try:
        return kind(
            bootstrap_servers=list(servers),
            bootstrap_timeout_ms=answer_ms,
            reconnect_backoff_max_ms=BACKOFF_MAX_MS,
            kafka_client=remembered,
            **security,
            **options,
        )
    except BaseException:
        for each in opened:
            each.close()
        raise
