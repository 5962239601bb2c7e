"""Describes to the client how an answer is degraded. Pure."""

from query.plan import Plan
from query.scatter import ScatterResult


def reason_of(plan: Plan, result: ScatterResult) -> str | None:
    """Returns what the answer lacks or how it deviates from the objectives; None if it does not."""
    reasons: list[str] = []
    if result.failures:
        reasons.append(f"{len(result.failures)} of {len(plan.queries)} shards did not answer")
    scanned = sum(p.scanned for p in result.shard_results)
    unscanned = any(p.unscanned for p in result.shard_results)
    if scanned or unscanned:
        objective = plan.collection.objectives.recall
        reasons.append(
            f"live searches prove that the index misses the recall objective of {objective:g}"
        )
    if scanned:
        reasons.append(f"{scanned} passages were compared one by one in its place")
    if unscanned:
        what = "the rest of the index" if scanned else "it"
        reasons.append(
            f"{what} was searched at its greatest effort, "
            "since comparing all is beyond the platform's bounds"
        )
    return "; ".join(reasons) or None
