"""Decodes messages of the vectors log as rows.

A record that is not a valid message is quarantined: reported, and skipped by every reader.

Any producer with access to the topic can append to it, so records cannot be trusted. All readers
(tail, seal, repair, reindex, counts) decide with `rows_of`, so that they agree on which records
count. A quarantined record stays in the topic, for inspection, until it is trimmed
(`indexer.keep_sealed_s`).
"""

import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import Final

import pyarrow as pa

from vicinage.errors import Corrupt
from vicinage.log import LogRecord
from vicinage.metrics import counter
from vicinage.telemetry import events
from vicinage.wire import decode_rows, is_deletions, parse_rows_key

EVENTS_MAX: Final = 100
"""Most events within EVENTS_S; the counter counts every record."""
EVENTS_S: Final = 60.0

_event = events("indexer")
_quarantined = counter("vicinage_vectors_records_quarantined_total")
_reported: list[float] = []


def rows_of(record: LogRecord, dimension: int | None = None) -> pa.RecordBatch:
    """Returns the rows of a message of the vectors log, fully checked.

    Raises Corrupt if the record is not a valid message. Pure.

    `dimension` is that of the message's generation; None if it is unknown and not checked.
    """
    if record.record.unreadable:
        raise Corrupt(record.record.unreadable, path="vicinage.vectors")
    rows = decode_rows(record.record.value or b"")
    if parse_rows_key(record.record.key or b"") != (rows.tenant, rows.collection, rows.generation):
        raise Corrupt(
            "a vectors message names another generation than its key", path="vicinage.vectors"
        )
    if dimension is not None and not is_deletions(rows.batch):
        found = rows.batch.schema.field("vector").type.list_size
        if found != dimension:
            raise Corrupt(
                f"a vectors message is of dimension {found}, not {dimension}",
                path="vicinage.vectors",
            )
    return rows.batch


def readable(record: LogRecord, dimension: int | None = None) -> pa.RecordBatch | None:
    """Returns the rows of `rows_of`. Quarantines an invalid record and returns None."""
    try:
        return rows_of(record, dimension)
    except Corrupt as corrupt:
        quarantine(record, corrupt.detail)
        return None


def readable_rows(
    records: Iterable[LogRecord], dimension: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of each record that is not quarantined."""
    for record in records:
        batch = readable(record, dimension)
        if batch is not None:
            yield batch


def quarantine(record: LogRecord, reason: str) -> None:
    """Counts and reports a record that every reader skips."""
    _quarantined.inc()
    now = time.monotonic()
    _reported[:] = [at for at in _reported if now - at < EVENTS_S]
    if len(_reported) >= EVENTS_MAX:
        return
    _reported.append(now)
    value = record.record.value or b""
    _event.error(
        "record.quarantined",
        topic=record.topic,
        slot=record.partition,
        offset=record.offset,
        key=repr((record.record.key or b"")[:100]),
        bytes=len(value),
        sha256=hashlib.sha256(value).hexdigest(),
        reason=reason,
    )
