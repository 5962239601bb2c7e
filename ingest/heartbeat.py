"""Answers the gateways' readiness probes with the writes that ingest needs: append and commit."""

from typing import Final

from tenants.entities import Group
from tenants.provisioning import HEALTH_TOPIC
from vicinage.clock import Clock
from vicinage.errors import NotFound, Unavailable
from vicinage.log import Log, Record
from vicinage.telemetry import events

INTERVAL_S: Final = 0.25
_event = events("ingest")


class Heartbeat:
    """Answers probes. Used by the thread that steps ingest."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._answered = 0
        self._last_beat = -1e9

    def beat(self) -> None:
        """Appends a record and commits the position after new probes, at most every INTERVAL_S.

        Does nothing without a probe.
        """
        now = self._clock.monotonic()
        if now - self._last_beat < INTERVAL_S:
            return
        self._last_beat = now
        try:
            end = self._log.end(HEALTH_TOPIC, 0)
            if end != self._answered:
                self._log.append(HEALTH_TOPIC, 1, [Record(b"")])
                self._log.commit(Group.INGEST, {(HEALTH_TOPIC, 0): end})
                self._answered = end
        except NotFound:
            return  # no gateway has sent a probe yet
        except Unavailable as error:
            _event.warning("probe.failed", reason=str(error))
