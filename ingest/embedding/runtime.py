"""Runtimes of local models: one protocol over torch and ONNX Runtime."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vicinage.records import Floats

Ids = NDArray[np.int64]


class Model(Protocol):
    """A model at one precision. One thread at a time."""

    pad_share: float
    """A call is split if padding would make it larger by more than this factor."""

    def __call__(self, ids: Ids, mask: Ids, threads: int) -> Floats:
        """Returns float32 [n, d], not normalized, for token ids [n, tokens].

        Rows are padded on the right, where `mask` is 0.
        """
        ...


class Runtime(Protocol):
    """A model's loaded weights."""

    name: str
    dimension: int

    def precisions(self) -> tuple[str, ...]:
        """Returns the precisions that may be the fastest on this device, float32 first."""
        ...

    def at(self, precision: str, threads: int) -> Model:
        """Returns the model at a precision, for calls of one or `threads` threads.

        Raises Refused.
        """
        ...
