"""A small JSON file with the state of processes, for people and tools.

Nothing depends on it, so a full disk delays only this file.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from vicinage.telemetry import events

RETRY_S: Final = 1.0
_event = events("cluster")


class StateFile:
    """Keeps one file equal to the newest state. Safe for many threads.

    Each write replaces the whole file. The next `settle` retries a write that failed; until then
    the file has the previous state.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._written: str | None = None
        self._retry_at = 0.0

    def settle(self, state: Callable[[], dict[str, Any]]) -> bool:
        """Writes `state()` if the file does not have it yet; returns whether the file has it now.

        Call it periodically, also without a change. The state is read under the lock, so that an
        earlier state never replaces a later one.
        """
        with self._lock:
            text = json.dumps(state(), indent=2)
            if text == self._written:
                return True
            if time.monotonic() < self._retry_at:
                return False
            try:
                part = self._path.with_suffix(".part")
                part.write_text(text)
                part.replace(self._path)
            except OSError as error:
                _event.warning("state_file.not_written", path=str(self._path), reason=str(error))
                self._retry_at = time.monotonic() + RETRY_S
                return False
            self._written = text
            return True

    def read(self) -> dict[str, Any]:
        """Returns the content of the file, which any process may have written.

        Returns {} if it is absent or incomplete.
        """
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def remove(self) -> None:
        """Deletes the file. Idempotent."""
        with self._lock:
            self._written = None
            self._path.unlink(missing_ok=True)
