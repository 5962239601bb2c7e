"""Deletions of documents: one by its path, or many by their ids or a filter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ingest import intake
from ingest.ids import fault_of, has_dot_segment
from query.api.bounds import DELETE_BYTES_MAX, DELETE_MAX
from query.api.documents import check_query, newest, partitions_of
from query.api.http import answer, authenticate, json_object, state_of, typed
from query.api.models.documents import DeleteDocumentsAnswer, DeleteDocumentsRequest
from query.api.operations import operation
from query.api.search_request import token_of
from query.judge import Judge, Judged
from query.state import GatewayState
from tenants.entities import Collection, Tenant
from vicinage import filters
from vicinage.clock import Deadline
from vicinage.errors import Refused
from vicinage.records import Token

router = APIRouter()
FIELDS: Final = frozenset({"ids", "filter", "wait_for"})


@router.delete(
    "/v1/collections/{collection}/documents/{document_id:path}",
    status_code=202,
    response_model=None,
    openapi_extra=operation(
        "deleteDocument", "Documents", "write", answers={202: DeleteDocumentsAnswer}, errors=(404,)
    ),
)
async def delete_one(collection: str, document_id: str, request: Request) -> Response:
    """Deletes one document. Succeeds, too, if the document does not exist."""
    principal = await authenticate(request, "write")
    _check_deletable(request, document_id)
    state = state_of(request)
    tenant, found = await state.pipeline.find(principal, collection)
    with state.pipeline.admitted(tenant):
        check_ids([document_id], state.limits.id_bytes_max)
        return await _delete(state, tenant, found, [document_id])


@router.post(
    "/v1/collections/{collection}/documents:delete",
    status_code=202,
    response_model=None,
    openapi_extra=operation(
        "deleteDocuments",
        "Documents",
        "write",
        body=DeleteDocumentsRequest,
        answers={202: DeleteDocumentsAnswer},
        errors=(404, 504),
    ),
)
async def delete_many(collection: str, request: Request) -> Response:
    """Deletes documents by ID, or those that pass a filter now; documents written later stay."""
    principal = await authenticate(request, "write")
    state = state_of(request)
    tenant, found = await state.pipeline.find(principal, collection)
    with state.pipeline.admitted(tenant) as permit:
        value = await json_object(request, FIELDS, permit, DELETE_BYTES_MAX)
        wanted = deletion_of(value, state.limits.id_bytes_max)
        if wanted.ids is None:
            return await _delete_matching(state, tenant, found, wanted)
        return await _delete(state, tenant, found, wanted.ids)


@dataclass(frozen=True, slots=True)
class Deletion:
    """The validated body of a deletion: `ids`, or a `condition` if `ids` is None."""

    ids: list[str] | None
    condition: Mapping[str, Any]
    wait_for: Token | None


def deletion_of(value: Mapping[str, Any], id_bytes_max: int) -> Deletion:
    """Returns the validated deletion. Raises Refused naming the field."""
    if (value.get("ids") is None) == (value.get("filter") is None):
        raise Refused("send ids or a filter", field="ids")
    ids = typed(value, "ids", list, "a list of document ids")
    # A deletion by ids covers acknowledged writes, whether or not they are searchable.
    token = token_of(value.get("wait_for"))
    if ids is None:
        return Deletion(None, _condition_of(value["filter"]), token)
    if not all(isinstance(i, str) and i for i in ids) or len(ids) > DELETE_MAX:
        raise Refused(
            f"ids is a list of at most {DELETE_MAX} strings", field="ids", limit=DELETE_MAX
        )
    check_ids(ids, id_bytes_max)
    return Deletion(ids, {}, token)


def _condition_of(given: Any) -> Mapping[str, Any]:
    filters.parse(given)
    if not given:
        raise Refused(
            "an empty filter would delete everything: delete the collection instead", field="filter"
        )
    found: Mapping[str, Any] = given
    return found


def check_ids(ids: list[str], bytes_max: int) -> None:
    """Raises Refused if a deletion cannot name one of the ids."""
    if (fault := next(filter(None, (fault_of(i, bytes_max) for i in ids)), None)) is not None:
        raise Refused(f"an id {fault}", field="id", limit=bytes_max)


async def _delete_matching(
    state: GatewayState, tenant: Tenant, found: Collection, wanted: Deletion
) -> Response:
    deadline = Deadline.after(state.settings.timeout_ms / 1000)
    judge = Judge(state.log, state.registry, state.searchers, state.limits, DELETE_MAX)
    found = await state.pipeline.newest(found, deadline)  # memory may be behind a cutover

    async def judged(collection: Collection) -> Judged:
        return await judge.judge(tenant, collection, wanted.condition, wanted.wait_for, deadline)

    was: Judged = await state.pipeline.with_live_generation(found, judged, deadline)
    token = await run_in_threadpool(_delete_judged, state, tenant, was) if was.passed else None
    n = len(was.passed)
    return answer(
        {"accepted": n, "matched": n, "judged": _text(was.token), "token": _text(token)}, 202
    )


def _text(token: Token | None) -> str | None:
    return None if token is None else str(token)


def _delete_judged(state: GatewayState, tenant: Tenant, judged: Judged) -> Token:
    now_ms = state.clock.now_ms()
    state.registry.refresh()
    n = partitions_of(state, tenant)
    found, passed = judged.collection, judged.passed
    return intake.delete(
        state.log, tenant, found, passed, judged=passed, now_ms=now_ms, partitions=n
    )


def _check_deletable(request: Request, document_id: str) -> None:
    """Raises Refused where the path may not name the document that the caller means."""
    if has_dot_segment(document_id):
        raise Refused(
            "an id with the segment '.' or '..' goes into the body of documents:delete", field="id"
        )
    check_query(request, frozenset())


async def _delete(
    state: GatewayState, tenant: Tenant, collection: Collection, ids: list[str]
) -> Response:
    if not ids:
        return answer({"accepted": 0, "token": None}, 202)
    token = await run_in_threadpool(_deleted, state, tenant, collection, ids)
    return answer({"accepted": len(ids), "token": str(token)}, 202)


def _deleted(state: GatewayState, tenant: Tenant, collection: Collection, ids: list[str]) -> Token:
    collection = newest(state, collection)
    n = partitions_of(state, tenant)
    return intake.delete(
        state.log, tenant, collection, ids, now_ms=state.clock.now_ms(), partitions=n
    )
