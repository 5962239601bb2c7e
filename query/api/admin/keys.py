"""API keys: create, list and revoke."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from query.api.admin.operator import known_tenant, operator
from query.api.bounds import EXPIRES_S_MAX
from query.api.http import answer, integer, json_object, name_in, typed
from query.api.models.admin import CreatedKey, CreateKeyRequest, KeyFacts, TenantParameters
from query.api.operations import list_of, operation
from tenants.entities import Key
from vicinage.errors import Refused

router = APIRouter(prefix="/v1/admin")


@router.post(
    "/keys",
    status_code=201,
    response_model=None,
    openapi_extra=operation(
        "createKey",
        "Keys",
        "operate",
        body=CreateKeyRequest,
        answers={201: CreatedKey},
        errors=(404,),
    ),
)
async def create_key(request: Request) -> Response:
    """Creates a key, which is shown once: a tenant's key, or an operator's without a tenant."""
    state, actor = await operator(request)
    value = await json_object(request, frozenset({"tenant", "scopes", "expires_s"}))
    scopes = typed(value, "scopes", list, "a list of scopes", needed=True)
    if not all(isinstance(s, str) for s in scopes):
        raise Refused("scopes is a list of strings", field="scopes")
    expires_s = integer(value, "expires_s", 1, EXPIRES_S_MAX, 0)
    expires_ms = state.clock.now_ms() + expires_s * 1000 if expires_s else None
    tenant = typed(value, "tenant", str, "a tenant's name")
    key, text = await run_in_threadpool(
        state.keys.create, tenant, scopes, expires_ms=expires_ms, actor=actor
    )
    return answer({**_key(key), "key": text}, 201)


@router.get(
    "/keys",
    response_model=None,
    openapi_extra=operation(
        "listKeys",
        "Keys",
        "operate",
        query=TenantParameters,
        answers={200: list_of(KeyFacts)},
        errors=(404,),
    ),
)
async def list_keys(request: Request) -> Response:
    """Returns keys without their secrets, of one tenant or of all."""
    state, _ = await operator(request)
    tenant = known_tenant(state, request)
    return answer([_key(k) for k in await run_in_threadpool(state.keys.list, tenant)])


@router.delete(
    "/keys/{key_id}",
    response_model=None,
    openapi_extra=operation(
        "revokeKey", "Keys", "operate", answers={200: KeyFacts}, errors=(404, 409)
    ),
)
async def revoke_key(key_id: str, request: Request) -> Response:
    """Revokes a key; within a second it is valid nowhere."""
    state, actor = await operator(request)
    return answer(_key(await run_in_threadpool(state.keys.revoke, name_in(key_id), actor=actor)))


def _key(key: Key) -> dict[str, Any]:
    return {**asdict(key), "scopes": sorted(key.scopes)}
