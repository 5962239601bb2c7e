"""Reports topics with settings that cannot work, when ingest begins to read them."""

from collections.abc import Iterable

from tenants.entities import Tenant
from vicinage.errors import Unavailable
from vicinage.log import Log
from vicinage.telemetry import events

_event = events("ingest")


def report(log: Log, tenants: Iterable[Tenant]) -> None:
    """Logs an event for each topic of these tenants with settings that cannot work.

    Records of such a topic are read nevertheless. A topic that refuses records refuses each append
    too. `vicinage doctor` lists the same topics.
    """
    topics = [topic for tenant in tenants for topic in (tenant.documents_topic, tenant.dead_topic)]
    try:
        found = log.topic_problems(topics)
    except Unavailable:
        return
    for topic, problems in found.items():
        _event.error("topic.misconfigured", topic=topic, problems=list(problems))
