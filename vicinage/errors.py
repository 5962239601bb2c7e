"""Every error that the platform raises deliberately, sorted by what the caller does next.

    VicinageError
    ├── Refused            400  fix the request; `field` and `limit` say what
    │   ├── TooLarge       413
    │   ├── UnsupportedMedia 415
    │   └── Conflict       409  the state changed: read it again, then decide
    ├── Denied             reveals nothing about what exists
    │   ├── Unauthenticated 401  send a valid key
    │   ├── Forbidden      403  the key lacks the scope
    │   └── NotFound       404  nothing of that name belongs to the caller
    ├── Overloaded         429  retry after `retry_after_s`
    ├── Unavailable        503  a dependency is unavailable; retry after `retry_after_s`
    │   └── DeadlineExceeded 504 the request's own deadline passed first
    └── Corrupt            500  a stored object failed its checksum; it is never served

Errors keep their fields when they are pickled, so a searcher on another node raises the same error
as one in this process.

`query/problems.py` turns errors into RFC 9457 documents of type `urn:vicinage:problem:<kind>`.
"""

from typing import Any, ClassVar


class VicinageError(Exception):
    """Root of the error tree; by itself, an internal error.

    `kind` is the stable last part of the problem type; `status` is the HTTP status.
    """

    kind: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        # By default Python rebuilds an exception from its positional arguments; most of these have
        # others.
        return _rebuilt, (type(self), self.args, self.__dict__)


class Refused(VicinageError):
    """The request is invalid; `field` names the part to change, `limit` the exceeded bound."""

    kind = "refused"
    status = 400
    title = "The request was refused"

    def __init__(
        self, detail: str, *, field: str | None = None, limit: str | float | None = None
    ) -> None:
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
    """The state changed, or the name is taken: read the state again, then decide."""

    kind = "conflict"
    status = 409
    title = "Conflict"

    def __init__(self, detail: str, *, expected: object = None, found: object = None) -> None:
        super().__init__(detail)
        self.expected = expected
        self.found = found


class Denied(VicinageError):
    """The request is not allowed or its object is not found; the error does not reveal which."""

    kind = "denied"
    status = 403
    title = "Denied"


class Unauthenticated(Denied):
    """The request has no key, or one that is unknown, revoked or expired."""

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
    """A bounded queue is full, or the tenant's share is in use; retry after `retry_after_s`."""

    kind = "overloaded"
    status = 429
    title = "Too many requests"

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unavailable(VicinageError):
    """A dependency, which `dependency` names, does not answer; retry after `retry_after_s` seconds.

    `operator_detail` may contain addresses and messages of other programs. Events and responses to
    operators show it; responses to tenants never do.
    """

    kind = "unavailable"
    status = 503
    title = "A dependency is unavailable"

    def __init__(
        self,
        detail: str,
        *,
        dependency: str,
        retry_after_s: float = 1.0,
        operator_detail: str | None = None,
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
        self,
        detail: str,
        *,
        dependency: str = "deadline",
        retry_after_s: float = 0.1,
        ahead: int | None = None,
    ) -> None:
        super().__init__(detail, dependency=dependency, retry_after_s=retry_after_s)
        self.ahead = ahead
        """Records up to and including the position waited for; None if the request did not wait."""
        self.waited_for: str | None = None
        """The text of the token waited for; for `latest`, the token when the wait began."""


class Corrupt(VicinageError):
    """A stored object failed its checksum or its format; `path` names it. It is never served."""

    kind = "corrupt"
    status = 500
    title = "A stored object is corrupt"

    def __init__(self, detail: str, *, path: str) -> None:
        super().__init__(detail)
        self.path = path


def _rebuilt(
    kind: type[VicinageError], args: tuple[object, ...], facts: dict[str, object]
) -> VicinageError:
    made = kind.__new__(kind, *args)
    made.__dict__.update(facts)
    return made
