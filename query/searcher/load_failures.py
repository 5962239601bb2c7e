"""Shards whose newest manifest is corrupt: refused, or served from an older manifest. No I/O.

The shard table's lock guards changes; single facts may be read without it.
"""

from dataclasses import dataclass
from typing import Final

from indexer.index.objects import Damaged
from vicinage.clock import longer
from vicinage.errors import Corrupt
from vicinage.records import ShardId

RETRY_S: Final = 0.5
"""Seconds until a load is retried whose data is not corrupt."""
CORRUPT_RETRY_S: Final = (1.0, 300.0)
"""Initial and maximum exponential backoff, in seconds, between retries of a corrupt manifest.

It is retried because it may have been found intact meanwhile.
"""


@dataclass(frozen=True, slots=True)
class Stale:
    """A corrupt manifest while an older one serves: the reason, and the backoff until the retry."""

    reason: str
    wait_s: float


class LoadFailures:
    """Corrupt shards, and the backoff of each until its next load."""

    def __init__(self) -> None:
        self.failed: dict[ShardId, str] = {}
        """Shards with unreadable rows → the reason.

        They are refused until the manifest changes or a retry succeeds.
        """
        self.stale: dict[ShardId, Stale] = {}
        """Shards whose newest manifest is corrupt; meanwhile the previous one serves."""
        self.retry_s: dict[ShardId, float] = {}
        """Shards that failed because of a segment → the backoff until the retry, in seconds."""

    def backing_off(self) -> set[ShardId]:
        """Returns the shards that are loaded only after their backoff."""
        return {*self.stale, *self.failed}

    def stale_reasons(self, tenant: str | None) -> dict[ShardId, str]:
        """Returns why each stale shard of one tenant, or of all, is stale."""
        return {
            shard: stale.reason
            for shard, stale in list(self.stale.items())
            if tenant in (None, shard.tenant)
        }

    def serve_stale(self, shard: ShardId, corrupt: Corrupt) -> float:
        """Marks the shard as served from an older manifest; returns the seconds until the retry."""
        before = self.stale.get(shard)
        wait_s = longer(before.wait_s if before else None, CORRUPT_RETRY_S)
        self.stale[shard] = Stale(corrupt.detail, wait_s)
        return wait_s

    def refuse(self, shard: ShardId, corrupt: Corrupt) -> float | None:
        """Marks the shard as failed; returns the seconds until the retry, None for no retry.

        Damaged objects may be restored or found intact; corrupt rows of the log are not retried.
        """
        self.stale.pop(shard, None)
        self.failed[shard] = corrupt.detail
        if not isinstance(corrupt, Damaged):
            return None
        self.retry_s[shard] = wait_s = longer(self.retry_s.get(shard), CORRUPT_RETRY_S)
        return wait_s

    def clear(self, shard: ShardId) -> bool:
        """Removes all marks of the shard; returns whether it had failed."""
        had_failed = self.failed.pop(shard, None) is not None
        self.stale.pop(shard, None)
        self.retry_s.pop(shard, None)
        return had_failed
