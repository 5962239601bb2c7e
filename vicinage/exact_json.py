"""Detects and parses JSON integers beyond 64 bits, which the fast parser silently rounds. Pure."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from vicinage.errors import Refused

_DIGITS: Final = bytes(ord("9") if b in b"0123456789" else ord(" ") for b in range(256))
_LONG: Final = b"9" * 19
"""The smallest integer beyond 64 bits has 19 digits."""
BEYOND: Final = float(1 << 63)


def may_be_rounded(value: float) -> bool:
    """Returns whether a parsed number may have been an integer beyond 64 bits in its text."""
    return abs(value) >= BEYOND and value.is_integer()


def has_rounded(value: object) -> bool:
    """Returns whether a parsed value contains a number that may have been rounded.

    Not recursive.
    """
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            left.extend(each.values())
        elif isinstance(each, list):
            left.extend(each)
        elif isinstance(each, float) and may_be_rounded(each):
            return True
    return False


def has_long_digits(data: bytes) -> bool:
    """Returns whether the text may contain an integer beyond 64 bits, in about 1 ns per byte."""
    return data.translate(_DIGITS).find(_LONG) >= 0


class Exactly:
    """A JSON text, parsed on demand by a slower parser that keeps integers of any length."""

    def __init__(self, data: bytes | str) -> None:
        self._data = data

    def part(self, *keys: str | int) -> "Part":
        """Returns the part of the value at these keys and indices."""
        return Part(self, keys)

    @cached_property
    def value(self) -> Any:
        """The value. Raises Refused if the slower parser fails."""
        try:
            return json.loads(self._data)
        except (ValueError, RecursionError) as error:
            raise Refused(
                f"a number of the JSON is too long: {str(error)[:100]}", field="body"
            ) from None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a text's value; reading it parses the whole text."""

    of: Exactly
    keys: tuple[str | int, ...]

    @property
    def value(self) -> Any:
        """The part. Raises Refused as the whole does."""
        found = self.of.value
        for key in self.keys:
            found = found[key]
        return found
