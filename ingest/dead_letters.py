"""What could not be taken, with the reason, the position and the original bytes, readable by its tenant.

One letter per record, however many of its documents are rejected: its bytes stand in it once, and the first REJECTED_MAX reasons.
Every part of a letter is bounded, so that it is of at most LETTER_BYTES_MAX whatever was sent: a broker takes it.
"""

import base64
from collections.abc import Sequence
from typing import Any, Final

import orjson

from tenants.entities import Tenant
from vicinage.errors import NotFound, TooLarge, Unavailable
from vicinage.log import Log, Record, Stored
from vicinage.records import Rejected
from vicinage.telemetry import events

_event = events("ingest")

OPERATOR_S: Final = 30.0
"""An Unavailable that says to come back no sooner needs an operator: waiting does not help."""
VALUE_BYTES_MAX: Final = 512 << 10
"""Of a larger original, only the beginning is kept, and `value_truncated` says so."""
KEY_BYTES_MAX: Final = 4 << 10
HEADERS_MAX: Final = 16
REJECTED_MAX: Final = 100
"""Documents of a record that its letter names; `n_rejected` counts all."""
REASON_CHARS_MAX: Final = 500
NAME_CHARS_MAX: Final = 128
"""Of an id or a field."""
LETTER_BYTES_MAX: Final = 2 << 20
READ_BYTES_MAX: Final = 8 << 20
"""Letters read at once; one is given whatever its size."""


def append(log: Log, tenant: Tenant, rejected: Sequence[tuple[Stored, Rejected]]) -> None:
    """Appends the letters of one partition's records; durable on return.

    A dead-letter topic that is gone is created again. One that takes no records (its settings or permissions need an
    operator) gets none: `dead_letters.lost` names the positions, and ingest goes on with this tenant and all others.
    """
    letters: dict[int, tuple[Stored, list[Rejected]]] = {}
    for stored, reason in rejected:
        letters.setdefault(stored.offset, (stored, []))[1].append(reason)
    records = [_record(*letters[offset]) for offset in sorted(letters)]
    try:
        try:
            log.append(tenant.dead_topic, 0, records)
        except NotFound:
            log.ensure_topic(tenant.dead_topic, 1)
            log.append(tenant.dead_topic, 0, records)
    except (NotFound, TooLarge, Unavailable) as error:
        if isinstance(error, Unavailable) and error.retry_after_s < OPERATOR_S:
            raise  # the log is away: the job is done again
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
    """The letters beyond position `after`, oldest first; each with its own `position`."""
    start = max(after + 1, log.begin(tenant.dead_topic, 0))
    if start >= log.end(tenant.dead_topic, 0):
        return []
    found = log.read(tenant.dead_topic, 0, start, bytes_max=READ_BYTES_MAX)[:limit]
    return [{"position": s.offset, **orjson.loads(s.record.value or b"{}")} for s in found]


def read_one(log: Log, tenant: Tenant, position: int) -> dict[str, Any]:
    """Returns the letter at a position. Raises NotFound."""
    found = read(log, tenant, after=position - 1, limit=1)
    if not found or found[0]["position"] != position:
        raise NotFound(f"there is no dead letter at position {position}")
    return found[0]


def purge(log: Log, tenant: Tenant, last: int) -> int:
    """Removes the letters up to position `last`; how many there were. They are gone for good."""
    first, end = log.begin(tenant.dead_topic, 0), log.end(tenant.dead_topic, 0)
    before = min(last + 1, end)
    if before <= first:
        return 0
    log.trim(tenant.dead_topic, 0, before)
    return before - first


def _record(stored: Stored, rejected: Sequence[Rejected]) -> Record:
    value = stored.record.value
    named = [_named(r) for r in rejected[:REJECTED_MAX]]
    letter = {
        **named[0],
        "collection": rejected[0].collection,
        "rejected": named,
        "n_rejected": len(rejected),
        "topic": stored.topic,
        "partition": stored.partition,
        "offset": stored.offset,
        "event_time_ms": stored.record.event_time_ms,
        "headers": [[name, _base64(value, KEY_BYTES_MAX)] for name, value in stored.record.headers[:HEADERS_MAX]],
        "key_base64": _base64(stored.record.key, KEY_BYTES_MAX),
        "value_base64": _base64(value, VALUE_BYTES_MAX),
        "value_truncated": value is not None and len(value) > VALUE_BYTES_MAX,
    }
    # NOTE: the record's time is that of the append, by which letters expire; the original's, which its writer chose, is inside.
    return Record(orjson.dumps(letter))


def _named(rejected: Rejected) -> dict[str, str | None]:
    return {
        "reason": rejected.reason[:REASON_CHARS_MAX],
        "field": rejected.field and rejected.field[:NAME_CHARS_MAX],
        "id": rejected.id and rejected.id[:NAME_CHARS_MAX],
    }


def _base64(data: bytes | None, bytes_max: int) -> str | None:
    return None if data is None else base64.b64encode(data[:bytes_max]).decode()
