"""The request boundary: turns every error of a request into a problem document."""

import uuid

from starlette.responses import Response

from query.problems import internal, problem
from vicinage.errors import VicinageError
from vicinage.metrics import counter
from vicinage.telemetry import events

_event = events("query")
_errors = counter("vicinage_query_errors_total")


def problem_response(error: Exception, path: str) -> Response:
    """Returns the problem document of an error and counts the error by kind.

    Internal errors hide details; the log has them under request_id.
    """
    if isinstance(error, VicinageError):
        _errors.labels(error.kind).inc()
        return problem(error)
    request_id = uuid.uuid4().hex
    _errors.labels("internal").inc()
    _event.error("request.failed", request_id=request_id, path=path, exc_info=error)
    return internal(request_id)
