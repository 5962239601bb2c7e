"""Documents: write a batch, read one, delete one or many."""

from contextlib import ExitStack
from functools import partial
from typing import Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from indexer.index.snapshot import StoredDocument
from ingest import intake
from ingest.preparing import NDJSON, Body, Prepared, prepare
from ingest.validation import DocumentLimits
from query.api.http import (
    answer,
    authenticate,
    body,
    content_type,
    state_of,
    unknown_in,
    unless_gone,
)
from query.api.models.documents import (
    Document,
    WriteDocumentsAnswer,
    WriteDocumentsRequest,
)
from query.api.models.documents import StoredDocument as StoredDocumentBody
from query.api.models.search import WaitParameters
from query.api.operations import Body as BodyOf
from query.api.operations import Media, lines_of, operation
from query.api.search_request import token_of
from query.api.sending import joined, sent
from query.parsers import is_small
from query.state import GatewayState
from tenants.entities import Collection, Tenant
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
    *(Media(kind, lines_of(Document), {"example1": _LINES}) for kind in NDJSON),
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
    collection = newest(state, collection)
    return collection, partitions_of(state, tenant)


def newest(state: GatewayState, collection: Collection) -> Collection:
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
    check_query(request, frozenset({"wait_for"}))
    state = state_of(request)
    tenant, found = await state.pipeline.find(principal, collection)
    deadline = Deadline.after(state.settings.timeout_ms / 1000)
    token = token_of(request.query_params.get("wait_for"))
    with ExitStack() as held:
        permit = held.enter_context(state.pipeline.admitted(tenant))
        reading = state.pipeline.with_live_generation(
            found, partial(_stored, state, tenant, document_id, token, deadline), deadline
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
        collection = await state.pipeline.reach(token, tenant, collection, deadline)
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


def check_query(request: Request, known: frozenset[str]) -> None:
    """Raises Refused for an unknown parameter: an unencoded '?' may have cut off an id."""
    if (unknown := unknown_in(request.query_params, known)) is not None:
        raise Refused(
            f"unknown parameter {unknown!r}; a '?' in an id is sent as %3F", field=unknown
        )


def partitions_of(state: GatewayState, tenant: Tenant) -> int:
    """Returns the number of partitions of the tenant's documents topic."""
    return intake.divided_over(state.log, tenant, state.registry.partition_maps(tenant.name))
