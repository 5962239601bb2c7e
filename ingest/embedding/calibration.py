"""Selects precision and threads by trials at start on this machine, above a floor on fidelity.

Pure except for the clock.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from vicinage.errors import Refused
from vicinage.records import Floats

BUDGET_S: Final = 3.0
"""Seconds after which no trial begins, except the first one of a precision."""
ROUNDS: Final = 3
PROBE: Final = (
    "A managed vector retrieval platform serves searches of many tenants in their documents.",
    "The quick brown fox jumps over the lazy dog while the committee reads the last minutes.",
    "Boundary layers on swept wings at supersonic speed become turbulent earlier than predicted.",
    "Return the median of numeric data, using the common mean of middle two method.",
    "Invoices are due thirty days after delivery unless the contract says otherwise.",
    "I tuned the cello by ear, then wrote down the frequencies for the others in the orchestra.",
    "Der Fluss trat nach dem Regen über die Ufer, und die untere Brücke wurde gesperrt.",
    "SELECT name, count(*) FROM orders GROUP BY name HAVING count(*) > 10;",
    "Photosynthesis in shaded leaves saturates at a lower intensity of light.",
    "The patient reported mild headaches after the second dose; no fever was seen.",
    "Patch 4.2.1 fixes a race between the cache's eviction and its refill under load.",
    "Simmer the onions until translucent, add saffron and stock, and cover for twenty minutes.",
    "Quarterly revenue rose by seven per cent, driven by services rather than hardware.",
    "A lease that is not renewed in time passes to another holder with a higher epoch.",
    "Glaciers in the eastern range have lost a third of their volume since measurements began.",
    "How do I reset my password if I no longer have the phone that it was set up with?",
)
BATCH: Final = 32
"""Texts of the larger call of a trial; the other call has one text."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Measurements of one precision and thread count.

    `texts_per_s` is for calls of BATCH texts, `query_ms` for one query text. `cosine` is the mean
    cosine to float32's vectors.
    """

    precision: str
    threads: int
    texts_per_s: float
    query_ms: float
    cosine: float

    def better(self, other: "Trial") -> "Trial":
        """Returns the best of both, because other load can only slow a trial down."""
        texts_per_s, query_ms = (
            max(self.texts_per_s, other.texts_per_s),
            min(self.query_ms, other.query_ms),
        )
        return replace(self, texts_per_s=texts_per_s, query_ms=query_ms)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The chosen trial, and all trials."""

    chosen: Trial
    trials: tuple[Trial, ...]

    def facts(self) -> dict[str, Any]:
        """Returns the calibration as values for JSON."""
        return {**asdict(self.chosen), "tried": [asdict(t) for t in self.trials]}


def measure(precision: str, threads: int, embed: Callable[[int], Floats], truth: Floats) -> Trial:
    """Runs one trial. Raises what `embed` raises.

    `embed(n)` embeds the first n texts of the probe; `truth` has float32's vectors of all of them.
    """
    embed(1)
    query_s, _ = _timed(embed, 1)
    batch_s, vectors = _timed(embed, len(truth))
    lengths = np.linalg.norm(truth, axis=1) * np.linalg.norm(vectors, axis=1)
    cosine = float((np.einsum("ij,ij->i", truth, vectors) / lengths).mean())
    return Trial(
        precision,
        threads,
        round(len(truth) / batch_s, 1),
        round(query_s * 1000, 2),
        round(cosine, 5),
    )


def choose(trials: Sequence[Trial], cosine_floor: float) -> Calibration:
    """Returns the fastest trial with at least `cosine_floor`. Raises Refused if there is none."""
    good = [t for t in trials if t.cosine >= cosine_floor]
    if not good:
        raise Refused(
            f"no precision keeps a cosine of {cosine_floor} to float32: {list(trials)}",
            field="precision",
        )
    best = max(good, key=lambda t: t.texts_per_s)
    return Calibration(best, tuple(trials))


def _timed(embed: Callable[[int], Floats], n: int) -> tuple[float, Floats]:
    start = time.perf_counter()
    vectors = embed(n)
    return time.perf_counter() - start, vectors
