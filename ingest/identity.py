"""Headers of the gateway's records: a record's collection, and a deletion's judged version. Pure.

A collection may be deleted and its name created again. Records of the gateway carry the
collection's uid in a header. A record of another producer belongs to a collection if it lies at or
above the end that its partition had at the collection's creation
(docs/decisions/031-collection-identity.md).
"""

from typing import Final

from tenants.entities import Collection
from vicinage.errors import Refused
from vicinage.log import LogRecord, Record

UID_HEADER: Final = "vicinage-collection-uid"
JUDGED_HEADER: Final = "vicinage-judged-version"
"""Header of a deletion by filter: the version of the document that passed the filter.

See docs/decisions/032-deletions-by-filter.md.
"""
VERSION_DIGITS: Final = 19


def header_of(collection: Collection) -> tuple[str, bytes]:
    """Returns the header that binds a record to this creation of the collection."""
    return UID_HEADER, collection.uid.encode()


def mismatch(record: LogRecord, collection: Collection) -> str | None:
    """Returns why the record was not written to this collection; None if it was."""
    uid = _header(record.record, UID_HEADER)
    if uid is not None:
        return (
            None
            if uid == collection.uid.encode()
            else "it was written to an earlier collection of this name"
        )
    offsets, partition = collection.first_offsets, record.partition
    if partition < len(offsets) and record.offset < offsets[partition]:
        return "it was written before this collection was created"
    return None


def names_another(record: Record, collection: Collection) -> bool:
    """Returns whether the record's header names another collection, without parsing the record."""
    uid = _header(record, UID_HEADER)
    return uid is not None and uid != collection.uid.encode()


def judged_header(version: int) -> tuple[str, bytes]:
    """Returns the header of a deletion that applies to versions up to this one."""
    return JUDGED_HEADER, str(version).encode()


def judged_version(record: Record, own: int) -> int:
    """Returns the version that a deletion was judged on.

    Returns `own`, the version of its record, for a deletion without a condition. Raises Refused for
    a header that is not a version of an earlier record.
    """
    value = _header(record, JUDGED_HEADER)
    if value is None:
        return own
    version = int(value) if value.isdigit() and len(value) <= VERSION_DIGITS else own
    if version >= own:
        raise Refused(
            f"the header {JUDGED_HEADER} is not the version of an earlier document", field="headers"
        )
    return version


def _header(record: Record, wanted: str) -> bytes | None:
    return next((value for name, value in record.headers if name == wanted), None)
