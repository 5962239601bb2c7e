"""Returns freed memory to the system.

glibc keeps freed pages between blocks that are in use, in an arena of nearly each thread. Under
steady updates the gateway had 97 to 171 MB of them, beside 47 to 98 MB in use
(docs/decisions/measurements.md). `malloc_trim` returns them.
"""

import ctypes
import time
from typing import Final

from vicinage.threads import EssentialThread

EVERY_S: Final = 30.0


def keep_returning() -> None:
    """Starts a thread that returns free memory every EVERY_S; does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def work() -> None:
        while True:
            time.sleep(EVERY_S)
            trim(0)  # releases the GIL; takes 12 to 22 ms of CPU for 100 MB

    EssentialThread("memory", work).start()
