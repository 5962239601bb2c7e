"""Notifications between the processes that share a log file, without polling.

Each waiting process binds one Unix datagram socket in a folder that the log's path determines. A
committing process sends one byte to each socket. A byte lost to a full buffer is harmless: the
receiver already has a byte to wake it, and checks again within SAFETY_S.
"""

import contextlib
import hashlib
import os
import socket
import tempfile
import threading
import time
import uuid
from functools import partial
from pathlib import Path

from vicinage.threads import EssentialThread

SAFETY_S = 0.25
"""A waiter checks again after this long, even if no byte came."""


def _folder(path: Path) -> Path:
    # Not beside the log: a socket's path has at most 107 bytes, and a data folder's is often
    # longer.
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"vicinage-{os.getuid()}" / name


class Notifier:
    """Notifies every process that waits on the same path. Safe for many threads."""

    def __init__(self, path: Path) -> None:
        self._folder = _folder(path)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._changed = threading.Condition()
        self._notified = 0
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        self._listener: socket.socket | None = None
        self._closed = False

    def count(self) -> int:
        """Returns the number of notifications so far.

        Read it *before* a check, for `wait` after it.
        """
        self._listen()
        return self._notified

    def notify(self) -> None:
        """Wakes every waiter, in this process and in others."""
        self._bump()
        # OSError: the folder is gone, or no descriptor is free. Other processes check within
        # SAFETY_S.
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                self._send(entry.path)

    def wait(self, seen: int, seconds: float) -> bool:
        """Returns True once there was a notification after `seen`.

        Returns False after `seconds`, or after SAFETY_S if that is less.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: self._notified != seen or self._closed, min(seconds, SAFETY_S)
            )

    def close(self) -> None:
        """Stops listening. Idempotent."""
        self._closed = True
        self._bump()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                Path(self._listener.getsockname()).unlink(missing_ok=True)
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self._sender.close()

    def _bump(self) -> None:
        with self._changed:
            self._notified += 1
            self._changed.notify_all()

    def _send(self, path: str) -> None:
        try:
            self._sender.sendto(b"!", path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)  # its process has ended
        except (BlockingIOError, FileNotFoundError, OSError):
            return  # full: its process wakes anyway; absent: no process waits

    def _listen(self) -> None:
        """Binds the socket at the first call. If that fails, the next call tries again."""
        with self._changed:
            if self._listener is not None or self._closed:
                return
            try:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            except OSError:
                return
            try:
                listener.bind(str(self._folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"))
            except OSError:
                listener.close()
                return
            self._listener = listener
        EssentialThread(
            "log-wake", partial(self._hear, listener), stopping=lambda: self._closed
        ).start()

    def _hear(self, listener: socket.socket) -> None:
        while not self._closed:
            try:
                if not listener.recv(1):
                    time.sleep(0.001)  # shut down: `_closed` follows at once
                    continue
            except OSError:
                return  # closed; otherwise EssentialThread reports the end of this thread
            self._bump()
