"""Free memory of a process is returned to the system."""

import os

import psutil
import pytest
from resources import eventually

from cluster import memory


def test_pages_between_blocks_in_use_are_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process(os.getpid())
    blocks = [bytes(1_000) for _ in range(100_000)]
    kept = blocks[::1_000]
    held = process.memory_info().rss
    del blocks
    monkeypatch.setattr(memory, "EVERY_S", 0.05)
    memory.keep_returning()
    eventually(lambda: process.memory_info().rss < held - (50 << 20))
    assert len(kept) == 100
