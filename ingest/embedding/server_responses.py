"""Responses of the embedder role's HTTP API, and the conversion of errors to responses."""

import base64
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vicinage.errors import Overloaded, Unavailable, VicinageError
from vicinage.records import Floats
from vicinage.telemetry import events

_event = events("embedder")


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a response with a JSON body."""
    return Response(orjson.dumps(value), status, headers=headers, media_type="application/json")


def encoded(vector: Floats, encoding_format: str) -> str | list[float]:
    """Returns a vector as the base64 of its float32 bytes, or as a list of numbers."""
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
    floats: list[float] = vector.tolist()
    return floats


async def _known_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, VicinageError)
    headers = {}
    if isinstance(error, Overloaded | Unavailable):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return _problem(error.status, error.kind, error.detail, getattr(error, "field", None), headers)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "not-found" if error.status_code == 404 else "http"
    return _problem(error.status_code, kind, error.detail)


async def _internal_error(request: Request, error: Exception) -> Response:
    """The request boundary: logs an internal error and returns a problem without details."""
    _event.error("request.failed", path=request.url.path, exc_info=error)
    return _problem(500, "internal", "something went wrong in the embedder")


ERROR_HANDLERS: Final[Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]] = {
    VicinageError: _known_error,
    HTTPException: _http_error,
    Exception: _internal_error,
}


def _problem(
    status: int,
    kind: str,
    detail: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Returns an error in the form of the OpenAI API."""
    error = {"message": detail, "type": kind, "param": param, "code": kind}
    return json_response({"error": error}, status, headers)
