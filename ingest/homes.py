"""Versions of the documents in a record, by the partition maps of the tenant's topic.

A document outside its home partition is refused, because its order among the document's other
writes is unknown.
"""

from collections.abc import Callable
from typing import Protocol

from tenants.entities import Tenant
from vicinage.log import LogRecord
from vicinage.partition_maps import PartitionMap, is_at_home, until, version_of
from vicinage.records import Position

RefreshMaps = Callable[[Tenant], object]
"""Checks whether the tenant's topic has grown. The registry has the new map on return."""


class PartitionMaps(Protocol):
    """A lookup of a tenant's partition maps; a Registry is one."""

    def partition_maps(self, tenant: str) -> tuple[PartitionMap, ...]:
        """Returns the maps of the tenant's documents topic, oldest first."""
        ...


class Homes:
    """Versions for the documents of one batch of records. One thread."""

    def __init__(
        self, maps: PartitionMaps, refresh_maps: RefreshMaps | None, topic_id: str | None = None
    ) -> None:
        self._maps = maps
        self._topic_id = topic_id
        self._refresh_maps = refresh_maps

    def version(self, tenant: Tenant, record: LogRecord, collection: str, document_id: str) -> int:
        """Returns the version of a document in this record. Raises Refused if it has no order.

        For the first document outside its home, the topic is checked again before the refusal. The
        topic may have grown since its last map, and the record's producer may know the new size.
        """
        position = Position(record.partition, record.offset)
        maps = until(self._maps.partition_maps(tenant.name), self._topic_id)
        if self._refresh_maps is not None and not is_at_home(
            maps, position, collection, document_id
        ):
            refresh_maps, self._refresh_maps = self._refresh_maps, None
            refresh_maps(tenant)
            maps = until(self._maps.partition_maps(tenant.name), self._topic_id)
        return version_of(maps, position, collection, document_id)
