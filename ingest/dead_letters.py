"""Dead letters: rejected records with reason, position and original bytes, for their tenant.

A record has one letter, however many of its documents are rejected. The letter holds the bytes
once, and the first REJECTED_MAX reasons. Every part of a letter is bounded, so that a letter has at
most LETTER_BYTES_MAX and a broker accepts it.
"""

import base64
from collections.abc import Sequence
from typing import Any, Final

import orjson
from pydantic import BaseModel, Field, ValidationError

from tenants.entities import Tenant
from vicinage.errors import NotFound, TooLarge, Unavailable
from vicinage.log import Log, LogRecord, Record
from vicinage.records import Rejected
from vicinage.telemetry import events

_event = events("ingest")

OPERATOR_S: Final = 30.0
"""An Unavailable with a `retry_after_s` of at least this needs an operator, not a retry."""
VALUE_BYTES_MAX: Final = 512 << 10
"""A longer original is truncated to this, and `value_truncated` is true."""
KEY_BYTES_MAX: Final = 4 << 10
HEADERS_MAX: Final = 16
REJECTED_MAX: Final = 100
"""Rejected documents of a record that its letter names; `n_rejected` counts all."""
REASON_CHARS_MAX: Final = 500
NAME_CHARS_MAX: Final = 128
"""Characters of an id or a field that a letter keeps."""
LETTER_BYTES_MAX: Final = 2 << 20
NO_LETTER: Final = "this record of the dead-letter topic is not a letter of ingest"
READ_BYTES_MAX: Final = 8 << 20
"""Bytes of letters read at once; the first letter is returned whatever its size."""


class _Named(BaseModel, strict=True):
    reason: str
    field: str | None
    id: str | None


class _Letter(BaseModel, strict=True):
    """A letter as `_record` writes it.

    Letters are validated because any client of a broker without an authorizer can append to the
    topic (decision 019).
    """

    reason: str
    field: str | None
    id: str | None
    collection: str | None
    rejected: list[_Named]
    n_rejected: int
    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)
    event_time_ms: int
    headers: list[tuple[str, str | None]] = []
    key_base64: str | None
    value_base64: str | None
    value_truncated: bool


def append(log: Log, tenant: Tenant, rejected: Sequence[tuple[LogRecord, Rejected]]) -> None:
    """Appends the letters of one partition's records; durable on return.

    Creates a missing dead-letter topic again. If a topic refuses records (its settings or
    permissions need an operator), the letters are lost. The event `dead_letters.lost` names the
    positions, and ingest continues with this tenant and all others. Raises Unavailable while the
    log is unavailable.
    """
    letters: dict[int, tuple[LogRecord, list[Rejected]]] = {}
    for record, reason in rejected:
        letters.setdefault(record.offset, (record, []))[1].append(reason)
    records = [_record(*letters[offset]) for offset in sorted(letters)]
    try:
        try:
            log.append(tenant.dead_topic, 0, records)
        except NotFound:
            log.ensure_topic(tenant.dead_topic, 1)
            log.append(tenant.dead_topic, 0, records)
    except (NotFound, TooLarge, Unavailable) as error:
        if isinstance(error, Unavailable) and error.retry_after_s < OPERATOR_S:
            raise  # the log is unavailable: the job is retried
        first = rejected[0][0]
        _event.error(
            "dead_letters.lost",
            tenant=tenant.name,
            topic=first.topic,
            partition=first.partition,
            offsets=sorted(letters)[:REJECTED_MAX],
            reason=error.detail,
        )


def read(log: Log, tenant: Tenant, *, after: int = -1, limit: int = 100) -> list[dict[str, Any]]:
    """Returns the letters after position `after`, oldest first, each with its own `position`.

    A record that is not a letter of ingest is included with its bytes, without a document to
    replay.
    """
    start = max(after + 1, log.begin(tenant.dead_topic, 0))
    if start >= log.end(tenant.dead_topic, 0):
        return []
    found = log.read(tenant.dead_topic, 0, start, bytes_max=READ_BYTES_MAX)[:limit]
    return [{"position": s.offset, **_content(s.record.value or b"")} for s in found]


def read_one(log: Log, tenant: Tenant, position: int) -> dict[str, Any]:
    """Returns the letter at a position. Raises NotFound."""
    found = read(log, tenant, after=position - 1, limit=1)
    if not found or found[0]["position"] != position:
        raise NotFound(f"there is no dead letter at position {position}")
    return found[0]


def purge(log: Log, tenant: Tenant, last: int) -> int:
    """Removes the letters up to position `last` permanently; returns the number of removed ones."""
    first, end = log.begin(tenant.dead_topic, 0), log.end(tenant.dead_topic, 0)
    before = min(last + 1, end)
    if before <= first:
        return 0
    log.trim(tenant.dead_topic, 0, before)
    return before - first


def _content(value: bytes) -> dict[str, Any]:
    """Returns the letter that a record holds, or a substitute with NO_LETTER if it holds none."""
    try:
        return _Letter.model_validate_json(value).model_dump(mode="json")
    except ValidationError:
        return {
            "reason": NO_LETTER,
            "field": None,
            "id": None,
            "collection": None,
            "rejected": [],
            "n_rejected": 1,
            "topic": None,
            "partition": None,
            "offset": None,
            "event_time_ms": None,
            "headers": [],
            "key_base64": None,
            "value_base64": _base64(value, VALUE_BYTES_MAX),
            "value_truncated": len(value) > VALUE_BYTES_MAX,
        }


def _record(record: LogRecord, rejected: Sequence[Rejected]) -> Record:
    value = record.record.value
    named = [_named(r) for r in rejected[:REJECTED_MAX]]
    letter = {
        **named[0],
        "collection": rejected[0].collection,
        "rejected": named,
        "n_rejected": len(rejected),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "event_time_ms": record.record.event_time_ms,
        "headers": [
            [name, _base64(value, KEY_BYTES_MAX)]
            for name, value in record.record.headers[:HEADERS_MAX]
        ],
        "key_base64": _base64(record.record.key, KEY_BYTES_MAX),
        "value_base64": _base64(value, VALUE_BYTES_MAX),
        "value_truncated": value is not None and len(value) > VALUE_BYTES_MAX,
    }
    # NOTE: letters expire by the record's time, that of the append; the letter holds the
    # original's time, which the producer chose.
    return Record(orjson.dumps(letter))


def _named(rejected: Rejected) -> dict[str, str | None]:
    return {
        "reason": rejected.reason[:REASON_CHARS_MAX],
        "field": rejected.field and rejected.field[:NAME_CHARS_MAX],
        "id": rejected.id and rejected.id[:NAME_CHARS_MAX],
    }


def _base64(data: bytes | None, bytes_max: int) -> str | None:
    return None if data is None else base64.b64encode(data[:bytes_max]).decode()
