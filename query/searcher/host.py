"""The machine that a searcher runs on, as the searcher measures it."""

import socket

import psutil

from vicinage.stats import Host


def measure_host() -> Host:
    """Returns the machine's present figures. Takes about 0.1 ms."""
    memory = psutil.virtual_memory()
    return Host(
        socket.gethostname(), memory.total, memory.available, psutil.Process().memory_info().rss
    )
