"""What each document of a collection may be, given which writes were acknowledged. Pure.

A state is the number of the write that made the document, or GONE. A document may be in several
states where an answer was lost, or where a deletion by filter ran beside writes; everything else is
one state.
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
    """The documents of one creation of a collection. An id that it does not know is GONE."""

    def __init__(self) -> None:
        self._now: dict[str, set[State]] = {}
        self._trail: defaultdict[str, set[State]] = defaultdict(set)
        """Every state that a document may have had since all writes were last seen."""
        self._unordered: set[str] | None = None
        """While writes have no defined order: the documents that were written since.

        None: they have one.
        """
        self.history: defaultdict[str, list[str]] = defaultdict(list)
        """What happened to each document, to find a cause."""

    def ids(self) -> list[str]:
        """Returns the documents that were ever written."""
        return list(self._now)

    def may_be(self, name: str) -> set[State]:
        """Returns the states that the document may be found in."""
        return self._now.get(name, {GONE})

    def wrote(self, name: str, state: State, *, acknowledged: bool, note: str = "") -> None:
        """Takes in a write, or a deletion (GONE)."""
        self.history[name].append(f"{'=' if acknowledged else '?'}{state} {note}".rstrip())
        certain = acknowledged and (self._unordered is None or name not in self._unordered)
        if self._unordered is not None and acknowledged:
            self._unordered.add(name)
        self._set(name, {state} if certain else self.may_be(name) | {state})

    def deleted_part(self, part: int, *, acknowledged: bool, note: str = "") -> None:
        """Takes in a deletion by filter of this part: each state that passes may be, or is, GONE."""
        for name in self.ids():
            before = self.may_be(name)
            passing = {s for s in before if s is not None and part_of(s) == part}
            if passing:
                certain = acknowledged and self._unordered is None
                self.history[name].append(f"{'-' if certain else '?-'}part {part} {note}".rstrip())
                self._set(name, (before - passing if certain else before) | {GONE})

    def raced(self, part: int, before: Mapping[str, set[State]], written: Iterable[str]) -> None:
        """Takes in a deletion by filter that ran beside `written` writes; `before`: the states when it began.

        A document that was written meanwhile stays if its last write does not pass; else either is right.
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
        """From now on two writes of one document have no defined order: partitions are being added."""
        self._unordered = set()

    def end_unordered(self) -> None:
        """From now on they do."""
        self._unordered = None

    def log_lost(self) -> None:
        """The log was deleted: what was written since the last look may have gone with it."""
        for name, trail in self._trail.items():
            self.history[name].append("log deleted")
            self._now[name] = self.may_be(name) | trail

    def found(self, seen: Mapping[str, int]) -> list[str]:
        """Takes in what a complete look found, and returns what is wrong with it.

        From now on that is what is.
        """
        wrong = []
        for name in sorted(self._now.keys() | seen.keys()):
            state = seen.get(name)
            if state not in self.may_be(name):
                right = sorted(map(str, self.may_be(name)))
                wrong.append(f"{name} is {state}, right were {right}: {self.history[name][-12:]}")
            elif len(self.may_be(name)) > 1:
                self.history[name].append(f"found {state}")
            self._now[name] = {state}
        self._trail.clear()
        return wrong

    def _set(self, name: str, states: set[State]) -> None:
        self._trail[name] |= self.may_be(name) | states
        self._now[name] = states
