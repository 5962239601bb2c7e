"""What could not be taken, with the reason, the position and the original bytes, readable by its tenant."""

import base64
from collections.abc import Sequence
from typing import Any, Final

import orjson

from tenants.entities import Tenant
from vicinage.log import Log, Record, Stored
from vicinage.records import Rejected

VALUE_BYTES_MAX: Final = 512 << 10
"""Of a larger original, only the beginning is kept, and `value_truncated` says so."""


def append(log: Log, tenant: Tenant, rejected: Sequence[tuple[Stored, Rejected]]) -> None:
    """Write them; durable on return."""
    log.append(tenant.dead_topic, 0, [_record(stored, reason) for stored, reason in rejected])


def read(log: Log, tenant: Tenant, *, after: int = -1, limit: int = 100) -> list[dict[str, Any]]:
    """The letters beyond position `after`, oldest first; each with its own `position`."""
    start = max(after + 1, log.begin(tenant.dead_topic, 0))
    if start >= log.end(tenant.dead_topic, 0):
        return []
    found = log.read(tenant.dead_topic, 0, start, bytes_max=8 << 20)[:limit]
    return [{"position": s.offset, **orjson.loads(s.record.value or b"{}")} for s in found]


def _record(stored: Stored, rejected: Rejected) -> Record:
    value = stored.record.value
    letter = {
        "reason": rejected.reason,
        "field": rejected.field,
        "id": rejected.id,
        "collection": rejected.collection,
        "topic": stored.topic,
        "partition": stored.partition,
        "offset": stored.offset,
        "event_time_ms": stored.record.event_time_ms,
        "key_base64": _base64(stored.record.key),
        "value_base64": _base64(value),
        "value_truncated": value is not None and len(value) > VALUE_BYTES_MAX,
    }
    return Record(orjson.dumps(letter), event_time_ms=stored.record.event_time_ms)


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data[:VALUE_BYTES_MAX]).decode()
