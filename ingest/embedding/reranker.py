"""The embedder role's cross-encoder: scores pairs of a query text and a passage.

It has one worker thread and one fair queue.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from ingest.embedding.model_worker import FAILURES_MAX, ModelWorker, settle
from ingest.embedding.runtimes import has_torch
from vicinage.clock import Deadline
from vicinage.errors import Refused, Unavailable
from vicinage.fair import FairQueue
from vicinage.metrics import counter, histogram
from vicinage.records import Floats
from vicinage.telemetry import events
from vicinage.tenant_context import TenantContext

QUEUE_PAIRS: Final = 4_096
CALL_PAIRS: Final = 16
"""Pairs in one model call: few, so that a request never waits long behind another one's call."""
QUANTUM: Final = 16
CHARS_PER_TOKEN: Final = 16
"""Characters per token of the model's window at which a text is truncated before tokenization.

Text that no model would read is not tokenized.
"""
WINDOW_MAX: Final = 8_192

_event = events("embedder")
_pairs = counter("vicinage_ingest_rerank_pairs_total")
_seconds = histogram("vicinage_ingest_rerank_seconds")


@dataclass(slots=True)
class _Request:
    """Passages to score against one query text; done when every score is computed."""

    scores: Floats
    n_left: int
    deadline: Deadline
    done: Future[Floats] = field(default_factory=Future)

    def is_over(self) -> bool:
        """Returns whether the request is settled or its deadline passed."""
        return self.done.done() or self.deadline.passed()


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """One passage of a request, with the query text."""

    query: str
    passage: str
    request: _Request
    row: int


class LocalReranker:
    """One cross-encoder in this process. Safe for many threads; starting it takes seconds.

    `on_failure` gets the error of a worker that ended by itself. Waiting and later callers get
    Unavailable.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._model = _load(folder, device)
        self._chars = CHARS_PER_TOKEN * min(int(self._model.tokenizer.model_max_length), WINDOW_MAX)
        self._queue = FairQueue[_Pair](items_max=QUEUE_PAIRS, quantum=QUANTUM)
        self._failures = 0
        self._worker = ModelWorker(
            "reranker",
            take=lambda: self._queue.take(CALL_PAIRS),
            serve=self._serve,
            refuse=lambda pair, error: settle(pair.request.done, error),
            on_failure=on_failure,
        )
        self._worker.start()

    def alive(self) -> bool:
        """Returns whether the worker still serves."""
        return self._worker.alive()

    def submit(
        self,
        query: str,
        passages: Sequence[str],
        *,
        tenant: TenantContext,
        deadline: Deadline,
    ) -> Future[Floats]:
        """Returns a future of scores, float32 [n] from 0 to 1, in the order of `passages`.

        A greater score is nearer. Texts longer than the model's window are truncated. Canceling the
        future saves the model the work. Raises Overloaded and Unavailable at once.
        """
        request = _Request(np.empty(len(passages), np.float32), len(passages), deadline)
        if not passages:
            settle(request.done, request.scores)
        truncated = query[: self._chars]
        pairs = [
            (_Pair(truncated, passage[: self._chars], request, i), 1)
            for i, passage in enumerate(passages)
        ]
        self._worker.put(lambda: self._queue.put(tenant.name, pairs, weight=tenant.weight))
        return request.done

    def close(self) -> None:
        """Finishes the call in progress and refuses the rest. Idempotent."""
        self._worker.close()

    # the worker thread

    def _serve(self, pairs: list[_Pair]) -> None:
        """Scores the pairs of requests that still wait.

        Raises the model's error after FAILURES_MAX failed calls in a row.
        """
        pending = [pair for pair in pairs if not pair.request.is_over()]
        try:
            self._score(pending)
            self._failures = 0
        except Exception as error:
            self._failures += 1
            _event.exception("rerank_call.failed", failures=self._failures)
            for pair in pending:
                settle(
                    pair.request.done,
                    Unavailable(f"the model failed: {error}", dependency="reranker"),
                )
            if self._failures == FAILURES_MAX:
                raise

    def _score(self, pairs: list[_Pair]) -> None:
        if not pairs:
            return
        start = time.perf_counter()
        scores = self._model.predict(
            [(pair.query, pair.passage) for pair in pairs],
            batch_size=len(pairs),
            show_progress_bar=False,
        )
        _seconds.observe(time.perf_counter() - start)
        _pairs.inc(len(pairs))
        for pair, score in zip(pairs, scores, strict=True):
            pair.request.scores[pair.row] = score
            pair.request.n_left -= 1
            if pair.request.n_left == 0:
                settle(pair.request.done, pair.request.scores)


def _load(folder: Path, device: str) -> Any:
    """Loads the model from local files, never from the network.

    Raises Refused for a model that does not give a pair exactly one score, and without torch.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see torch_runtime.py
    if not (folder / "config.json").is_file():
        raise Refused(
            f"rerank.model: {folder} has no model: config.json is missing",
            field="rerank.model",
        )
    if not has_torch():
        raise Refused(
            "rerank.model needs torch: install vicinage with the extra `torch`",
            field="rerank.model",
        )
    from sentence_transformers import CrossEncoder

    try:
        model: Any = CrossEncoder(str(folder), device=device, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused(
            f"rerank.model: {folder} is not a cross-encoder: {error}", field="rerank.model"
        ) from error
    if model.num_labels != 1:
        raise Refused(
            f"rerank.model: {folder} gives a pair {model.num_labels} scores; a reranker gives one",
            field="rerank.model",
        )
    return model
