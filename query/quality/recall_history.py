"""Keeps measured recall over restarts of the gateway, in the catalog."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from query.quality.samples import Sample, Samples
from tenants.recall_history import RecallRecord
from vicinage.telemetry import events

BATCH: Final = 100
"""Number of collections stored in one transaction."""
_event = events("query")


class History(Protocol):
    """Storage of measurements across restarts. Both calls block, and raise Unavailable."""

    def keep(self, rows: Sequence[RecallRecord]) -> None:
        """Stores the rows. Durable on return."""
        ...

    def newest(self) -> list[RecallRecord]:
        """Returns the newest stored rows."""
        ...


async def restore(samples: Samples, history: History) -> None:
    """Replaces samples by the catalog's, where those are more. Raises Unavailable."""
    loop = asyncio.get_running_loop()
    for record in await loop.run_in_executor(None, history.newest):
        name = (record.tenant, record.collection, record.generation)
        sample = samples.get(name)
        if sample is not None and sample.samples() >= record.samples:
            continue
        try:
            samples.restore(name, Sample.of_state(record.state))
        except (KeyError, TypeError, ValueError) as error:
            _event.warning(
                "recall.not_restored",
                tenant=record.tenant,
                collection=record.collection,
                reason=str(error),
            )


async def save(samples: Samples, history: History) -> None:
    """Stores samples with measurements since the last save. Durable on return.

    Raises Unavailable.
    """
    loop = asyncio.get_running_loop()
    changed = [(name, s) for name, s in samples if s.samples() > s.n_saved]
    for at in range(0, len(changed), BATCH):
        batch = changed[at : at + BATCH]
        records = [RecallRecord(*name, s.samples(), s.state()) for name, s in batch]
        await loop.run_in_executor(None, history.keep, records)
        for record, (_, sample) in zip(records, batch, strict=True):
            sample.n_saved = record.samples
