"""Decides when a generation moves from its partition's jobs to a lane of its own, and when it returns. Pure.

A partition is one line of jobs, written in order. A generation that cannot go on would stop every other generation of its
partition. Such a generation is detached: from a stored position on a lane reads and writes it alone, and the partition goes
on without it (docs/decisions/029-lanes-of-ingest.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ingest.jobs import Collections, Job, Need, Target
from ingest.scheduler import Away
from tenants.entities import Collection, Generation, Tenant
from vicinage.errors import NotFound
from vicinage.partition_maps import PartitionMap

AWAY_TRIES: Final = 3
AWAY_S: Final = 1.0
"""A model is away once so many tries in a row failed, over at least this long."""
SLOW_S: Final = 2.0
"""A generation that delays its partition's first job for longer than this is slow."""


def is_away(known: Away | None, now: float) -> bool:
    """Returns whether a model is known not to answer."""
    return known is not None and known.tries >= AWAY_TRIES and now - known.since >= AWAY_S


def own_lane(generation: Generation, collection: Collection) -> bool:
    """Returns whether the generation always has a lane: it is built with another model than the live one's.

    A building generation never delays the live one.
    """
    return generation.number != collection.live and generation.model != collection.generation().model


def detached_at_once(
    job: Job, needs: Mapping[Target, Need], away: Mapping[str | None, Away | None], now: float
) -> dict[Target, Need]:
    """Returns what must not enter the partition's line: building generations, and models known to be away."""
    collections = {w.collection.name: w.collection for w in job.writes}
    return {
        target: need
        for target, need in needs.items()
        if own_lane(need.generation, collections[target[0]])
        or (need.asks and is_away(away.get(need.generation.model), now))
    }


def blocked(
    needs: Iterable[Mapping[Target, Need]],
    pending: Mapping[str | None, Away | None],
    *,
    waited_s: float,
    now: float,
    serving: int,
) -> dict[Target, Need]:
    """Returns the generations to detach from a line, each with its first need there.

    `needs` are those of the line's jobs, in order; `pending` are the models that the first job waits for, with what is known
    of them; `waited_s` is how long it has been first. The tenant has `serving` generations: where all of them would be detached
    from a slow model, it is waited for, because a lane would gain nothing and read everything twice.
    """
    slow = waited_s >= SLOW_S
    models = {model for model, known in pending.items() if slow or is_away(known, now)}
    found: dict[Target, Need] = {}
    firsts: dict[Target, int] = {}
    for each in needs:
        for target, need in each.items():
            # Of the whole line: an earlier job that asks no model (deletions) is not written yet either.
            first = firsts.setdefault(target, need.first)
            if need.asks and need.generation.model in models and target not in found:
                found[target] = replace(need, first=first)
    gone = any(is_away(known, now) for known in pending.values())
    return found if gone or len(found) < serving else {}


def caught_up(*, read: int, written: int, routed: int, waiting: int) -> bool:
    """Returns whether a lane has caught up: it is at its partition's offset, and none of its jobs is in progress."""
    return read == written == routed and waiting == 0


@dataclass(frozen=True, slots=True)
class LaneView:
    """What a lane sees of its tenant's collections: its own, and of that its generation alone where that is live.

    So a document is parsed for the lane by the rules of its generation: vectors that were sent for a live generation stay
    valid for it while another model's generation is built.
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
    """Since when each line's first task is its first. One owner."""

    since: dict[object, tuple[object, float]] = field(default_factory=dict)

    def look(self, heads: Mapping[object, object], now: float) -> dict[object, float]:
        """Returns seconds that each line's present head has been seen as such; notes new ones."""
        self.since = {
            line: known if (known := self.since.get(line)) and known[0] is head else (head, now)
            for line, head in heads.items()
        }
        return {line: now - since for line, (_, since) in self.since.items()}
