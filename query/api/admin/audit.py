"""The chain of audit records: list and verify."""

from dataclasses import asdict

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from query.api.admin.operator import operator
from query.api.bounds import LIMIT_DEFAULT, LIMIT_MAX, OFFSET_MAX
from query.api.http import answer, integer, json_object, number, typed
from query.api.models.admin import (
    AuditParameters,
    AuditRecordFacts,
    VerifiedAudit,
    VerifyAuditRequest,
)
from query.api.operations import list_of, operation

router = APIRouter(prefix="/v1/admin")


@router.get(
    "/audit",
    response_model=None,
    openapi_extra=operation(
        "listAuditRecords",
        "Audit",
        "operate",
        answers={200: list_of(AuditRecordFacts)},
        query=AuditParameters,
    ),
)
async def list_audit(request: Request) -> Response:
    """Returns audit records, oldest first; continue with `after`, the last `seq`."""
    state, _ = await operator(request)
    after = number(request.query_params.get("after"), "after", 0, OFFSET_MAX, 0)
    limit = number(request.query_params.get("limit"), "limit", 1, LIMIT_MAX, LIMIT_DEFAULT)
    records = await run_in_threadpool(state.audit.records, after=after, limit=limit)
    return answer([asdict(r) for r in records])


@router.post(
    "/audit/verify",
    response_model=None,
    openapi_extra=operation(
        "verifyAudit",
        "Audit",
        "operate",
        body=VerifyAuditRequest,
        body_required=False,
        answers={200: VerifiedAudit},
    ),
)
async def verify_audit(request: Request) -> Response:
    """Verifies the chain and, with the audit key, each MAC.

    With `seq` and `hash` of an earlier newest record, also that the chain contains it.
    """
    state, _ = await operator(request)
    value = await json_object(request, frozenset({"seq", "hash"}))
    digest = typed(value, "hash", str, "the hash of the record that was kept")
    kept = None if digest is None else (integer(value, "seq", 1, OFFSET_MAX, 1), digest)
    found = await run_in_threadpool(state.audit.verify, kept)
    return answer(
        {
            "records": found.seq,
            "compared": kept is not None,
            "checked": found.checked,
            **asdict(found),
        }
    )
