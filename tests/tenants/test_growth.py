"""Growth of a documents topic through the platform: the map first, then the topic."""

import threading

import pytest
from resources import eventually, make_ingest

from cluster.wiring import Resources
from ingest import intake
from tenants import growth, provisioning
from tenants.audit import Audit
from tenants.entities import Tenant
from vicinage.errors import Refused
from vicinage.partition_maps import grown
from vicinage.routing import home_of


@pytest.fixture
def tenant(base: Resources) -> Tenant:
    made = provisioning.create_tenant(base.registry, base.log, "acme", partitions=2, actor="test")
    provisioning.create_collection(
        base.registry, base.log, "acme", "docs", dimension=2, slots_total=8, actor="test"
    )
    return made


def moving(n: int, m: int) -> str:
    """Returns a document that growth from n to m partitions moves to a new one."""
    return next(f"d{i}" for i in range(1_000) if home_of("docs", f"d{i}", m) >= n)


def test_the_map_is_recorded_before_the_topic_grows(
    base: Resources, tenant: Tenant, monkeypatch
) -> None:
    seen: list[tuple[int, ...]] = []
    add = base.log.add_partitions

    def adds(topic: str, partitions: int) -> int:
        seen.append(
            (base.registry.partition_maps("acme")[-1].partitions, base.log.partitions(topic))
        )
        return add(topic, partitions)

    monkeypatch.setattr(base.log, "add_partitions", adds)
    done = growth.set_partitions(base.registry, base.log, tenant, 4, actor="operator/x")
    assert seen == [(4, 2)]
    assert (done.partitions, done.wanted, done.moved_ratio, done.done) == (2, 4, 0.5, True)
    assert base.log.partitions(tenant.documents_topic) == 4
    newest = Audit(base.engine).records(limit=1_000)[-1]
    assert (newest.action, newest.actor) == ("tenant.partitions", "operator/x")
    assert growth.set_partitions(base.registry, base.log, tenant, 4, actor="test").moved_ratio == 0


def test_a_dry_run_changes_nothing_and_fewer_are_refused(base: Resources, tenant: Tenant) -> None:
    assert growth.plan(
        base.registry, base.log, tenant, 3, actor="test"
    ).moved_ratio == pytest.approx(2 / 3)
    with pytest.raises(Refused, match="none can be removed"):
        growth.plan(base.registry, base.log, tenant, 1, actor="test")
    assert base.log.partitions(tenant.documents_topic) == 2
    assert len(base.registry.partition_maps("acme")) == 1


def test_a_write_waits_for_the_partition_that_its_map_has_already(
    base: Resources, tenant: Tenant
) -> None:
    newest = base.registry.partition_maps("acme")[-1]
    base.registry.append_partition_map("acme", grown(newest, 4, [0, 0]), epoch=1, actor="test")
    collection, name, tokens = base.registry.collection("acme", "docs"), moving(2, 4), []
    write = threading.Thread(
        target=lambda: tokens.append(
            intake.delete(
                base.log, tenant, collection, [name], now_ms=1, partitions=4
            )  # the process that grows died here
        )
    )
    write.start()
    ingest = make_ingest(base)
    ingest.step()
    eventually(lambda: ingest.step() or tokens)
    write.join(10)
    assert base.log.partitions(tenant.documents_topic) == 4
    assert str(tokens[0]) == f"{home_of('docs', name, 4)}-0"
    ingest.stop()
