"""Reads the vectors log of the held slots, each from its own position."""

from typing import Final

from tenants.provisioning import VECTORS_TOPIC
from vicinage.log import Log, LogRecord
from vicinage.log.halts import Halts
from vicinage.metrics import gauge
from vicinage.telemetry import events

POLL_BYTES: Final = 16 << 20

_event = events("indexer")
_halted = gauge("vicinage_indexer_halted_slots")


class SlotReader:
    """A reader of the log with the position of each slot. Used by one thread."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._reader = log.reader({})
        self._topic_id: str | None = None
        self._halts = Halts(_event, _halted)
        self.positions: dict[int, int] = {}
        """The offset after the last record that was received, by slot."""

    def add(self, slot: int, position: int) -> None:
        """Reads the slot from this position on."""
        self._reader.add(VECTORS_TOPIC, slot, position, topic_id=self._topic_of_slots())
        self.positions[slot] = position

    def remove(self, slot: int) -> None:
        """Stops reading the slot."""
        self._reader.remove(VECTORS_TOPIC, slot)
        self.positions.pop(slot, None)

    def end(self, slot: int) -> int:
        """Returns the end of the slot's log. Raises Unavailable."""
        return self._log.end(VECTORS_TOPIC, slot)

    def poll(self, wait_s: float) -> list[LogRecord]:
        """Returns the next records. Raises Unavailable."""
        return self._reader.poll(bytes_max=POLL_BYTES, wait_s=wait_s)

    def received(self, record: LogRecord) -> None:
        """Moves the slot's position beyond the record."""
        self.positions[record.partition] = record.offset + 1

    def is_next(self, record: LogRecord) -> bool:
        """Returns whether the record is of a slot that is read and not below its position."""
        slot = record.partition
        return slot in self.positions and record.offset >= self.positions[slot]

    def rewind(self) -> None:
        """Reads every slot from its position again: polled records were not received."""
        for slot, position in self.positions.items():
            self._reader.remove(VECTORS_TOPIC, slot)
            self._reader.add(VECTORS_TOPIC, slot, position, topic_id=self._topic_id)

    def lost_slots(self) -> list[int]:
        """Returns the slots whose next records are gone from the log, and updates the halts.

        Other halts stay reported.
        """
        halts = self._halts.update(self._reader.halted())
        return [slot for (_, slot), halt in halts.items() if halt.kind == "offset_gone"]

    def halted(self) -> dict[int, str]:
        """Returns the slots whose reading is halted, with the reasons."""
        return {slot: halt.reason for (_, slot), halt in self._halts.known().items()}

    def close(self) -> None:
        """Closes the reader."""
        self._reader.close()

    def _topic_of_slots(self) -> str | None:
        """Returns the vectors topic's identity as first seen: positions hold in that topic only."""
        if self._topic_id is None:
            self._topic_id = self._log.topic_ids(VECTORS_TOPIC).get(VECTORS_TOPIC)
        return self._topic_id
