"""Counts what ingest has written."""

import time

from ingest.lane_registry import lane_of
from ingest.scheduler import Task
from vicinage.metrics import counter, histogram

_documents = counter("vicinage_ingest_documents_total")
_passages = counter("vicinage_ingest_passages_total")
_rejected = counter("vicinage_ingest_rejected_total")
_skipped = counter("vicinage_ingest_skipped_total")
_seconds = histogram("vicinage_ingest_step_seconds")


def count_written(task: Task, n_rejected: int) -> None:
    """Counts a task that is written and committed.

    The partition's own job alone counts the documents, not its lanes'.
    """
    if lane_of(task) is None:
        _documents.inc(len(task.job.writes))
    _rejected.inc(n_rejected)
    _skipped.inc(task.job.skipped)
    for part in task.parts.values():
        _passages.inc(
            sum(
                len(p)
                for (write, _), p in part.embedded.passages.items()
                if write not in part.embedded.refused
            )
        )
    _seconds.observe(time.perf_counter() - task.since)
