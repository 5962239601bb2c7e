"""Bounds of a role's lifetime: the end of its supervisor, and STOP_S after a request to stop.

The kernel ends a role whose supervisor is gone, so that a role that hangs, or holds Python's lock,
ends, too. Everything acknowledged is durable by then. `vicinage down` requests an orderly stop.
"""

import ctypes
import os
import signal
import sys
import threading
from typing import Final

from vicinage.telemetry import events

SUPERVISOR: Final = "VICINAGE_SUPERVISED"
"""The environment variable with the supervisor's process id."""
STOP_S: Final = 25.0
"""Time for an orderly stop; after it, the role ends at once."""
ORPHANED: Final = 71
"""The exit status of a role whose supervisor is gone."""
LATE: Final = 72
"""The exit status of a role that did not stop in time."""
_PR_SET_PDEATHSIG: Final = 1
_event = events("cluster")


def end_with_supervisor() -> None:
    """Ends this process as soon as its supervisor has ended, for any reason.

    Does nothing if no supervisor started it.
    """
    supervisor = os.environ.get(SUPERVISOR, "")
    if not supervisor.isdecimal():
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):  # it ended before prctl
        os._exit(ORPHANED)
    if sys.stdin is not None and not sys.stdin.isatty():
        threading.Thread(target=_watch, name="supervisor-watch", daemon=True).start()


def _watch() -> None:
    """Ends the process when the supervisor's end of standard input closes.

    Systems without prctl need it.
    """
    try:
        while os.read(0, 1):
            pass
    finally:
        os._exit(ORPHANED)


def limit_stop(seconds: float = STOP_S) -> None:
    """Ends this process `seconds` from now. Call it when an orderly stop begins."""
    timer = threading.Timer(seconds, _late, (seconds,))
    timer.daemon = True
    timer.start()


def _late(seconds: float) -> None:
    threads = [t.name for t in threading.enumerate()]
    _event.error("role.stop_timed_out", seconds=seconds, threads=threads)
    os._exit(LATE)
