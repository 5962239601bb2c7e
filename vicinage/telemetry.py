"""Structured events: one JSON object per line on stderr."""

import logging
import sys
import threading
from typing import Any, Final, TextIO

import structlog

from vicinage.metrics import counter

_lost: Final = counter("vicinage_events_lost_total")


def configure_events(role: str, *, level: int = logging.INFO) -> None:
    """Sends this process's structured events to stderr, one JSON object per line, with the role."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: EventWriter(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)


class EventWriter:
    """Writes events to a stream, one per line. Counts and drops an event that cannot be written.

    It never raises: threads that serve and recover write events, and a full disk must not end them.
    """

    _lock = threading.Lock()

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        """Writes the line."""
        try:
            with self._lock:
                self._stream.write(message + "\n")
                self._stream.flush()
        except (OSError, ValueError):  # the disk is full, or the stream is closed at process exit
            _lost.inc()

    log = debug = info = warning = error = critical = exception = fatal = msg


def events(component: str) -> Any:
    """Returns the event writer of a component: `events("ingest").info("step.done")`.

    It is bound lazily: modules make it at import, before `configure_events`.
    """
    return structlog.get_logger(component=component)
