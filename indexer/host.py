"""The machine that a searcher runs on, as it measures it itself."""

import socket
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Host:
    """Memory of a machine, in bytes: `resident` is what this process holds of it."""

    name: str
    total: int
    available: int
    resident: int


def here() -> Host:
    """This machine, now. About 0.1 ms."""
    memory = psutil.virtual_memory()
    return Host(socket.gethostname(), memory.total, memory.available, psutil.Process().memory_info().rss)
