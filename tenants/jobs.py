"""Reindex jobs in the catalog, advanced by compare-and-set: a kill at any step loses nothing."""

import json
import secrets
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, insert, select, update

from tenants import tables
from tenants.changes import changing
from tenants.entities import Job
from vicinage.catalog import change, look
from vicinage.clock import Clock
from vicinage.errors import Conflict, NotFound

_J = tables.jobs
ENDED = tables.JOBS_ENDED


class Jobs:
    """Reindex jobs of all tenants. Safe for many processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def create(
        self,
        tenant: str,
        collection: str,
        *,
        index: str,
        model: str | None,
        shards: int,
        uid: str = "",
        actor: str,
    ) -> Job:
        """Creates a pending job.

        Raises Conflict while another job of the collection is in progress.
        """
        with changing(self._engine, self._clock, actor) as at:
            where = (
                (_J.c.tenant == tenant) & (_J.c.collection == collection) & _J.c.state.not_in(ENDED)
            )
            if other := at.connection.execute(select(_J.c.id).where(where)).scalar():
                raise Conflict(
                    f"reindex {other} of {collection!r} is still in progress: wait for it or "
                    "cancel it"
                )
            job = Job(
                secrets.token_hex(6),
                tenant,
                collection,
                "pending",
                index,
                model,
                shards,
                created_ms=at.now_ms,
                uid=uid,
            )
            at.connection.execute(insert(_J).values(**_row(job)))
            at.note(
                "reindex.start",
                f"{tenant}/{collection}",
                after={"id": job.id, "index": index, "model": model, "shards": shards},
            )
        return job

    def get(self, job_id: str) -> Job:
        """Returns the job. Raises NotFound."""
        with look(self._engine) as connection:
            row = connection.execute(select(_J).where(_J.c.id == job_id)).mappings().first()
        if row is None:
            raise NotFound(f"there is no reindex {job_id!r}")
        return _job(row)

    def list(self, tenant: str | None = None, *, open_only: bool = False) -> tuple[Job, ...]:
        """Returns jobs, oldest first."""
        query = select(_J).order_by(_J.c.created_ms)
        if tenant is not None:
            query = query.where(_J.c.tenant == tenant)
        if open_only:
            query = query.where(_J.c.state.not_in(ENDED))
        with look(self._engine) as connection:
            return tuple(_job(row) for row in connection.execute(query).mappings())

    def advance(self, job: Job, **changes: Any) -> Job:
        """Stores and returns the job with these fields changed.

        Raises Conflict if it has changed.
        """
        with change(self._engine) as connection:
            return _move(connection, job, changes)

    def cancel(self, job: Job, *, actor: str) -> Job:
        """Cancels the job, with an audit record; returns it. Raises Conflict if it has changed."""
        with changing(self._engine, self._clock, actor) as at:
            moved = _move(at.connection, job, {"state": "canceled"})
            facts = {"id": job.id, "state": job.state}
            at.note(
                "reindex.cancel",
                f"{job.tenant}/{job.collection}",
                before=facts,
                after={**facts, "state": "canceled"},
            )
        return moved


def _move(connection: Connection, job: Job, changes: dict[str, Any]) -> Job:
    moved = replace(job, **changes, version=job.version + 1)
    values = {k: v for k, v in _row(moved).items() if k != "id"}
    where = (_J.c.id == job.id) & (_J.c.version == job.version)
    if connection.execute(update(_J).where(where).values(**values)).rowcount != 1:
        raise Conflict(f"reindex {job.id} was changed by another process", expected=job.version)
    return moved


def _row(job: Job) -> dict[str, Any]:
    spec = {"index": job.index, "model": job.model, "shards": job.shards, "uid": job.uid}
    progress = {
        "generation": job.generation,
        "barrier": dict(job.barrier),
        "done": job.done,
        "total": job.total,
        "error": job.error,
    }
    row = {
        name: getattr(job, name)
        for name in ("id", "tenant", "collection", "state", "created_ms", "version")
    }
    return {**row, "spec": json.dumps(spec), "progress": json.dumps(progress)}


def _job(row: RowMapping) -> Job:
    plain = {
        name: row[name] for name in ("id", "tenant", "collection", "state", "created_ms", "version")
    }
    return Job(**plain, **json.loads(row["spec"]), **json.loads(row["progress"]))
