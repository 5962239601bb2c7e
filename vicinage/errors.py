"""Every error the platform raises on purpose, sorted by what the caller does next.

    VicinageError
    ├── Refused            400  fix the request; `field` and `limit` say what
    │   ├── TooLarge       413
    │   ├── UnsupportedMedia 415
    │   └── Conflict       409  it was changed meanwhile: read again, then decide
    ├── Denied             reveals nothing about what exists
    │   ├── Unauthenticated 401  send a valid key
    │   ├── Forbidden      403  the key lacks the scope
    │   └── NotFound       404  nothing of that name is yours
    ├── Overloaded         429  come back after `retry_after_s`
    ├── Unavailable        503  a dependency is away; come back after `retry_after_s`
    │   └── DeadlineExceeded 504 the request's own deadline passed first
    └── Corrupt            500  a stored object failed its checksum; it is never served

They cross processes whole: a searcher on another node raises what one in this process would.

`query/problems.py` turns these into RFC 9457 documents: the type is `urn:vicinage:problem:<kind>`.
"""

from typing import Any, ClassVar


class VicinageError(Exception):
    """Root of the tree. `kind` is the stable last part of the problem type; `status` its HTTP status."""

    kind: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        # Python would rebuild an exception from its positional arguments alone, and most of these have others.
        return _rebuilt, (type(self), self.args, self.__dict__)


class Refused(VicinageError):
    """The request cannot be served as it is; `field` names the part to change and `limit` the bound that it exceeds."""

    kind = "refused"
    status = 400
    title = "The request was refused"

    def __init__(self, detail: str, *, field: str | None = None, limit: str | float | None = None) -> None:
        super().__init__(detail)
        self.field = field
        self.limit = limit


class TooLarge(Refused):
    """The body or one of its parts is over its limit."""

    kind = "too-large"
    status = 413
    title = "Too large"


class UnsupportedMedia(Refused):
    """The body is compressed in a way that is not supported."""

    kind = "unsupported-media"
    status = 415
    title = "Unsupported media"


class Conflict(Refused):
    """The state changed, or the name is taken: read again and decide anew."""

    kind = "conflict"
    status = 409
    title = "Conflict"

    def __init__(self, detail: str, *, expected: object = None, found: object = None) -> None:
        super().__init__(detail)
        self.expected = expected
        self.found = found


class Denied(VicinageError):
    """Not allowed or not found: the answer is the same, so that it reveals nothing."""

    kind = "denied"
    status = 403
    title = "Denied"


class Unauthenticated(Denied):
    """No key, or one that is unknown, revoked or expired."""

    kind = "unauthenticated"
    status = 401
    title = "A valid key is needed"


class Forbidden(Denied):
    """The key is valid but lacks the scope."""

    kind = "forbidden"
    status = 403
    title = "The key lacks the scope"


class NotFound(Denied):
    """Nothing of that name belongs to this credential."""

    kind = "not-found"
    status = 404
    title = "Not found"


class Overloaded(VicinageError):
    """A bounded queue is full, or the tenant's share is in use; try again after `retry_after_s` seconds."""

    kind = "overloaded"
    status = 429
    title = "Too many requests"

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unavailable(VicinageError):
    """A part that is needed does not answer (`dependency` names it); try again after `retry_after_s` seconds.

    `operator_detail` may name addresses and foreign messages: events and operators' answers show it, a tenant's never.
    """

    kind = "unavailable"
    status = 503
    title = "A dependency is unavailable"

    def __init__(
        self, detail: str, *, dependency: str, retry_after_s: float = 1.0, operator_detail: str | None = None
    ) -> None:
        super().__init__(detail)
        self.dependency = dependency
        self.retry_after_s = retry_after_s
        self.operator_detail = detail if operator_detail is None else operator_detail


class DeadlineExceeded(Unavailable):
    """The request's deadline passed before the answer was complete."""

    kind = "deadline-exceeded"
    status = 504
    title = "The deadline passed"

    def __init__(
        self, detail: str, *, dependency: str = "deadline", retry_after_s: float = 0.1, ahead: int | None = None
    ) -> None:
        super().__init__(detail, dependency=dependency, retry_after_s=retry_after_s)
        self.ahead = ahead
        """Records that are still before the position waited for, its own included; None where nothing is waited for."""
        self.waited_for: str | None = None
        """The token that was waited for, as text: what `latest` was when the wait began."""


class Corrupt(VicinageError):
    """A stored object failed its checksum or its format; `path` names it. It is never served."""

    kind = "corrupt"
    status = 500
    title = "A stored object is corrupt"

    def __init__(self, detail: str, *, path: str) -> None:
        super().__init__(detail)
        self.path = path


def _rebuilt(kind: type[VicinageError], args: tuple[object, ...], facts: dict[str, object]) -> VicinageError:
    made = kind.__new__(kind, *args)
    made.__dict__.update(facts)
    return made
