"""What computes a local model: one protocol over torch and ONNX Runtime."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vicinage.records import Floats

Ids = NDArray[np.int64]


class Model(Protocol):
    """A model at one precision. One thread at a time."""

    pad_share: float
    """A call is split when padding would make it this much larger."""

    def __call__(self, ids: Ids, mask: Ids, threads: int) -> Floats:
        """Returns float32 [n, d], not normalized, of token ids [n, tokens], padded on the right where `mask` is 0."""
        ...


class Runtime(Protocol):
    """A model's weights, loaded."""

    name: str
    dimension: int

    def precisions(self) -> tuple[str, ...]:
        """Returns the precisions that may be the fastest on this processor, float32 first."""
        ...

    def at(self, precision: str, threads: int) -> Model:
        """Returns the model at a precision, for calls of one thread or of `threads`. Raises Refused."""
        ...
