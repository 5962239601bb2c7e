"""Partition maps in the catalog: conversion between rows and values."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, func, insert, select

from tenants import tables
from vicinage.errors import Conflict, Refused
from vicinage.partition_maps import EPOCHS_MAX, PartitionMap

_P = tables.partition_maps


def append(
    connection: Connection, stamp: Mapping[str, int], tenant: str, made: PartitionMap, *, epoch: int
) -> None:
    """Inserts the tenant's map of that epoch, inside an open change.

    `stamp` has created_ms and row_version. Raises Conflict unless `epoch` is the next one, Refused
    beyond EPOCHS_MAX.
    """
    if epoch >= EPOCHS_MAX:
        raise Refused(
            f"the documents topic of {tenant} has changed {EPOCHS_MAX - 1} times, the maximum: move"
            " the tenant's documents to a new tenant (reindexing does not help)",
            field="partitions",
            limit=EPOCHS_MAX,
        )
    found = connection.execute(select(func.count()).where(_P.c.tenant == tenant)).scalar_one()
    if found != epoch:
        raise Conflict(
            "another process has recorded the topic's partitions", expected=epoch, found=found
        )
    facts = {
        "topic_id": made.topic_id,
        "partitions": made.partitions,
        "starts": json.dumps(made.starts),
    }
    connection.execute(insert(_P).values(tenant=tenant, epoch=epoch, **facts, **stamp))


def with_rows(
    known: Mapping[str, tuple[PartitionMap, ...]], rows: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[PartitionMap, ...]]:
    """Returns the maps by tenant with the rows added. Pure."""
    maps = dict(known)
    for row in sorted(rows, key=lambda r: (r["tenant"], r["epoch"])):
        made = PartitionMap(row["topic_id"], row["partitions"], tuple(json.loads(row["starts"])))
        maps[row["tenant"]] = (*maps.get(row["tenant"], ()), made)
    return maps
