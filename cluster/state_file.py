"""A small JSON file that says how things are, for people and tools; nothing depends on it, so a full disk delays it alone."""

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
    """Keeps one file equal to the newest state.

    Safe for many threads; each write replaces the whole file.

    A write that fails is retried by the next `settle`; until then the file holds the state before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._written: str | None = None
        self._retry_at = 0.0

    def settle(self, state: Callable[[], dict[str, Any]]) -> bool:
        """Writes `state()` if the file does not hold it yet; whether it does now.

        Call it again, also without a change.

        The state is taken under the lock, so that a later one is never replaced by an earlier one.
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
                _event.warning(
                    "a state file is not written", path=str(self._path), reason=str(error)
                )
                self._retry_at = time.monotonic() + RETRY_S
                return False
            self._written = text
            return True

    def read(self) -> dict[str, Any]:
        """Returns the content of the file, written by this or another process; {} if it is absent or incomplete."""
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
