"""Replays dead letters into the documents log, as new records, once their cause is repaired.

From a record with many documents, only the rejected ones are written again. The others were
accepted and may be newer by now.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from ingest import dead_letters
from tenants.entities import Tenant
from vicinage.errors import Refused
from vicinage.log import Log, Record
from vicinage.records import Position, Token
from vicinage.routing import home_of
from vicinage.wire import ARROW, decode_documents, load_json

PAGE: Final = 100
AT_ONCE_MAX: Final = 500
"""Letters per call; bounds a call to seconds, whatever the topic holds."""
CONTENT_TYPE: Final = "content-type"


@dataclass(frozen=True, slots=True)
class Replayed:
    """Counts of replayed letters and of those without their whole original, and the writes' token.

    `last` is the last requested position. `next` is the first remaining position, None if none
    remains.
    """

    replayed: int
    skipped: int
    token: Token | None
    last: int
    next: int | None


def replay(
    log: Log, tenant: Tenant, first: int, last: int | None, *, partitions: int, now_ms: int
) -> Replayed:
    """Replays the originals of the letters from position `first` to `last`; durable on return.

    Replays at most AT_ONCE_MAX letters. After Unavailable, an unknown number of them is written:
    call again with the same positions.
    """
    end = log.end(tenant.dead_topic, 0)
    last = end - 1 if last is None else min(last, end - 1)
    replayed = skipped = 0
    positions: list[Position] = []
    at = first - 1
    while at < last and replayed + skipped < AT_ONCE_MAX:
        limit = min(PAGE, AT_ONCE_MAX - replayed - skipped)
        letters = [
            each
            for each in dead_letters.read(log, tenant, after=at, limit=limit)
            if each["position"] <= last
        ]
        if not letters:
            at = last
        for letter in letters:
            at = letter["position"]
            records = originals(letter, partitions, now_ms)
            replayed, skipped = replayed + bool(records), skipped + (not records)
            for partition, record in records:
                offsets = log.append(tenant.documents_topic, partition, [record])
                positions.extend(Position(partition, offset) for offset in offsets)
    token = Token.covering(positions) if positions else None
    return Replayed(replayed, skipped, token, last, at + 1 if at < last else None)


def originals(letter: Mapping[str, Any], partitions: int, now_ms: int) -> list[tuple[int, Record]]:
    """Returns the (partition, record) pairs to write again. Pure.

    Returns [] if the letter does not hold its whole original.
    """
    if letter["value_truncated"] or letter["n_rejected"] > len(letter["rejected"]):
        return []
    try:
        key, value = _bytes(letter["key_base64"]), _bytes(letter["value_base64"])
        headers = {name: _bytes(text) for name, text in letter.get("headers", ())}
        if headers.get(CONTENT_TYPE) == ARROW.encode():
            return list(_arrow(letter, value or b"", partitions, now_ms))
        return [_single(key, value, letter["partition"], partitions, now_ms)]
    except (
        Refused,
        ValueError,
        KeyError,
        pa.ArrowException,
    ):  # no document, or no table of documents
        return []


def _single(
    key: bytes | None, value: bytes | None, partition: int, partitions: int, now_ms: int
) -> tuple[int, Record]:
    """Returns a deletion or a JSON document, and its home partition.

    Without a collection and an id, the partition is the letter's, or the last one if that is gone.
    """
    if value is None:
        collection, _, document_id = (key or b"").decode().partition("/")
    else:
        body = load_json(value, field="value")
        named = [body.get(name) for name in ("collection", "id")] if isinstance(body, dict) else []
        collection, document_id = (n if isinstance(n, str) else "" for n in named or ("", ""))
    known = bool(collection and document_id)
    home = home_of(collection, document_id, partitions) if known else min(partition, partitions - 1)
    return home, Record(value, key, event_time_ms=now_ms)


def _arrow(
    letter: Mapping[str, Any], value: bytes, partitions: int, now_ms: int
) -> Iterator[tuple[int, Record]]:
    """Yields the rejected rows of an Arrow stream, by home partition."""
    name, batches = decode_documents(value)
    collection = name or letter["collection"] or ""
    wanted = [r["id"] for r in letter["rejected"]]
    table = pa.Table.from_batches(batches)
    if None not in wanted:
        table = table.filter(
            pc.is_in(table.column("id"), pa.array(wanted, table.schema.field("id").type))
        )
    homes = [home_of(collection, str(i), partitions) for i in table.column("id").to_pylist()]
    for partition in sorted(set(homes)):
        rows = table.filter(pa.array([home == partition for home in homes]))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(rows)
        headers = ((CONTENT_TYPE, ARROW.encode()),)
        yield (
            partition,
            Record(sink.getvalue().to_pybytes(), f"{collection}/".encode(), headers, now_ms),
        )


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
