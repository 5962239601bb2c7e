"""Starts and cancels reindex jobs. The gateway calls it; the indexer then does the steps."""

from contextlib import suppress
from typing import Final

from indexer.backends import choose
from tenants.entities import Collection, Job
from tenants.jobs import ENDED, Jobs
from tenants.registry import Registry
from vicinage.errors import Conflict, NotFound, Refused

ACTOR: Final = "indexer"


def start(
    registry: Registry,
    jobs: Jobs,
    tenant: str,
    collection: str,
    *,
    index: str,
    model: str | None,
    shards: int,
    actor: str,
) -> Job:
    """Creates a job. Raises NotFound, Refused, and Conflict while another job is open."""
    registry.refresh()
    found = registry.collection(tenant, collection)
    live = found.generation()
    choose(index or live.index, 1, flat_max=1)
    if model is not None:
        if registry.model(model).retired:
            raise Refused(f"model {model} is retired; name another one", field="model")
        if live.model is None:
            raise Refused(
                "this collection's tenant sends vectors, so it has no model to change; leave the "
                "model out",
                field="model",
            )
    return jobs.create(
        tenant,
        collection,
        index=index or live.index,
        model=model,
        shards=shards or len(live.slots),
        uid=found.uid,
        actor=actor,
    )


def cancel(registry: Registry, jobs: Jobs, job_id: str, *, actor: str) -> Job:
    """Ends a job that has not cut over, and abandons its generation, whose objects are swept.

    Raises Conflict if the job has ended.
    """
    job = jobs.get(job_id)
    if job.state in ENDED:
        raise Conflict(f"reindex {job_id} has ended: {job.state}", found=job.state)
    ended = jobs.cancel(job, actor=actor)
    abandon(registry, ended)
    if job.generation is not None and _is_live(registry, job):
        raise Conflict(
            f"reindex {job_id} had just cut over: generation {job.generation} is live", found="live"
        )
    return ended


def abandon(registry: Registry, job: Job) -> None:
    """Marks the job's generation as failed, if there is one and it is not live.

    Both the gateway that cancels a job and the indexer that works on it call this. The second call
    has no effect.
    """
    registry.refresh()
    try:
        collection = collection_of(registry, job)
    except NotFound:
        return
    for g in collection.generations:
        if g.number != collection.live and g.number > job.barrier.get("above", g.number):
            # It may have ended, or been deleted with its collection, since the refresh.
            with suppress(Conflict, NotFound):
                registry.set_generation_state(
                    job.tenant, job.collection, g.number, "failed", actor=ACTOR
                )


def collection_of(registry: Registry, job: Job) -> Collection:
    """Returns the collection that the job rebuilds.

    Raises NotFound if it was deleted, even if another has its name.
    """
    found = registry.collection(job.tenant, job.collection)
    if job.uid not in ("", found.uid):
        raise NotFound(f"collection {job.collection!r} was deleted, and created again")
    return found


def _is_live(registry: Registry, job: Job) -> bool:
    try:
        return collection_of(registry, job).live == job.generation
    except NotFound:
        return False
