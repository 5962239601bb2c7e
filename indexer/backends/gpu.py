"""FAISS on GPUs: a segment's index is held by one of them, in addition to its form on the CPU, which is the only one that is stored.

Whatever a GPU does not take, or fails at, the CPU form answers: filters, greater k than a GPU sorts, kinds that it has not, full
memory. Segments are spread over the GPUs by their bytes. Scores are those of the vectors, as they are on the CPU.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from indexer.backends import Mask, Rows, gpu_limits
from indexer.backends.cagra import takes
from indexer.backends.cpu import CpuBackend, Index, faiss_index, mend, scored, width_for
from indexer.backends.gpu_limits import by_room
from indexer.backends.gpu_worker import Busy, Card, Failed, NoRoom
from tenants.entities import Metric
from tenants.index_spec import IndexSpec, Kind
from vicinage.metrics import counter
from vicinage.records import Floats
from vicinage.telemetry import events

_event = events("searcher")
_fallbacks = counter("vicinage_searcher_device_fallbacks_total")


@dataclass(slots=True, eq=False, weakref_slot=True)
class Placed:
    """A segment's index, and where its copy is; `number` None: on the CPU alone."""

    host: Index | None
    card: Card
    number: int | None
    lists: int
    freed: Any = field(repr=False, default=None)

    @property
    def kind(self) -> Kind:
        """Of the index."""
        return self.host.kind if self.host else "flat"

    def back(self) -> None:
        """From now on the CPU alone answers."""
        self.number = None
        self.freed()


class GpuBackend:
    """See Backend. On one or more GPUs, with the CPU behind them."""

    def __init__(self, devices: Sequence[Card]) -> None:
        assert devices, "a backend of no GPU is the CPU's"
        self._cards = tuple(devices)
        self._cpu = CpuBackend()
        self._limits = devices[0].device.limits

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric, *, threads: int = 0) -> Any:
        """See Backend. On the emptiest GPU; what comes back is its form on the CPU."""
        for card in (
            self._emptiest(0) if gpu_limits.builds(spec, len(vectors), self._limits) else ()
        ):
            try:
                return faiss_index(card.build(np.ascontiguousarray(vectors), spec, metric))
            except (NoRoom, Busy, Failed) as error:
                _left("build", card, error)
        return self._cpu.build(vectors, spec, metric, threads=threads)

    def save(self, index: Any, path: Path) -> None:
        """See Backend."""
        self._cpu.save(_host(index), path)

    def load(self, path: Path) -> Any:
        """See Backend. Not on a GPU yet: see `place`."""
        return self._cpu.load(path)

    def place(self, index: Any, vectors: Floats, metric: Metric) -> Any:
        """See Backend.

        On the emptiest GPU that has the room; else the CPU's form is all there is.
        """
        kind: Kind = index.kind if index else "flat"
        n, d = vectors.shape
        if not gpu_limits.serves(kind, n, d, self._limits) or (index and not takes(index)):
            return index
        spec = _spec(kind, index)
        need = gpu_limits.device_bytes(spec, n, d, self._limits)
        cards = self._emptiest(need)
        if not cards:
            _fallbacks.labels(NoRoom.reason).inc()
            _event.error("gpu.placement_refused", bytes=need)
        for card in cards:
            try:
                return _placed(index, card, card.place(index, vectors, metric, need), spec.lists)
            except (NoRoom, Busy, Failed) as error:
                _left("place", card, error)
        return index

    def search(
        self,
        index: Any,
        vectors: Floats,
        queries: Floats,
        k: int,
        *,
        metric: Metric,
        effort: int,
        allowed: Mask | None,
    ) -> tuple[Floats, Rows]:
        """See Backend."""
        by_cpu = partial(
            self._cpu.search,
            _host(index),
            vectors,
            k=k,
            metric=metric,
            effort=effort,
            allowed=allowed,
        )
        rows = (
            self._rows(index, len(vectors), queries, k, effort, allowed)
            if isinstance(index, Placed)
            else None
        )
        if rows is None:
            return by_cpu(queries)
        scores, rows = scored(vectors, queries, rows, k, metric)
        if metric == "euclidean" and index.kind == "flat":
            mend(vectors, queries, scores, rows, allowed)
        n_allowed = len(vectors) if allowed is None else int(np.count_nonzero(allowed))
        short = rows[:, min(k, n_allowed) - 1] < 0
        if short.any():
            scores[short], rows[short] = by_cpu(queries[short])
        return scores, rows

    def exact(
        self, vectors: Floats, queries: Floats, k: int, *, metric: Metric, allowed: Mask | None
    ) -> tuple[Floats, Rows]:
        """See Backend.

        On the CPU: what is asked so are deltas, which change, and checks, which must not depend on
        a GPU.
        """
        return self._cpu.exact(vectors, queries, k, metric=metric, allowed=allowed)

    def bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """See Backend. Of lists with codes a GPU makes other codes than the CPU: a byte a part."""
        if spec.kind == "ivfpq" and gpu_limits.builds(spec, n, self._limits):
            codes = self._cpu.bytes(IndexSpec("ivf", lists=spec.lists), n, d) - n * 4 * d
            return codes + n * gpu_limits.parts_for(d) + gpu_limits.CENTROIDS * d * 4
        return self._cpu.bytes(spec, n, d)

    def device_bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """See Backend."""
        return (
            gpu_limits.device_bytes(spec, n, d, self._limits)
            if gpu_limits.serves(spec.kind, n, d, self._limits)
            else 0
        )

    def _emptiest(self, need: int) -> tuple[Card, ...]:
        live = [card for card in self._cards if not card.lost]
        return tuple(live[i] for i in by_room([card.free() for card in live], need))

    def _rows(
        self, index: Placed, n: int, queries: Floats, k: int, effort: int, allowed: Mask | None
    ) -> Rows | None:
        """The allowed candidates of each question, −1 behind them; None: the CPU answers."""
        number, n_allowed = index.number, n if allowed is None else int(np.count_nonzero(allowed))
        if number is None:
            return None
        width = width_for(index.host, n, n_allowed, k, effort) if index.host and n_allowed else None
        ask = gpu_limits.asked(
            index.kind, self._limits, k=k, width=width, n=n, n_allowed=n_allowed, lists=index.lists
        )
        if ask is None:
            return None
        try:
            return _only(index.card.search(number, queries, ask), allowed)
        except (NoRoom, Failed) as error:
            _left("search", index.card, error)
            index.back()
        except Busy as error:
            _left("search", index.card, error)
        return None


def _left(what: str, card: Card, error: NoRoom | Busy | Failed) -> None:
    """Count, and say, that the CPU does it in the device's place."""
    _fallbacks.labels(error.reason).inc()
    if not isinstance(error, Busy):
        _event.error("gpu.work_failed", work=what, device=card.device.name, error=str(error))


def _placed(index: Index | None, card: Card, number: int, lists: int) -> Placed:
    placed = Placed(index, card, number, lists)
    placed.freed = weakref.finalize(placed, card.let_go, number)
    placed.freed.atexit = False
    return placed


def _host(index: Any) -> Any:
    return index.host if isinstance(index, Placed) else index


def _spec(kind: Kind, index: Index | None) -> IndexSpec:
    """What of the index decides its size: its lists, or its links."""
    if index is None:
        return IndexSpec(kind)
    if kind == "hnsw":
        return IndexSpec(kind, m=int(index.faiss.hnsw.nb_neighbors(0)) // 2)
    return IndexSpec(kind, lists=int(index.faiss.nlist))


def _only(rows: Rows, allowed: Mask | None) -> Rows:
    """The rows that are allowed, in their order, −1 behind them."""
    right = rows >= 0 if allowed is None else (rows >= 0) & allowed[rows]
    order = np.argsort(~right, axis=1, kind="stable")
    return np.where(np.take_along_axis(right, order, 1), np.take_along_axis(rows, order, 1), -1)
