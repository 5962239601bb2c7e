"""What can go wrong, sorted by what the caller does next.

VicinageError
├── Refused       the request cannot be served as it is: `field` and `limit` say what to mend
├── Denied        no valid key, or it lacks the scope
│   └── NotFound  nothing of that name is yours
├── Overloaded    come back after `retry_after_s` (the client has, until its time was up)
├── Unavailable   a part of the platform is away; come back after `retry_after_s`
└── Unreachable   nobody answered at that address
"""

from collections.abc import Mapping
from typing import Any


class VicinageError(Exception):
    """Root of the tree. `type` is the stable problem type, `status` the HTTP status (0: no answer)."""

    def __init__(self, detail: str, *, problem: Mapping[str, Any] | None = None, status: int = 0) -> None:
        super().__init__(detail)
        facts = problem or {}
        self.detail = detail
        self.status = status
        self.type = str(facts.get("type", "about:blank"))
        self.field: str | None = facts.get("field")
        self.limit: Any = facts.get("limit")
        self.retry_after_s: float | None = facts.get("retry_after_s")


class Refused(VicinageError):
    """Mend the request."""


class Denied(VicinageError):
    """Send another key."""


class NotFound(Denied):
    """Nothing of that name is yours."""


class Overloaded(VicinageError):
    """Too much at once."""


class Unavailable(VicinageError):
    """A part of the platform is away."""


class Unreachable(VicinageError):
    """Nobody answered."""


def of(status: int, problem: Mapping[str, Any]) -> VicinageError:
    """The error of an answer."""
    kind: type[VicinageError]
    match status:
        case 404:
            kind = NotFound
        case 401 | 403:
            kind = Denied
        case 429:
            kind = Overloaded
        case 502 | 503 | 504:
            kind = Unavailable
        case _ if status < 500:
            kind = Refused
        case _:
            kind = VicinageError
    return kind(
        str(problem.get("detail") or problem.get("title") or f"status {status}"), problem=problem, status=status
    )
