"""A partition that cannot be read halts alone, whatever the error; the others continue."""

from dataclasses import replace
from typing import Any

import pytest
from resources import make_ingest
from stepping import committed, make_tenant, send, stepping

from ingest import topics
from tenants.entities import Group
from vicinage.errors import Unavailable
from vicinage.log import Log
from vicinage.partition_maps import grown
from vicinage.routing import home_of


def test_a_recreated_topic_halts_its_tenant_alone_and_no_record_is_skipped(base) -> None:
    recreated, well = make_tenant(base, "recreated"), make_tenant(base, "well")
    send(base, recreated, "a", "b")
    ingest = make_ingest(base)
    stepping(ingest, lambda: committed(base, recreated) == 2)
    base.log.delete_topic(recreated.documents_topic)
    base.log.ensure_topic(recreated.documents_topic)
    send(base, recreated, "c", "d", "e")
    stepping(ingest, ingest._partitions.halts.known)
    for n in range(1, 4):
        send(base, well, f"w{n}")
        stepping(ingest, lambda n=n: committed(base, well) == n)
    [((topic, partition), halt)] = ingest._partitions.halts.known().items()
    assert (topic, partition, halt.kind) == (recreated.documents_topic, 0, "topic_replaced")
    assert committed(base, recreated) == 0, "the new topic has no position yet"
    ingest.stop()


def test_a_partition_whose_records_are_gone_halts_and_the_other_is_read(
    base,
) -> None:
    tenant = make_tenant(base, "two", partitions=2)
    send(base, tenant, "a", "b", "c")
    base.log.commit(Group.INGEST, {(tenant.documents_topic, 0): 1})
    base.log.trim(tenant.documents_topic, 0, 2)
    send(base, tenant, "d", partition=1)
    ingest = make_ingest(base)
    stepping(ingest, lambda: committed(base, tenant, 1) == 1)
    assert {tp: halt.kind for tp, halt in ingest._partitions.halts.known().items()} == {
        (tenant.documents_topic, 0): "offset_gone"
    }
    assert committed(base, tenant) == 1
    ingest.stop()


class Troubled:
    """The log, with a method that fails for one topic."""

    def __init__(self, log: Log, method: str, topic: str) -> None:
        self._log = log
        self.failing: str | None = method
        self._topic = topic
        self.n_failed = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)

        def called(*given: Any, **named: Any) -> Any:
            if name == self.failing and given and given[0] == self._topic:
                self.n_failed += 1
                raise Unavailable(f"{self._topic} has no leader", dependency="log")
            return found(*given, **named)

        return called if callable(found) else found


@pytest.mark.parametrize(
    ("method", "trouble"),
    [("ensure_topic", "missing"), ("begin", "no leader"), ("add_partitions", "not grown")],
)
def test_a_topic_that_the_log_does_not_serve_delays_no_other_tenant(
    base, monkeypatch: pytest.MonkeyPatch, method: str, trouble: str
) -> None:
    monkeypatch.setattr(topics, "BACKOFF_S", (0.05, 0.2))
    well = make_tenant(base, "well")
    if trouble == "missing":
        broken = base.registry.create_tenant("broken", actor="test")
    else:
        broken = make_tenant(base, "broken")
    if trouble == "not grown":
        [known] = base.registry.partition_maps("broken")
        base.registry.append_partition_map("broken", grown(known, 2, [0]), epoch=1, actor="test")
    elif trouble == "no leader":
        send(base, broken, "a")
    log = Troubled(base.log, method, broken.documents_topic)
    ingest = make_ingest(replace(base, log=log))
    for n in (1, 2):
        send(base, well, f"w{n}")
        stepping(ingest, lambda n=n: committed(base, well) == n)
    stepping(ingest, lambda: log.n_failed >= 2)
    log.failing = None
    stepping(
        ingest, lambda: base.log.topics(broken.documents_topic).get(broken.documents_topic, 0) > 0
    )
    home = home_of("flat", "a", base.log.partitions(broken.documents_topic))
    before = base.log.end(broken.documents_topic, home)
    send(base, broken, "a", partition=home)
    stepping(ingest, lambda: committed(base, broken, home) == before + 1)
    ingest.stop()
