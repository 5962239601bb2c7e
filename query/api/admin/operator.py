"""Shared by the operators' routes: the credential, and the tenant that a query names."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from query.api.http import authenticate, name_in, state_of
from query.state import GatewayState


async def operator(request: Request) -> tuple[GatewayState, str]:
    """Returns the state and the actor's name, once the key is an operator's.

    Reads the catalog first. Raises Unauthenticated, Forbidden, Unavailable.
    """
    principal = await authenticate(request, "operate")
    state = state_of(request)
    await run_in_threadpool(state.registry.refresh)
    return state, f"operator/{principal.key_id}"


def known_tenant(state: GatewayState, request: Request) -> str | None:
    """Returns the tenant that the query names, if any. Raises NotFound if it does not exist."""
    name = name_in(request.query_params.get("tenant"))
    if name is not None and state.registry.deleted_tenant(name) is None:
        state.registry.tenant(name)
    return name
