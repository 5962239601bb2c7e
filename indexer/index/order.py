"""Decides which of two writes of one document counts (guarantee 3). Pure.

A deletion by filter has the version of the document that it was judged on: it beats that document,
and any newer one beats it (docs/decisions/032-deletions-by-filter.md).
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Version = TypeVar("Version", int, NDArray[np.int64])
Flag = TypeVar("Flag", bool, NDArray[np.bool_])


def supersedes(version: Version, gone: Flag, held: Version, held_gone: Flag) -> Flag:
    """Returns whether a write replaces the held one.

    It does if its version is higher, or if it is a deletion of that very version. `gone` and
    `held_gone` say which are deletions. Works on one pair of writes, or on arrays of equal length.
    """
    found: Flag = (version > held) | ((version == held) & gone & (gone != held_gone))
    return found
