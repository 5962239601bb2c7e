"""Documents: write a batch, read one, delete one or many."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, cast

import orjson
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from indexer.index.snapshot import StoredDocument
from ingest import intake
from ingest.ids import fault_of, has_dot_segment
from ingest.preparing import NDJSON, Body, Prepared, prepare
from ingest.validation import DocumentLimits
from query.api.bounds import DELETE_BYTES_MAX, DELETE_MAX
from query.api.http import (
    answer,
    authenticate,
    body,
    content_type,
    json_object,
    state_of,
    typed,
    unknown_in,
    unless_gone,
)
from query.api.models.documents import (
    DeleteDocumentsAnswer,
    DeleteDocumentsRequest,
    WriteDocumentsAnswer,
    WriteDocumentsRequest,
)
from query.api.models.documents import StoredDocument as StoredDocumentBody
from query.api.models.search import WaitParameters
from query.api.operations import Body as BodyOf
from query.api.operations import Media, operation
from query.api.search_request import token_of
from query.api.sending import joined, sent
from query.judge import Judge, Judged
from query.parsers import is_small
from query.state import GatewayState
from tenants.entities import Collection, Tenant
from vicinage import filters
from vicinage.clock import Deadline
from vicinage.errors import NotFound, Refused
from vicinage.records import Token
from vicinage.routing import shard_of
from vicinage.wire import ARROW

router = APIRouter()
_LINES: Final = '{"id": "guide-7", "text": "One document a line."}\n'
_ARROW: Final = "An Arrow IPC stream: one row a document, with the columns of `Document`."
_BODIES: Final[tuple[BodyOf, ...]] = (
    WriteDocumentsRequest,
    *(Media(kind, {"type": "string"}, {"example1": _LINES}) for kind in NDJSON),
    Media(ARROW, {"type": "string", "format": "binary", "description": _ARROW}),
)


@router.post(
    "/v1/collections/{collection}/documents",
    status_code=202,
    response_model=None,
    openapi_extra=operation(
        "putDocuments",
        "Documents",
        "write",
        body=_BODIES,
        answers={202: WriteDocumentsAnswer},
        errors=(404, 504),
    ),
)
async def write(collection: str, request: Request) -> Response:
    """Writes documents; each replaces the document of its ID as a whole.

    Invalid documents are rejected one by one. The others are durable when the answer is sent.
    """
    principal = await authenticate(request, "write")
    state = state_of(request)
    tenant, found = await state.pipeline.find(principal, collection)
    kind = content_type(request)
    with state.pipeline.admitted(tenant) as permit:
        data = await body(request, permit)
        accepted = await _accept(state, tenant, found, kind, data)
    rejected = [{"id": r.id, "reason": r.reason, "field": r.field} for r in accepted.rejected]
    token = str(accepted.token) if accepted.token else None
    return answer({"accepted": accepted.accepted, "rejected": rejected, "token": token}, 202)


async def _accept(
    state: GatewayState, tenant: Tenant, collection: Collection, kind: str, data: bytes
) -> intake.Accepted:
    """Parses the body without delaying other requests, and appends its records.

    Raises as `Parsers.run` and the log.
    """
    if is_small(kind, data):
        at_once: intake.Accepted = await state.writers.run(
            partial(_at_once, state, tenant, collection, kind, data)
        )
        return at_once
    while True:
        now, n = await state.writers.run(partial(_where, state, tenant, collection))
        body = Body(kind, data, DocumentLimits.of(now, state.limits), tenant.name, n)
        ready = await state.parsers.run(prepare, body, len(data), tenant=tenant.context)
        accepted: intake.Accepted | None = await state.writers.run(
            partial(_append, state, tenant, now, n, ready)
        )
        if accepted is not None:
            return accepted


def _at_once(
    state: GatewayState, tenant: Tenant, collection: Collection, kind: str, data: bytes
) -> intake.Accepted:
    now, n = _where(state, tenant, collection)
    ready = prepare(Body(kind, data, DocumentLimits.of(now, state.limits), tenant.name, n))
    return intake.append(state.log, tenant, now, ready, now_ms=state.clock.now_ms())


def _append(
    state: GatewayState, tenant: Tenant, collection: Collection, n: int, ready: Prepared
) -> intake.Accepted | None:
    """Appends the records; returns None if the number of partitions has changed since."""
    if _where(state, tenant, collection)[1] != n:
        return None
    return intake.append(state.log, tenant, collection, ready, now_ms=state.clock.now_ms())


def _where(state: GatewayState, tenant: Tenant, collection: Collection) -> tuple[Collection, int]:
    collection = _now(state, collection)
    return collection, _partitions(state, tenant)


def _now(state: GatewayState, collection: Collection) -> Collection:
    """Returns the collection as the catalog has it. Raises NotFound, Unavailable.

    A write names the creation that it is for: memory may still hold a collection that was deleted
    and created again.
    """
    state.registry.refresh()
    found: Collection = state.registry.collection(collection.tenant, collection.name)
    return found


@router.get(
    "/v1/collections/{collection}/documents/{document_id:path}",
    response_model=None,
    openapi_extra=operation(
        "getDocument",
        "Documents",
        "read",
        query=WaitParameters,
        answers={200: StoredDocumentBody},
        errors=(404, 504),
    ),
)
async def read(collection: str, document_id: str, request: Request) -> Response:
    """Returns one document as it is searchable now: passages, metadata, version."""
    principal = await authenticate(request, "read")
    _check_query(request, frozenset({"wait_for"}))
    state = state_of(request)
    tenant, found = await state.pipeline.find(principal, collection)
    deadline = Deadline.after(state.settings.timeout_ms / 1000)
    token = token_of(request.query_params.get("wait_for"))
    with ExitStack() as held:
        permit = held.enter_context(state.pipeline.admitted(tenant))
        reading = state.pipeline.on_live(
            found, partial(_stored, state, tenant, document_id, token, deadline)
        )
        data = await (reading if token is None else unless_gone(request, reading))
        if data is None:
            raise NotFound(f"there is no document of that id in {collection!r}")
        return sent(data, permit, held)


async def _stored(
    state: GatewayState,
    tenant: Tenant,
    document_id: str,
    token: Token | None,
    deadline: Deadline,
    collection: Collection,
) -> memoryview | None:
    """Returns the document as JSON, None if there is none.

    Encoding takes a turn; waiting for the searcher takes none.
    """
    if token is not None:
        collection = await state.pipeline.reached(token, tenant, collection, deadline)
    live = collection.generation()
    shard = live.shards()[shard_of(document_id, len(live.slots))]
    async with state.fetches.take(tenant.context, deadline):
        found: StoredDocument | None = await state.searchers.holding(shard.slot).document(
            shard, document_id, deadline
        )
        if found is None:
            return None
        async with state.turns.take(tenant.context, deadline):
            return await _written(found)


async def _written(stored: StoredDocument) -> memoryview:
    head = orjson.dumps({"id": stored.id, "version": stored.version, "metadata": stored.metadata})
    passages = (
        orjson.dumps({"passage": i, "text": p.text, "start": p.start, "end": p.end})
        for i, p in enumerate(stored.passages)
    )
    return await joined(passages, first=head[:-1] + b',"passages":[', last=b"]}")


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
        value = await json_object(
            request, frozenset({"ids", "filter", "wait_for"}), permit, DELETE_BYTES_MAX
        )
        if (value.get("ids") is None) == (value.get("filter") is None):
            raise Refused("send ids or a filter", field="ids")
        ids = typed(value, "ids", list, "a list of document ids")
        # A deletion by ids covers acknowledged writes, whether or not they are searchable.
        token = token_of(value.get("wait_for"))
        if ids is None:
            return await _delete_matching(state, tenant, found, value["filter"], token)
        if not all(isinstance(i, str) and i for i in ids) or len(ids) > DELETE_MAX:
            raise Refused(
                f"ids is a list of at most {DELETE_MAX} strings", field="ids", limit=DELETE_MAX
            )
        return await _delete(state, tenant, found, ids)


async def _delete_matching(
    state: GatewayState,
    tenant: Tenant,
    found: Collection,
    condition: object,
    wait_for: Token | None,
) -> Response:
    filters.parse(condition)
    if not condition:
        raise Refused(
            "an empty filter would delete everything: delete the collection instead", field="filter"
        )
    deadline = Deadline.after(state.settings.timeout_ms / 1000)
    judge = Judge(state.log, state.registry, state.searchers, state.limits, DELETE_MAX)
    found = await state.pipeline.newest(found)  # memory may be behind a cutover

    async def judged(collection: Collection) -> Judged:
        return await judge.judge(
            tenant, collection, cast("Mapping[str, Any]", condition), wait_for, deadline
        )

    was: Judged = await state.pipeline.on_live(found, judged)
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
    n = _partitions(state, tenant)
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
    _check_query(request, frozenset())


def _check_query(request: Request, known: frozenset[str]) -> None:
    """Raises Refused for an unknown parameter: an unencoded '?' may have cut off an id."""
    if (unknown := unknown_in(request.query_params, known)) is not None:
        raise Refused(
            f"unknown parameter {unknown!r}; a '?' in an id is sent as %3F", field=unknown
        )


async def _delete(
    state: GatewayState, tenant: Tenant, collection: Collection, ids: list[str]
) -> Response:
    bytes_max = state.limits.id_bytes_max
    if (fault := next(filter(None, (fault_of(i, bytes_max) for i in ids)), None)) is not None:
        raise Refused(f"an id {fault}", field="id", limit=bytes_max)
    if not ids:
        return answer({"accepted": 0, "token": None}, 202)
    token = await run_in_threadpool(_deleted, state, tenant, collection, ids)
    return answer({"accepted": len(ids), "token": str(token)}, 202)


def _deleted(state: GatewayState, tenant: Tenant, collection: Collection, ids: list[str]) -> Token:
    collection = _now(state, collection)
    n = _partitions(state, tenant)
    return intake.delete(
        state.log, tenant, collection, ids, now_ms=state.clock.now_ms(), partitions=n
    )


def _partitions(state: GatewayState, tenant: Tenant) -> int:
    return intake.divided_over(state.log, tenant, state.registry.partition_maps(tenant.name))
