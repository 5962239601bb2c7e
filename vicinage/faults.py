"""Named points at which a test can kill the process; no-ops in production.

`VICINAGE_CRASH=name` (or `name:3` for the third visit) makes `crash_point("name")` end the process
with SIGKILL, as a power cut would: no `finally`, no flush.
"""

import os
import signal
from collections import Counter

_TARGET, _, _NTH = os.environ.get("VICINAGE_CRASH", "").partition(":")
_visits: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Kills the process here, without cleanup, if `VICINAGE_CRASH` names this point."""
    if name != _TARGET:
        return
    _visits[name] += 1
    if _visits[name] >= int(_NTH or 1):
        os.kill(os.getpid(), signal.SIGKILL)
