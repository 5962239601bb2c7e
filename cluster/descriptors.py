"""The division of a process's file descriptors: connections, and a reserve for everything else."""

import resource
from typing import Final

RESERVE: Final = 160
"""Descriptors that are not for connections.

Log, catalog, mapped segments, sockets to other roles, and connections that are accepted at once
use them.
"""
HEALTH: Final = 16
"""Connections of the listener for health and metrics."""
LEAST: Final = 16
"""Smallest number of allowed connections, even with few descriptors."""
_RAISED: Final = 65_536


def raise_limit() -> int:
    """Raises the soft limit of open files towards the hard limit; returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _RAISED if hard == resource.RLIM_INFINITY else min(hard, _RAISED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _RAISED if soft == resource.RLIM_INFINITY else soft


def connections_max(limit: int, wanted: int) -> int:
    """Returns the number of connections of the main listener.

    It is `wanted`, or fewer if the process may have only `limit` descriptors.
    """
    return max(LEAST, min(wanted, limit - RESERVE - HEALTH))
