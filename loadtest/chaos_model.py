"""Models the possible states of each document of a collection, given the acknowledged writes. Pure.

A state is the number of the write that made the document, or GONE. A document has several possible
states after a lost answer, or after a deletion by filter that ran beside writes. Otherwise it has
one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

State = int | None
GONE: Final = None
PARTS: Final = 4
"""Values of the field that deletions by filter name."""


def part_of(number: int) -> int:
    """Returns the value of the field `part` in the document that this write makes."""
    return number % PARTS


class Ledger:
    """The documents of one creation of a collection. An unknown ID is GONE."""

    def __init__(self) -> None:
        self._now: dict[str, set[State]] = {}
        self._trail: defaultdict[str, set[State]] = defaultdict(set)
        """Every state that a document may have had since the last complete comparison."""
        self._unordered: set[str] | None = None
        """Documents written since the writes became unordered; None while they are ordered."""
        self.history: defaultdict[str, list[str]] = defaultdict(list)
        """The history of each document, to find the cause of an error."""

    def ids(self) -> list[str]:
        """Returns the documents that were ever written."""
        return list(self._now)

    def may_be(self, name: str) -> set[State]:
        """Returns the states that the document may be found in."""
        return self._now.get(name, {GONE})

    def wrote(self, name: str, state: State, *, acknowledged: bool, note: str = "") -> None:
        """Applies a write, or a deletion (GONE)."""
        self.history[name].append(f"{'=' if acknowledged else '?'}{state} {note}".rstrip())
        certain = acknowledged and (self._unordered is None or name not in self._unordered)
        if self._unordered is not None and acknowledged:
            self._unordered.add(name)
        self._set(name, {state} if certain else self.may_be(name) | {state})

    def deleted_part(self, part: int, *, acknowledged: bool, note: str = "") -> None:
        """Applies a deletion by filter of this part: matching states may be, or are, GONE."""
        for name in self.ids():
            before = self.may_be(name)
            passing = {s for s in before if s is not None and part_of(s) == part}
            if passing:
                certain = acknowledged and self._unordered is None
                self.history[name].append(f"{'-' if certain else '?-'}part {part} {note}".rstrip())
                self._set(name, (before - passing if certain else before) | {GONE})

    def raced(self, part: int, before: Mapping[str, set[State]], written: Iterable[str]) -> None:
        """Applies a deletion by filter that ran beside `written` writes.

        `before` has the states at its start. A document that was written meanwhile stays if its
        last write does not match. Otherwise both outcomes are correct.
        """
        beside = set(written)
        for name, states in before.items():
            passing = {s for s in states if s is not None and part_of(s) == part}
            if name not in beside and passing:
                self.history[name].append(f"-part {part}, raced")
                self._set(name, (states - passing) | {GONE})
        for name in beside:
            if any(s is not None and part_of(s) == part for s in self.may_be(name)):
                self.history[name].append(f"?-part {part}, raced")
                self._set(name, self.may_be(name) | {GONE})

    def begin_unordered(self) -> None:
        """Marks the writes as unordered: partitions are being added."""
        self._unordered = set()

    def end_unordered(self) -> None:
        """Marks the writes as ordered again."""
        self._unordered = None

    def log_lost(self) -> None:
        """Marks the log as deleted: writes since the last comparison may be lost with it."""
        for name, trail in self._trail.items():
            self.history[name].append("log deleted")
            self._now[name] = self.may_be(name) | trail

    def found(self, seen: Mapping[str, int]) -> list[str]:
        """Compares the documents that a complete read found, and returns what is wrong with them.

        The found documents are the state from then on.
        """
        wrong = []
        for name in sorted(self._now.keys() | seen.keys()):
            state = seen.get(name)
            if state not in self.may_be(name):
                right = sorted(map(str, self.may_be(name)))
                wrong.append(f"{name} is {state}, expected {right}: {self.history[name][-12:]}")
            elif len(self.may_be(name)) > 1:
                self.history[name].append(f"found {state}")
            self._now[name] = {state}
        self._trail.clear()
        return wrong

    def _set(self, name: str, states: set[State]) -> None:
        self._trail[name] |= self.may_be(name) | states
        self._now[name] = states
