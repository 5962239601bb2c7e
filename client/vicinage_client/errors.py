"""The error tree of the client, sorted by what the caller does next.

VicinageError
├── InvalidArgument      refused by the client before anything was sent (also a ValueError)
├── Refused              the platform cannot serve the request: change `field`, within `limit`
│   ├── Conflict         the state changed, or the name is taken: read again, then decide
│   ├── TooLarge         the body, or a part of it, is over its limit: send less at once
│   └── DocumentsRejected  some documents were rejected: `written` names each, with its reason
├── Denied               no valid key, or it lacks the scope
│   └── NotFound         nothing of that name belongs to this key's tenant
├── Overloaded           retry after `retry_after_s` (the client did, until its timeout)
├── Unavailable          a part of the platform does not answer; retry after `retry_after_s`
│   └── Timeout          the deadline passed before the answer was complete
└── Unreachable          no platform answered at that address

No message, `repr` or attribute of an error contains the API key.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vicinage_client.results import Written


class VicinageError(Exception):
    """Root of the tree.

    `type` is the stable problem type, `status` the HTTP status (0: no answer), `problem` the whole
    problem document. `written` is set if a bulk write fails part way: the documents that were
    durable before the failure.
    """

    def __init__(
        self, detail: str, *, problem: Mapping[str, Any] | None = None, status: int = 0
    ) -> None:
        super().__init__(detail)
        facts = problem or {}
        self.detail = detail
        self.status = status
        self.problem = facts
        self.type = str(facts.get("type", "about:blank"))
        self.field: str | None = facts.get("field")
        self.limit: Any = facts.get("limit")
        self.retry_after_s: float | None = facts.get("retry_after_s")
        self.written: Written | None = None


class InvalidArgument(VicinageError, ValueError):
    """An argument that no platform can accept. Nothing of it was sent.

    `document_id` names the invalid document, if there is one.
    """

    def __init__(self, detail: str, *, document_id: str | None = None) -> None:
        super().__init__(detail)
        self.document_id = document_id


class Refused(VicinageError):
    """The platform cannot serve the request as it is: change it."""


class Conflict(Refused):
    """The name is taken, or the state changed: read again, then decide."""


class TooLarge(Refused):
    """The body or a part of it is over its limit: send less at once."""


class DocumentsRejected(Refused):
    """Some documents were rejected; all others are durable.

    `written` has the reasons and the token.
    """

    def __init__(self, written: "Written") -> None:
        first = written.rejected[0] if written.rejected else None
        example = f"; the first is {first.id!r}: {first.reason}" if first else ""
        super().__init__(
            f"{written.n_rejected} rejected, {written.accepted} accepted{example}"
            ' (pass on_rejected="return" to get these facts instead of this error)'
        )
        self.written: Written = written


class Denied(VicinageError):
    """The key is missing, invalid, or lacks the scope: send another one."""


class NotFound(Denied):
    """Nothing of that name belongs to this key's tenant."""


class Overloaded(VicinageError):
    """Too many requests at once: send less, or retry later."""


class Unavailable(VicinageError):
    """A part of the platform does not answer: retry."""


class Timeout(Unavailable):
    """The deadline passed before the answer was complete."""


class Unreachable(VicinageError):
    """No platform answered at that address."""


_KINDS: Mapping[int, type[VicinageError]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: Timeout,
}


def of(status: int, problem: Mapping[str, Any]) -> VicinageError:
    """Returns the error of an answer: by its status, with the facts of its problem document."""
    kind = _KINDS.get(status, Refused if status < 500 else VicinageError)
    detail = str(problem.get("detail") or problem.get("title") or f"status {status}")
    return kind(detail, problem=problem, status=status)
