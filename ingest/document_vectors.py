"""Checks and normalizes the vectors that are sent with a request's documents, at once. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.validation import VECTOR_FAULTS, DocumentLimits, ValidationError, vector_faults
from vicinage.records import Floats
from vicinage.vectors import squared_lengths, unit_length


@dataclass(frozen=True, slots=True)
class DocumentVectors:
    """The vectors of each document i: rows [at[i], at[i + 1]) of `unit`, possibly none.

    `unit`: float32 [m, d], L2-normalized under cosine; None if no document has vectors.
    `faults`: uint8 [m], each vector's fault as an index in VECTOR_FAULTS. `at`: int64 [n + 1].
    """

    unit: Floats | None
    faults: NDArray[np.uint8]
    at: NDArray[np.int64]
    n_max: int

    @classmethod
    def of(
        cls, of_documents: Sequence[Sequence[list[float]] | None], limits: DocumentLimits
    ) -> "DocumentVectors":
        """Returns the vectors of documents in JSON, whose lengths and types are checked."""
        in_order = [vector for vectors in of_documents if vectors is not None for vector in vectors]
        counts = [0 if vectors is None else len(vectors) for vectors in of_documents]
        if not in_order:
            return cls.flat(None, counts, limits)
        with np.errstate(over="ignore"):
            return cls.flat(np.array(in_order, np.float64).astype(np.float32), counts, limits)

    @classmethod
    def flat(
        cls, vectors: Floats | None, counts: Sequence[int], limits: DocumentLimits
    ) -> "DocumentVectors":
        """Returns `vectors`, float32 [m, d]; document i has the next counts[i] rows."""
        at = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        if vectors is None:
            return cls(None, np.zeros(0, np.uint8), at, limits.settings.passages_max)
        squares = squared_lengths(vectors)
        unit = unit_length(vectors, limits.metric, squares)
        return cls(unit, vector_faults(squares, limits.metric), at, limits.settings.passages_max)

    def row(self, i: int) -> Floats | None:
        """Returns float32 [n, d], None for a document without vectors.

        Raises ValidationError for too many vectors, or for a fault.
        """
        start, end = int(self.at[i]), int(self.at[i + 1])
        if self.unit is None or start == end:
            return None
        if end - start > self.n_max:
            raise ValidationError(
                "vectors", f"{end - start} vectors; 1 to {self.n_max} in a document"
            )
        faults = self.faults[start:end]
        if faults.any():
            raise ValidationError("vector", VECTOR_FAULTS[int(faults[np.flatnonzero(faults)[0]])])
        return self.unit[start:end]
