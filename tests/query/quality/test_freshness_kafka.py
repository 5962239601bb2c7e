"""`wait_for: latest` on a real Kafka while other clients change a topic."""

import asyncio
import uuid
from pathlib import Path

import pytest
from resources import settings

from cluster.wiring import open_resources
from query.quality.freshness import Freshness
from query.scatter import Searchers
from tenants import provisioning
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded
from vicinage.log import Record, open_log
from vicinage.records import LATEST


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_latest_covers_a_partition_that_was_added_since_the_topics_were_listed(
    tmp_path: Path, kafka_servers: str
) -> None:
    url = f"kafka://{kafka_servers}"
    base = open_resources(settings(tmp_path / "data").model_copy(update={"log_url": url}))
    name = f"team-{uuid.uuid4().hex[:8]}"
    tenant = provisioning.create_tenant(base.registry, base.log, name, actor="test")
    provisioning.create_collection(
        base.registry, base.log, name, "docs", dimension=3, slots_total=8, actor="test"
    )
    [generation] = base.registry.collection(name, "docs").generations
    topic = tenant.documents_topic
    freshness = Freshness(base.log, base.registry, Searchers([]), base.clock)
    try:
        with open_log(url) as other:
            n = other.partitions(topic)
            while (
                base.log.topics(topic)[topic] >= n
            ):  # once, if the gateway does not list the topics just now
                n = other.add_partitions(topic, n + 1)
                other.append(
                    topic, n - 1, [Record(b"written by a producer that knows the new partition")]
                )
        with pytest.raises(DeadlineExceeded) as late:  # no ingest runs
            asyncio.run(freshness.reach(LATEST, tenant, generation, Deadline.after(1)))
        assert f"{n - 1}-0" in str(late.value.waited_for).split("."), (
            "the last record of the new partition"
        )
    finally:
        base.close()
