"""Writes errors as RFC 9457 problem documents.

Only this module maps errors to HTTP responses. A problem document never has another tenant's names.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from starlette.responses import Response

from vicinage.errors import (
    DeadlineExceeded,
    Denied,
    Overloaded,
    Refused,
    Unavailable,
    VicinageError,
)

MEDIA_TYPE: Final = "application/problem+json"


def problem(error: VicinageError) -> Response:
    """Returns the response of one of the platform's errors."""
    headers: dict[str, str] = {}
    if isinstance(error, Overloaded | Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Denied) and error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="vicinage"'
    return _response(problem_body(error), error.status, headers)


def problem_body(error: VicinageError) -> dict[str, Any]:
    """Returns the problem document of one of the platform's errors."""
    body: dict[str, Any] = {
        "type": f"urn:vicinage:problem:{error.kind}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if isinstance(error, Refused):
        body |= {k: v for k, v in (("field", error.field), ("limit", error.limit)) if v is not None}
    if isinstance(error, Overloaded | Unavailable):
        body["retry_after_s"] = error.retry_after_s
    if isinstance(error, Unavailable):
        body["dependency"] = error.dependency
    if isinstance(error, DeadlineExceeded) and error.ahead is not None:
        body["ahead"] = error.ahead
    if isinstance(error, DeadlineExceeded) and error.waited_for:
        body["wait_for"] = error.waited_for
    return body


HTTP_KINDS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("http", "The bytes are not an HTTP request."),
    404: ("not-found", "There is no such path."),
    405: (
        "method-not-allowed",
        "The path does not have this method; the header Allow lists those that it has.",
    ),
    408: ("request-timeout", "The head of the request was not complete in time."),
    431: ("head-too-large", "Request line and headers, or trailers, are too large."),
    503: (
        "unavailable",
        "The server has no room for another connection; try again after Retry-After.",
    ),
}
"""Problems of HTTP itself, by status: the kind and its meaning."""


def plain(
    status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a problem of HTTP itself, for example an unknown path or method."""
    return _response(http_body(status, title, detail), status, headers or {})


def http_body(status: int, title: str, detail: str) -> dict[str, object]:
    """Returns the problem document of a status of HTTP itself."""
    kind = HTTP_KINDS.get(status, ("http", ""))[0]
    return {
        "type": f"urn:vicinage:problem:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
    }


def internal(request_id: str) -> Response:
    """Returns the problem of an internal error.

    Internal errors hide details; the log has them under `request_id`.
    """
    body = {
        "type": "urn:vicinage:problem:internal",
        "title": "Internal error",
        "status": 500,
        "detail": "something went wrong here; the operators' events have it under this request id",
        "request_id": request_id,
    }
    return _response(body, 500, {})


def _response(body: Mapping[str, Any], status: int, headers: Mapping[str, str]) -> Response:
    return Response(orjson.dumps(body), status, headers=dict(headers), media_type=MEDIA_TYPE)
