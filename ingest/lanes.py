"""Decides when a generation moves from its partition's jobs to a lane of its own and back. Pure.

A partition's jobs are written in order. A generation that cannot continue would stop every other
generation of its partition. Such a generation is detached: a lane reads and writes it alone from a
stored position on. The partition continues without it (docs/decisions/029-ingest-lanes.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ingest.jobs import Collections, Job, Need, Target
from ingest.scheduler import ModelFailures
from tenants.entities import Collection, Generation, Tenant
from vicinage.errors import NotFound
from vicinage.partition_maps import PartitionMap

UNAVAILABLE_TRIES: Final = 3
UNAVAILABLE_S: Final = 1.0
"""A model is unavailable after this many failed attempts in a row, over at least this time."""
SLOW_S: Final = 2.0
"""A generation that delays its partition's first job for at least this many seconds is slow."""


def is_unavailable(known: ModelFailures | None, now: float) -> bool:
    """Returns whether these failures are enough to treat the model as unavailable."""
    return (
        known is not None
        and known.tries >= UNAVAILABLE_TRIES
        and now - known.since >= UNAVAILABLE_S
    )


def needs_own_lane(generation: Generation, collection: Collection) -> bool:
    """Returns whether the generation always has a lane: it is being built with another model.

    So a generation that is being built never delays the live one.
    """
    return (
        generation.number != collection.live and generation.model != collection.generation().model
    )


def detached_at_once(
    job: Job,
    needs: Mapping[Target, Need],
    failures: Mapping[str | None, ModelFailures | None],
    now: float,
) -> dict[Target, Need]:
    """Returns the generations whose writes must not enter the partition's queue of jobs.

    They are those with a lane of their own, and those with texts for a model that is unavailable.
    """
    collections = {w.collection.name: w.collection for w in job.writes}
    return {
        target: need
        for target, need in needs.items()
        if needs_own_lane(need.generation, collections[target[0]])
        or (need.needs_model and is_unavailable(failures.get(need.generation.model), now))
    }


def blocked(
    needs: Iterable[Mapping[Target, Need]],
    pending: Mapping[str | None, ModelFailures | None],
    *,
    waited_s: float,
    now: float,
    serving: int,
) -> dict[Target, Need]:
    """Returns the generations to detach from a partition, each with its first need there.

    `needs` are those of the partition's jobs, in order. `pending` has the models that the first job
    waits for, and their failures. `waited_s` is how long that job has been first. `serving` is the
    number of the tenant's generations. If all of them wait for slow models, none is detached:
    lanes would gain nothing and read everything twice.
    """
    slow = waited_s >= SLOW_S
    models = {model for model, known in pending.items() if slow or is_unavailable(known, now)}
    found: dict[Target, Need] = {}
    firsts: dict[Target, int] = {}
    for each in needs:
        for target, need in each.items():
            # First need in all jobs: an earlier job of deletions alone is not written yet either.
            first = firsts.setdefault(target, need.first)
            if need.needs_model and need.generation.model in models and target not in found:
                found[target] = replace(need, first=first)
    any_unavailable = any(is_unavailable(known, now) for known in pending.values())
    return found if any_unavailable or len(found) < serving else {}


def caught_up(*, read: int, written: int, routed: int, waiting: int) -> bool:
    """Returns whether a lane is at its partition's offset and has no job in progress."""
    return read == written == routed and waiting == 0


@dataclass(frozen=True, slots=True)
class LaneView:
    """A lane's view of its tenant's collections: its own collection alone.

    If the lane's generation is live, the view has that generation alone. So the lane parses a
    document by the limits of its generation. Vectors that were sent for the live generation stay
    valid for it while a generation of another model is built.
    """

    collections: Collections
    target: Target

    def partition_maps(self, tenant: str) -> tuple[PartitionMap, ...]:
        """See PartitionMaps."""
        return self.collections.partition_maps(tenant)

    def collection(self, tenant: str, name: str) -> Collection:
        """See Collections."""
        if name != self.target[0]:
            raise NotFound(f"there is no collection {name!r}")
        found = self.collections.collection(tenant, name)
        if found.live != self.target[1]:
            return found
        return replace(found, generations=(found.generation(),))


def is_serving(collections: Collections, tenant: Tenant, target: Target) -> bool:
    """Returns whether the generation still receives writes."""
    try:
        found = collections.collection(tenant.name, target[0])
    except NotFound:
        return False
    return any(g.number == target[1] for g in found.generations)


@dataclass(slots=True)
class Heads:
    """Start times of the first task of each partition and lane as the first. One owner."""

    since: dict[object, tuple[object, float]] = field(default_factory=dict)

    def update(self, heads: Mapping[object, object], now: float) -> dict[object, float]:
        """Returns the seconds since each present head was first seen as a head; adds new heads."""
        self.since = {
            source: known if (known := self.since.get(source)) and known[0] is head else (head, now)
            for source, head in heads.items()
        }
        return {source: now - since for source, (_, since) in self.since.items()}
