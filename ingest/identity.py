"""Headers of the gateway's records: which collection a record was written to, and what a deletion was judged on. Pure.

A name may be deleted and created again. Records that the gateway writes carry the collection's uid in a header. Records
of other producers belong to a collection if they lie at or above the end that their partition had at its creation
(docs/decisions/031-identity-of-collections.md).
"""

from typing import Final

from tenants.entities import Collection
from vicinage.errors import Refused
from vicinage.log import LogRecord, Record

UID_HEADER: Final = "vicinage-collection-uid"
JUDGED_HEADER: Final = "vicinage-judged-version"
"""On a deletion by filter: the version of the document that passed (docs/decisions/032-deletions-by-filter.md)."""
VERSION_DIGITS: Final = 19


def header_of(collection: Collection) -> tuple[str, bytes]:
    """Returns the header that binds a record to this creation of the collection."""
    return UID_HEADER, collection.uid.encode()


def mismatch(record: LogRecord, collection: Collection) -> str | None:
    """Returns why the record was not written to this collection; None if it was."""
    uid = _header(record.record, UID_HEADER)
    if uid is not None:
        return None if uid == collection.uid.encode() else "it was written to an earlier collection of this name"
    offsets, partition = collection.first_offsets, record.partition
    if partition < len(offsets) and record.offset < offsets[partition]:
        return "it was written before this collection was created"
    return None


def names_another(record: Record, collection: Collection) -> bool:
    """Returns whether the record's header names another collection: it need not be parsed to know that."""
    uid = _header(record, UID_HEADER)
    return uid is not None and uid != collection.uid.encode()


def judged_header(version: int) -> tuple[str, bytes]:
    """Returns the header of a deletion that holds for this version of its document, and older ones, alone."""
    return JUDGED_HEADER, str(version).encode()


def judged_version(record: Record, own: int) -> int:
    """Returns the version that a deletion was judged on; `own`, that of its record, for one without condition.

    Raises Refused for a header that is no version, or not one of an earlier record.
    """
    value = _header(record, JUDGED_HEADER)
    if value is None:
        return own
    version = int(value) if value.isdigit() and len(value) <= VERSION_DIGITS else own
    if version >= own:
        raise Refused(f"the header {JUDGED_HEADER} is not the version of an earlier document", field="headers")
    return version


def _header(record: Record, wanted: str) -> bytes | None:
    return next((value for name, value in record.headers if name == wanted), None)
