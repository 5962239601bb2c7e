"""Keyed MACs on the records of internal topics, for brokers that let other clients write there.

Pure. The MAC covers topic, partition, key and value. It proves that a process of the platform wrote
the record to this partition. It does not prevent a replay: another client can append a copy of an
old record. The copy's older version makes it harmless, unless its document was deleted and the
deletion forgotten since.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from vicinage.log import LogRecord, Record

HEADER: Final = "vicinage-mac"
INTERNAL_TOPICS: Final = frozenset({"vicinage.vectors"})
"""The topics that only the platform writes and reads."""
KEY_BYTES_MIN: Final = 16
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Macs:
    """Keys of at least KEY_BYTES_MIN bytes: the first signs, each verifies.

    If `required`, a record without a MAC is unreadable.
    """

    keys: tuple[bytes, ...] = ()
    required: bool = False

    def sign(self, topic: str, partition: int, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the records, each with a MAC.

        Returns them unchanged if there are no keys, or if the topic is not internal.
        """
        if not self.keys or topic not in INTERNAL_TOPICS:
            return records
        return [
            replace(r, headers=(*r.headers, (HEADER, _mac(self.keys[0], topic, partition, r))))
            for r in records
        ]

    def check(self, record: LogRecord) -> LogRecord:
        """Returns the record, with `unreadable` set if its MAC is wrong or, if required, missing.

        Checks only records of internal topics.
        """
        if not self.keys or record.topic not in INTERNAL_TOPICS or record.record.unreadable:
            return record
        given = dict(record.record.headers).get(HEADER)
        if given is None and not self.required:
            return record
        if given is not None and any(
            hmac.compare_digest(given, _mac(key, record.topic, record.partition, record.record))
            for key in self.keys
        ):
            return record
        reason = "its MAC is missing" if given is None else "its MAC is of no known key"
        return replace(record, record=replace(record.record, unreadable=reason))


def _mac(key: bytes, topic: str, partition: int, record: Record) -> bytes:
    found = hashlib.blake2b(
        key=hashlib.sha256(key).digest(), digest_size=_DIGEST_BYTES, person=b"vicinage-log"
    )
    for part in (topic.encode(), str(partition).encode(), record.key or b"", record.value or b""):
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()
