"""Tracks the halted partitions of a reader: writes events for changes, and sets a gauge."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import Gauge

from vicinage.log import Halt, TopicPartition


class Halts:
    """Remembers the halts of one reader. One thread updates it; any may read."""

    def __init__(self, event: Any, gauge: Gauge) -> None:
        self._event = event
        self._gauge = gauge
        self._known: Mapping[TopicPartition, Halt] = {}

    def known(self) -> Mapping[TopicPartition, Halt]:
        """Returns the halts as of the last update."""
        return self._known

    def update(self, halted: Mapping[TopicPartition, Halt]) -> dict[TopicPartition, Halt]:
        """Replaces the known halts; returns those that are new or have another kind."""
        before, self._known = self._known, dict(halted)
        if before == self._known:
            return {}
        self._gauge.set(len(self._known))
        new = {
            tp: h for tp, h in self._known.items() if tp not in before or before[tp].kind != h.kind
        }
        for (topic, partition), halt in new.items():
            at = {"topic": topic, "partition": partition, "offset": halt.position}
            self._event.error("partition.halted", kind=halt.kind, reason=halt.reason, **at)
        for topic, partition in before.keys() - self._known.keys():
            self._event.info("partition.resumed", topic=topic, partition=partition)
        return new
