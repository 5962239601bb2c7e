"""Measured recall of each collection at one generation: state, and its report. No I/O."""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from query.quality.comparison import Choice
from query.quality.correction import Correction, Proof
from query.quality.interval import SAMPLES_MIN
from query.quality.windows import Windows
from tenants.entities import Collection, Generation
from tenants.recent_queries import RECENT_QUERIES_MAX
from vicinage.records import Floats

KS_MAX: Final = 4
"""Maximum values of k judged per collection; a new one evicts the least used."""
SAMPLES_MAX: Final = 4_096
"""Maximum number of collections kept, at most 0.1 MB each without their recent queries."""
STORE_S: Final = 600.0
"""Interval at which a collection's recent queries are stored, once it has RECENT_QUERIES_MAX."""
HALF_ERROR: Final = 0.01
"""Maximum relative error of a recent query that is kept as float16."""
FORMAT: Final = 2
"""Format version of a stored sample."""

Name = tuple[str, str, int]
"""Tenant, collection, generation number."""


@dataclass(slots=True)
class RecentQueries:
    """The newest query vectors of searches that used an effort, float16 [d], for the indexer."""

    vectors: deque[Floats] = field(default_factory=lambda: deque(maxlen=RECENT_QUERIES_MAX))
    n_stored: int = 0
    """Number of vectors when they were last stored; `stored_s` is the time (monotonic)."""
    stored_s: float = 0.0

    def add(self, vector: Floats) -> bool:
        """Adds a vector, float32 [d]; returns False if float16 does not hold it."""
        if not fits_half(vector):
            return False
        self.vectors.append(vector.astype(np.float16))
        return True

    def take_due(self, now_s: float) -> Floats | None:
        """Returns all vectors, float32 [n, d], if they are to be stored now; else None.

        They are stored at SAMPLES_MIN, at each doubling, and then every STORE_S.
        """
        if len(self.vectors) < min(RECENT_QUERIES_MAX, max(SAMPLES_MIN, 2 * self.n_stored)):
            return None
        if self.n_stored == RECENT_QUERIES_MAX and now_s - self.stored_s < STORE_S:
            return None
        self.n_stored, self.stored_s = len(self.vectors), now_s
        return np.array(self.vectors, np.float32)


@dataclass(slots=True)
class Sample:
    """Measurements of one collection's recall at one generation."""

    windows: dict[int, Windows] = field(default_factory=dict)
    """k → windows of the recall@k of served searches."""
    recent: RecentQueries = field(default_factory=RecentQueries)
    taken: int = 0
    """Searches taken as samples, including discarded ones."""
    discarded: int = 0
    dropped: int = 0
    correction: Correction = field(default_factory=Correction)
    n_saved: int = 0
    """Number of samples that the catalog has."""

    def samples(self) -> int:
        """Returns the number of samples of all windows of all k."""
        return sum(w.total for w in self.windows.values())

    def most_frequent(self) -> tuple[int, Windows] | None:
        """Returns the most frequent k and its windows: recall at different k has no mean."""
        return max(self.windows.items(), key=lambda each: each[1].total, default=None)

    def windows_of(self, k: int, now_ms: int) -> Windows:
        """Returns the windows of a k; beyond KS_MAX, evicts the least used k."""
        if k not in self.windows and len(self.windows) >= KS_MAX:
            del self.windows[min(self.windows, key=lambda other: self.windows[other].total)]
        return self.windows.setdefault(k, Windows(now_ms))

    def correct(self, recall: float, objective: float, choice: Choice, now_ms: int) -> None:
        """Corrects the effort by the recall of what an index found at its chosen effort."""
        why = self.correction.note(
            recall,
            objective,
            choice.n_calibration_queries,
            greatest=choice.greatest,
            now_ms=now_ms,
        )
        if why is not None:
            for windows in self.windows.values():
                windows.restart(why, now_ms)

    def state(self) -> str:
        """Returns the state that survives a restart, as JSON, without the recent queries.

        The catalog stores those separately.
        """
        return json.dumps(
            {
                "format": FORMAT,
                "taken": self.taken,
                "discarded": self.discarded,
                "dropped": self.dropped,
                "correction": self.correction.state(),
                "windows": {str(k): w.state() for k, w in self.windows.items()},
            }
        )

    @classmethod
    def of_state(cls, text: str) -> "Sample":
        """Returns the sample of a `state`. Raises KeyError, TypeError, ValueError if invalid."""
        state = json.loads(text)
        if state["format"] != FORMAT:
            raise ValueError("another format")
        windows = {int(k): Windows.of_state(each) for k, each in state["windows"].items()}
        sample = cls(
            windows,
            taken=state["taken"],
            discarded=state["discarded"],
            dropped=state["dropped"],
            correction=Correction.of_state(state["correction"]),
        )
        sample.n_saved = sample.samples()
        return sample


class Samples:
    """The samples of at most SAMPLES_MAX collections. Belongs to one event loop."""

    def __init__(self) -> None:
        self._samples: dict[Name, Sample] = {}

    def __iter__(self) -> Iterator[tuple[Name, Sample]]:
        return iter(list(self._samples.items()))

    def __len__(self) -> int:
        return len(self._samples)

    def get(self, name: Name) -> Sample | None:
        """Returns the sample, if any."""
        return self._samples.get(name)

    def live(self, collection: Collection) -> Sample | None:
        """Returns the sample of the collection's live generation, if any."""
        return self._samples.get((collection.tenant, collection.name, collection.live))

    def touch(self, generation: Generation) -> Sample:
        """Returns the sample of a generation; evicts the LRU one beyond SAMPLES_MAX."""
        name = (generation.tenant, generation.collection, generation.number)
        sample = self._samples.pop(name) if name in self._samples else Sample()
        self._samples[name] = sample
        if len(self._samples) > SAMPLES_MAX:
            del self._samples[next(iter(self._samples))]
        return sample

    def restore(self, name: Name, sample: Sample) -> None:
        """Replaces the sample of a generation."""
        self._samples[name] = sample


def fits_half(vector: Floats) -> bool:
    """Returns whether float16 is exact within HALF_ERROR; it fails for long or tiny vectors."""
    with np.errstate(over="ignore", invalid="ignore"):
        off = float(np.linalg.norm(vector.astype(np.float16).astype(np.float32) - vector))
    return off <= HALF_ERROR * float(np.linalg.norm(vector))


def row(name: Name, sample: Sample, target: float) -> dict[str, Any]:
    """Returns the report of one collection: a window of the most frequent k."""
    most_frequent = sample.most_frequent()
    assert most_frequent is not None, "only a collection with measurements is reported"
    k, judged = most_frequent[0], most_frequent[1].judged()
    return {
        "tenant": name[0],
        "collection": name[1],
        "generation": name[2],
        "k": k,
        "recall": round(judged.mean, 4),
        "interval": [judged.low, judged.high],
        "n": judged.n,
        "samples": most_frequent[1].total,
        "target": target,
        "verdict": judged.verdict(target),
        "window": judged.window(),
        "correction": sample.correction.added,
        "below_objective": below(sample.correction.proof) if sample.correction.proof else None,
        "discarded": sample.discarded,
        "dropped": sample.dropped,
    }


def below(proof: Proof) -> dict[str, Any]:
    """Returns the report's form of the proof that an index misses its objective."""
    return {
        "since_ms": proof.since_ms,
        "recall": round(proof.recall, 4),
        "interval": [proof.low, proof.high],
        "n": proof.n,
    }
