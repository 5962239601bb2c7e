"""Temporary folders of this process, deleted at exit or, after a kill, at the next start of a role.

They are under one folder per process; the process holds a lock on it. A folder whose lock is free
was left by a killed process.
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
"""A disk with fewer free bytes is considered full: libraries report a full disk in various ways."""
_LOCK: Final = "lock"
_making = threading.Lock()
_own: dict[int, tuple[Path, int]] = {}
"""Process id → its folder and the descriptor of its lock. A forked process has another id."""


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Creates an empty folder, deleted at the end of the block.

    Raises Unavailable if the disk is full, also for errors in the block.
    """
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
    """Returns the folder of this process; creates it if absent or deleted since. Raises OSError."""
    with _making:
        while (known := _own.get(os.getpid())) is None or not (known[0] / _LOCK).exists():
            if known is not None:
                os.close(known[1])
            folder = _root() / uuid.uuid4().hex
            folder.mkdir(mode=0o700, parents=True)
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)  # if a sweep was faster, the folder is gone
            _own[os.getpid()] = folder, lock
        return known[0]


def sweep_scratch() -> int:
    """Deletes the folders of processes that have ended. Returns their number."""
    swept = 0
    with suppress(OSError):
        for folder in _root().iterdir():
            swept += _sweep(folder)
    return swept


def _sweep(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return False  # it is being created, or swept
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # its process is alive
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
