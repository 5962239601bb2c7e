"""A tenant without faults: the latency of its writes and searches while others have faults."""

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
from chaos_tenant import Collection, Tenant

PAUSE_S = 0.15
WAIT_MS = 60_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A write, its search, and a plain search, in seconds.

    The write was acknowledged, and the search that waited for it was answered. `began` is of the
    monotonic clock.
    """

    began: float
    kind: str
    write_s: float
    lag_s: float
    search_s: float


@dataclass
class Neighbor:
    """Writes and searches on its own thread, one after the other."""

    tenant: Tenant
    seed: int
    label: str = "calm"
    """The faults of other tenants: set by the rounds, kept with each sample."""
    samples: list[Sample] = field(default_factory=list)
    failures: list[tuple[float, str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    quiet: threading.Lock = field(default_factory=threading.Lock)
    """Held during each write: its holder sees the tenant at rest."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Writes and searches until it is stopped."""
        choose = random.Random(self.seed)
        number = 0
        while not self._stop.wait(PAUSE_S):
            number += 1
            with self.quiet:
                self._once(choose, number)

    def stop(self) -> None:
        """Ends `run` after the current write."""
        self._stop.set()

    def _once(self, choose: random.Random, number: int) -> None:
        collection = choose.choice(self.tenant.collections)
        name = f"d{choose.randrange(40)}"
        label, began = self.label, time.monotonic()
        try:
            token = self.tenant.write(collection, [(name, number)])
            write_s = time.monotonic() - began
            if token is None:
                raise httpx2.HTTPError(f"the write was not acknowledged: {self.tenant.last}")
            body = {**collection.query(name, number), "k": 1, "include": ["metadata"]}
            hits = self._search(collection, {**body, "wait_for": token, "timeout_ms": WAIT_MS})
            lag_s, searched = time.monotonic() - began, time.monotonic()
            self._search(collection, body)
        except httpx2.HTTPError as error:
            self.failures.append((began, self._label(label), f"{type(error).__name__} {error}"))
            return
        self.samples.append(
            Sample(began, self._label(label), write_s, lag_s, time.monotonic() - searched)
        )
        if [hit["metadata"]["n"] for hit in hits] != [number]:
            self.wrong.append(
                f"neighbor: wrote {number} to {name} of {collection.name}, its search found {hits}"
            )

    def _label(self, before: str) -> str:
        """Returns the label of a sample. A shared outage at either end of the sample counts."""
        return "shared" if "shared" in (before, self.label) else before

    def _search(self, collection: Collection, body: dict[str, Any]) -> list[Any]:
        answer = self.tenant.http.post(f"/v1/collections/{collection.name}/search", json=body)
        if answer.status_code != httpx2.codes.OK or answer.json()["degraded"]:
            raise httpx2.HTTPError(f"search: {answer.status_code} {answer.text[:300]}")
        hits: list[Any] = answer.json()["hits"]
        return hits

    def figures(self) -> dict[str, dict[str, Any]]:
        """Returns percentiles for each label, in milliseconds."""
        return {label: self._figures(label) for label in sorted({s.kind for s in self.samples})}

    def _figures(self, label: str) -> dict[str, Any]:
        own = [s for s in self.samples if s.kind == label]
        found: dict[str, Any] = {"n": len(own), "failed": sum(f[1] == label for f in self.failures)}
        for what in ("write", "lag", "search"):
            values = np.array([getattr(s, f"{what}_s") for s in own]) * 1_000
            p50, p99 = np.percentile(values, [50, 99])
            found |= {
                f"{what}_p50_ms": round(p50),
                f"{what}_p99_ms": round(p99),
                f"{what}_max_ms": round(values.max()),
            }
        return found
