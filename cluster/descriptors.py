"""How a process shares its file descriptors: so many connections, and a reserve for everything that must go on."""

import resource
from typing import Final

RESERVE: Final = 160
"""Descriptors that no connection takes: log, catalog, mapped segments, sockets to other roles, what is accepted in one go."""
HEALTH: Final = 16
"""Connections of the listener for health and metrics."""
LEAST: Final = 16
"""Connections that are allowed however few descriptors there are."""
_RAISED: Final = 65_536


def raise_limit() -> int:
    """Raises the soft limit of open files towards the hard one.

    Returns the limit that holds now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _RAISED if hard == resource.RLIM_INFINITY else min(hard, _RAISED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _RAISED if soft == resource.RLIM_INFINITY else soft


def connections_max(limit: int, wanted: int) -> int:
    """Returns how many connections the main listener may hold: what is wanted, or what `limit` descriptors leave."""
    return max(LEAST, min(wanted, limit - RESERVE - HEALTH))
