"""Checks document ids. Pure."""

import re
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Unicode category Cc: breaks lines of logs and terminals. File names have all other characters."""
_SEPARATORS: Final = re.compile(r"[/\\]|%2f|%5c", re.IGNORECASE)
"""Slashes and their equivalents.

A URL parser reads a backslash as a slash (WHATWG URL Standard, 4.4, "special" schemes); proxies
also read `%2f` as one.
"""
_DOT: Final = re.compile(r"%2e", re.IGNORECASE)


def fault_of(document_id: object, bytes_max: int) -> str | None:
    """Returns the reason why a deletion cannot name this id, None if it can.

    A deletion may name an id that no new document may have (`fault_of_new`).
    """
    if not isinstance(document_id, str) or not document_id:
        return "must be a string that is not empty"
    try:
        size = len(document_id.encode())
    except UnicodeEncodeError:
        return "holds half of a surrogate pair: not valid Unicode"
    if size > bytes_max:
        return f"{size} bytes; at most {bytes_max}"
    if _CONTROL.search(document_id):
        return "holds a control character"
    return None


def fault_of_new(document_id: object, bytes_max: int) -> str | None:
    """Returns the reason why a new document cannot have this id, None if it can."""
    fault = fault_of(document_id, bytes_max)
    if fault is None and isinstance(document_id, str) and has_dot_segment(document_id):
        return "has '.' or '..' between slashes, which URL parsers remove from a path"
    return fault


def has_dot_segment(document_id: str) -> bool:
    """Returns whether a URL parser shortens a path that ends with this id.

    Parsers remove the segments `.` and `..` before they send a request (RFC 3986, 5.2.4). Some read
    `%2e` as a dot. The request then names another resource than the document.
    """
    if "." not in document_id and "%" not in document_id:
        return False
    return any(_DOT.sub(".", segment) in (".", "..") for segment in _SEPARATORS.split(document_id))
