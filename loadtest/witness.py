"""A witness: writes one collection without end and checks that acknowledged writes are found.

About half of its writes are of documents that are never written again. The others replace and
delete a few documents repeatedly. A write whose answer was lost may have happened or not: both
outcomes are correct, and no other is.
"""

import itertools
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from vicinage_client import Client, Denied, NotFound, Refused, Unavailable, VicinageError
from vicinage_client.results import Hit, latest

DIMENSION = 16
REPLACED = 200
"""Documents that are replaced: few, so that each is replaced often."""
PART = 500
"""States per part: at most as many documents, so that one exact search shows a part completely.

k_max is 1,000; duplicates are included.
"""
NEVER = -1
ANSWERS_S = 120.0
WAIT_MS = 2_000

State = int | None
"""The number of the write that made a document's state; None: there is no such document."""


class Kept(NamedTuple):
    """An acknowledged write of a document that is never written again."""

    name: str
    state: int
    token: str


@dataclass
class Witness:
    """One thread writes and searches (`run`).

    Others may query what must exist, and read it back.
    """

    client: Client
    collection: str
    text: bool
    seed: int
    stop: threading.Event = field(default_factory=threading.Event)
    allowed: dict[str, list[State]] = field(default_factory=dict)
    """ID → its possible states: the last acknowledged, then each later one without an answer."""
    sent: defaultdict[str, set[State]] = field(default_factory=lambda: defaultdict(set))
    """ID → every state ever sent, which a search that waits for nothing may find."""
    acknowledged: Counter[str] = field(default_factory=Counter)
    """ID → how many of its writes were acknowledged."""
    kept: Kept | None = None
    token: str | None = None
    """Waits for every acknowledged write."""
    number: int = 0
    """State of the current write."""
    searches: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Writes and searches until told to stop."""
        choose = random.Random(self.seed)
        for number in itertools.count(1):
            if self.stop.is_set():
                return
            self.number = number
            kept = choose.random() < 0.5
            name = f"n{number}" if kept else f"d{choose.randrange(REPLACED)}"
            self._write(name, None if not kept and choose.random() < 0.1 else number, kept=kept)
            if number % 3 == 0:
                self._search(waiting=number % 2 == 0)
            time.sleep(0.01)

    def _write(self, name: str, state: State, *, kept: bool) -> None:
        # NOTE: a state is allowed before it is sent, and is the only allowed one only once it is
        # acknowledged.
        self.allowed.setdefault(name, [None]).append(state)
        self.sent[name].add(state)
        try:
            token = self._send(name, state)
        except (Refused, Denied) as error:
            self.wrong.append(f"write {self.number} of {name} was refused: {error}")
            return
        except VicinageError:
            self.refused += 1
            return
        self.allowed[name] = [state]
        self.acknowledged[name] += 1
        self.token = latest((self.token, token))
        if kept and state is not None and token is not None:
            self.kept = Kept(name, state, token)

    def _send(self, name: str, state: State) -> str | None:
        if state is None:
            return self.client.delete(self.collection, [name]).token
        document: dict[str, Any] = {
            "id": name,
            "metadata": {"name": name, "state": state, "part": state // PART},
        }
        document |= {"text": f"state {state} of {name}"} if self.text else {"vector": vector(state)}
        return self.client.upsert(self.collection, [document]).token

    def _search(self, *, waiting: bool) -> None:
        """Checks one search during writes.

        No document may appear twice or be unknown. After a wait, none may be in a state that is
        gone.
        """
        try:
            hits = self.find(self.number, token=self.token if waiting else None)
        except (Refused, Denied) as error:
            self.wrong.append(f"search {self.number} was refused: {error}")
            return
        except VicinageError:
            self.refused += 1
            return
        self.searches += 1
        what = f"search {self.number}"
        self._note_doubles(hits, what)
        for hit in hits:
            right = (
                self.allowed.get(hit.document_id, ())
                if waiting
                else self.sent.get(hit.document_id, ())
            )
            if state_of(hit) not in right:
                self.wrong.append(
                    f"{what}: {hit.document_id} in state {state_of(hit)}, right were {list(right)}"
                )

    def find(
        self,
        number: int = 1,
        *,
        only: Mapping[str, Any] | None = None,
        token: str | None = None,
        k: int = 10,
        exact: bool = False,
    ) -> tuple[Hit, ...]:
        """Returns the hits of one search.

        Raises Unavailable if a part was missing: then absence proves nothing.
        """
        by = {"text": f"state {number}"} if self.text else {"vector": vector(number)}
        answer = self.client.search(
            self.collection,
            **by,
            k=k,
            filter=only,
            wait_for=token,
            include=["metadata"],
            exact=exact,
            timeout_ms=WAIT_MS,
        )
        if answer.degraded:
            raise Unavailable(f"degraded: {answer.degraded}")
        return answer.hits

    def read_back(self, kept: Kept) -> None:
        """Searches for a write after waiting for it, until answered.

        Records it if it is not found as written.
        """
        hits = self.find_again(only={"name": kept.name}, token=kept.token)
        states = [state_of(hit) for hit in hits]
        if states != [kept.state]:
            self.wrong.append(f"read back {kept.name}: acknowledged {kept.state}, found {states}")

    def find_again(self, **search: Any) -> tuple[Hit, ...]:
        """Repeats `find` until there is an answer."""
        end = time.monotonic() + ANSWERS_S
        while True:
            try:
                return self.find(**search)
            except (Refused, Denied):
                raise
            except VicinageError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.02)

    def check(self) -> dict[str, Any]:
        """Checks, after all writes, that every acknowledged write is found, and nothing else."""
        self.find_again(token=self.token)
        found = {name: self._got(name) for name in self.allowed}
        right = {name for name, state in found.items() if state in self.allowed[name]}
        for name in found.keys() - right:
            self.wrong.append(f"{name}: right were {self.allowed[name]}, found {found[name]}")
        self._check_scan()
        self._check_counts()
        return {
            "collection": "texts" if self.text else "vectors",
            "acknowledged": self.acknowledged.total(),
            "found": sum(n for name, n in self.acknowledged.items() if name in right),
            "never_written_again": sum(name.startswith("n") for name in self.acknowledged),
            "unsure": sum(len(states) > 1 for states in self.allowed.values()),
            "searches": self.searches,
            "refused": self.refused,
            "wrong": self.wrong,
        }

    def _got(self, name: str) -> State:
        try:
            document = self.client.get(self.collection, name)
        except NotFound:
            return None
        if len(document.passages) != 1:
            self.wrong.append(f"{name} has {len(document.passages)} passages")
        state: int = document.metadata["state"]
        return state

    def _check_scan(self) -> None:
        """Compares every document with the expected ones, by exact searches of each part."""
        parts = [*range(self.number // PART + 1), {"$exists": False}]
        hits = [
            h for part in parts for h in self.find_again(only={"part": part}, k=1_000, exact=True)
        ]
        self._note_doubles(hits, "scan")
        seen = {hit.document_id: state_of(hit) for hit in hits}
        for name in seen.keys() | self.allowed.keys():
            if seen.get(name) not in self.allowed.get(name, [None]):
                self.wrong.append(
                    f"scan: {name} in state {seen.get(name)}, right were {self.allowed.get(name)}"
                )

    def _check_counts(self) -> None:
        """Compares the collection's counts: exact, except for documents whose state is unknown."""
        least = sum(None not in states for states in self.allowed.values())
        most = sum(states != [None] for states in self.allowed.values())
        counts = self.client.collection(self.collection).counts
        for what in ("documents", "passages"):
            if not least <= counts[what] <= most:
                self.wrong.append(
                    f"{counts[what]} {what} are counted, right were {least} to {most}"
                )

    def _note_doubles(self, hits: Sequence[Hit], where: str) -> None:
        for name, times in Counter(hit.document_id for hit in hits).items():
            if times > 1:
                self.wrong.append(f"{where}: {name} is found {times} times")


def state_of(hit: Hit) -> State:
    """Returns the state that a hit is in; one that was never written if the hit names none."""
    assert hit.metadata is not None, "find asks for it"
    state: int = hit.metadata.get("state", NEVER)
    return state


def vector(number: int) -> np.ndarray:
    """Returns a vector that the number alone determines."""
    return np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)
