"""The embedder role's cross-encoder: a question and a passage read together, and scored, behind one worker thread and one fair queue."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from ingest.embedding.runtimes import has_torch
from vicinage.clock import Deadline
from vicinage.errors import Refused, Unavailable
from vicinage.fair import FairQueue
from vicinage.records import Floats
from vicinage.telemetry import counter, events, histogram
from vicinage.threads import EssentialThread

QUEUE_PAIRS: Final = 4_096
CALL_PAIRS: Final = 16
"""Pairs read in one model call: small, so that a question never waits long behind another's."""
QUANTUM: Final = 16
CHARS_A_TOKEN: Final = 16
"""A text is cut by length before it is cut into tokens: what no model would read is not even looked at."""
WINDOW_MAX: Final = 8_192
FAILURES_MAX: Final = 3
"""After so many failed model calls in a row the worker ends, and the role with it: a broken device does not mend itself."""

_event = events("embedder")
_pairs = counter("vicinage_ingest_rerank_pairs_total", "passages read together with a question")
_seconds = histogram("vicinage_ingest_rerank_seconds", "one call of the cross-encoder")


@dataclass(slots=True)
class _Request:
    """Passages to be read with one question; done when every score is there."""

    scores: Floats
    left: int
    deadline: Deadline
    done: Future[Floats] = field(default_factory=Future)

    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.done.done() or self.deadline.passed()

    def settle(self, refusal: Exception | None = None) -> None:
        """Hand over the scores, or the refusal. Whoever waited may have gone away, at this very moment too."""
        with contextlib.suppress(InvalidStateError):
            if refusal is None:
                self.done.set_result(self.scores)
            else:
                self.done.set_exception(refusal)


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    question: str
    passage: str
    request: _Request
    row: int


class LocalReranker:
    """One cross-encoder in this process. Safe for many threads; starting it takes seconds.

    `on_failure` hears of a worker that died; whoever waits, and whoever asks afterwards, gets Unavailable.
    """

    def __init__(
        self, folder: Path, *, device: str = "cpu", on_failure: Callable[[BaseException], None] | None = None
    ) -> None:
        self._model = _load(folder, device)
        self._chars = CHARS_A_TOKEN * min(int(self._model.tokenizer.model_max_length), WINDOW_MAX)
        self._queue = FairQueue[_Pair](items_max=QUEUE_PAIRS, quantum=QUANTUM)
        self._work = threading.Condition()
        self._closed = False
        self._told = threading.Event()
        self._worker = EssentialThread("reranker", self._run, stopping=self._told.is_set, on_death=on_failure)
        self._worker.start()

    def alive(self) -> bool:
        """True while it answers."""
        return not self._closed and self._worker.is_alive()

    def submit(
        self, question: str, passages: Sequence[str], *, tenant: str, weight: int, deadline: Deadline
    ) -> Future[Floats]:
        """Scores float32 [n] in the order of `passages`, greater is nearer, from 0 to 1; what is longer than the model reads is cut off.

        Cancelling it spares the model the work. Raises Overloaded and Unavailable at once.
        """
        request = _Request(np.empty(len(passages), np.float32), len(passages), deadline)
        if not passages:
            request.settle()
        asked = question[: self._chars]
        pairs = [(_Pair(asked, passage[: self._chars], request, i), 1) for i, passage in enumerate(passages)]
        with self._work:
            if not self.alive():
                raise Unavailable("the reranker is stopping", dependency="reranker")
            self._queue.put(tenant, pairs, weight=weight)
            self._work.notify()
        return request.done

    def close(self) -> None:
        """Finish the call under way, refuse the rest. Idempotent."""
        self._told.set()
        with self._work:
            self._closed = True
            self._work.notify_all()
        self._worker.join(30)

    # the worker thread

    def _run(self) -> None:
        try:
            self._read_all()
        finally:
            self._refuse_all()

    def _read_all(self) -> None:
        failures = 0
        while pairs := self._next():
            wanted = [pair for pair in pairs if not pair.request.over()]
            try:
                self._read(wanted)
                failures = 0
            except Exception as error:
                failures += 1
                _event.exception("a call of the cross-encoder failed", failures=failures)
                for pair in wanted:
                    pair.request.settle(Unavailable(f"the model failed: {error}", dependency="reranker"))
                if failures == FAILURES_MAX:
                    raise

    def _next(self) -> list[_Pair]:
        """The pairs of the next call, waited for; [] when it is time to stop."""
        with self._work:
            while not self._closed:
                if pairs := self._queue.take(CALL_PAIRS):
                    return pairs
                self._work.wait()
        return []

    def _read(self, pairs: list[_Pair]) -> None:
        if not pairs:
            return
        start = time.perf_counter()
        scores = self._model.predict(
            [(pair.question, pair.passage) for pair in pairs], batch_size=len(pairs), show_progress_bar=False
        )
        _seconds.observe(time.perf_counter() - start)
        _pairs.inc(len(pairs))
        for pair, score in zip(pairs, scores, strict=True):
            pair.request.scores[pair.row] = score
            pair.request.left -= 1
            if pair.request.left == 0:
                pair.request.settle()

    def _refuse_all(self) -> None:
        """Nobody is left waiting for a worker that is gone."""
        with self._work:
            self._closed = True
            while pairs := self._queue.take(CALL_PAIRS):
                for pair in pairs:
                    pair.request.settle(Unavailable("the reranker is stopping", dependency="reranker"))


def _load(folder: Path, device: str) -> Any:
    """The model from local files, never from the network. Raises Refused when it is none of those that give a pair one score."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see local.py
    if not (folder / "config.json").is_file():
        raise Refused(f"rerank.model: there is no model in {folder}: its config.json is missing", field="rerank.model")
    if not has_torch():
        raise Refused("rerank.model needs torch: install vicinage with the extra `torch`", field="rerank.model")
    from sentence_transformers import CrossEncoder

    try:
        model: Any = CrossEncoder(str(folder), device=device, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused(f"rerank.model: {folder} is no cross-encoder: {error}", field="rerank.model") from error
    if model.num_labels != 1:
        raise Refused(
            f"rerank.model: {folder} gives a pair {model.num_labels} scores; a reranker gives one", field="rerank.model"
        )
    return model
