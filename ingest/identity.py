"""Which collection a record was written to: a name may be deleted and created again. Pure.

Records that the gateway writes carry the collection's uid in a header. Records of other producers belong to a collection
if they lie at or above the end that their partition had at its creation (docs/decisions/031-identity-of-collections.md).
"""

from typing import Final

from tenants.entities import Collection
from vicinage.log import Record, Stored

UID_HEADER: Final = "vicinage-collection-uid"


def header_of(collection: Collection) -> tuple[str, bytes]:
    """Returns the header that binds a record to this creation of the collection."""
    return UID_HEADER, collection.uid.encode()


def stranger(stored: Stored, collection: Collection) -> str | None:
    """Returns why the record was not written to this collection; None if it was."""
    uid = _uid(stored.record)
    if uid is not None:
        return None if uid == collection.uid.encode() else "it was written to an earlier collection of this name"
    offsets, partition = collection.first_offsets, stored.partition
    if partition < len(offsets) and stored.offset < offsets[partition]:
        return "it was written before this collection was created"
    return None


def _uid(record: Record) -> bytes | None:
    return next((value for name, value in record.headers if name == UID_HEADER), None)
