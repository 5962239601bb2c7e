"""How long a role may live: no longer than its supervisor, and no longer than its time to stop once it was told to.

The kernel ends a role whose supervisor is gone, so that a role that hangs, or holds Python's lock, ends too. Everything
acknowledged is durable by then; an orderly stop is what `vicinage down` asks for.
"""

import ctypes
import os
import signal
import sys
import threading
from typing import Final

from vicinage.telemetry import events

SUPERVISOR: Final = "VICINAGE_SUPERVISED"
"""The environment variable that holds the supervisor's process id."""
STOP_S: Final = 25.0
"""Time that a role has to stop once it was told to; then it ends at once."""
ORPHANED: Final = 71
"""The exit status of a role that found its supervisor gone."""
LATE: Final = 72
"""The exit status of a role that did not stop in time."""
_PR_SET_PDEATHSIG: Final = 1
_event = events("cluster")


def end_with_supervisor() -> None:
    """Ends this process as soon as its supervisor is gone, however that ends.

    Does nothing where no supervisor started it.
    """
    supervisor = os.environ.get(SUPERVISOR, "")
    if not supervisor.isdecimal():
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):  # it was gone before the kernel was asked
        os._exit(ORPHANED)
    if sys.stdin is not None and not sys.stdin.isatty():
        threading.Thread(target=_watch, name="supervisor-watch", daemon=True).start()


def _watch() -> None:
    """Ends the process when the supervisor's end of standard input closes: the way of systems without prctl."""
    try:
        while os.read(0, 1):
            pass
    finally:
        os._exit(ORPHANED)


def limit_stop(seconds: float = STOP_S) -> None:
    """Ends this process at once, `seconds` from now: call it when an orderly stop begins."""
    timer = threading.Timer(seconds, _late, (seconds,))
    timer.daemon = True
    timer.start()


def _late(seconds: float) -> None:
    _event.error(
        "did not stop in time", seconds=seconds, threads=[t.name for t in threading.enumerate()]
    )
    os._exit(LATE)
