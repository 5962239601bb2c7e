"""Temporary folders of this process. An orderly exit deletes them at once; after a kill, the next start of a role does.

They are below one folder of the process, which holds that folder's lock. A folder with a free lock is left from a kill.
"""

import fcntl
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vicinage.errors import Unavailable

FREE_MIN: Final = 1 << 20
"""With fewer bytes free, a disk is full: libraries that write files say so in words of their own."""
_LOCK: Final = "lock"
_making = threading.Lock()
_own: dict[int, tuple[Path, int]] = {}
"""Process id → its folder and the descriptor of its lock. A fork has an id of its own."""


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """An empty folder, gone when the block ends. Raises Unavailable where there is no room for it, or for what is put in it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=own_folder()))
    except OSError as error:
        raise Unavailable(f"no temporary folder can be made: {error}", dependency="disk") from error
    try:
        yield folder
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) or _is_full(folder):
            raise Unavailable(f"no room for temporary files: {error}", dependency="disk") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def own_folder() -> Path:
    """Returns the folder of this process, made if absent (or deleted by others since). Raises OSError."""
    with _making:
        while (known := _own.get(os.getpid())) is None or not (known[0] / _LOCK).exists():
            if known is not None:
                os.close(known[1])
            folder = _root() / uuid.uuid4().hex
            folder.mkdir(mode=0o700, parents=True)
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)  # a sweep may have been quicker: then the folder is gone
            _own[os.getpid()] = folder, lock
        return known[0]


def sweep_scratch() -> int:
    """Deletes the folders of processes that are gone. Returns their number."""
    swept = 0
    with suppress(OSError):
        for folder in _root().iterdir():
            swept += _sweep(folder)
    return swept


def _sweep(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return False  # it is just being made, or swept
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # its process lives
    else:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        os.close(lock)


def _root() -> Path:
    return Path(tempfile.gettempdir()) / f"vicinage-{os.getuid()}" / "scratch"


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FREE_MIN
    except OSError:
        return False
