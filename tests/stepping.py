"""Ingest, step by step."""

import json

from resources import eventually

from tenants import provisioning
from tenants.entities import Group, Tenant
from vicinage.log import Record


def make_tenant(base, name: str, partitions: int = 1) -> Tenant:
    tenant = provisioning.create_tenant(
        base.registry, base.log, name, partitions=partitions, actor="test"
    )
    provisioning.create_collection(
        base.registry, base.log, name, "flat", dimension=3, slots_total=8, actor="test"
    )
    return tenant


def send(base, tenant: Tenant, *names: str, partition: int = 0) -> int:
    values = [
        json.dumps({"collection": "flat", "id": n, "vector": [1, 0, 0]}).encode() for n in names
    ]
    return base.log.append(tenant.documents_topic, partition, [Record(v) for v in values])[-1]


def committed(base, tenant: Tenant, partition: int = 0) -> int:
    tp = (tenant.documents_topic, partition)
    return base.log.committed(Group.INGEST, [tp]).get(tp, 0)


def stepping(ingest, true) -> None:
    def step_and_see() -> bool:
        ingest.step(0.1)
        ingest.drain()
        return true()

    eventually(step_and_see, wait_s=20)
