"""The embedder role's model: a runtime (runtime.py), one worker thread and a bounded fair queue.

Trials at start on this machine select the precision and the thread count. A precision qualifies
only if the cosine of its vectors to float32's is at least the floor. Requests gather while a model
call is in progress.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ingest.embedding import Lane
from ingest.embedding.batcher import Batcher, Item
from ingest.embedding.calibration import PROBE
from ingest.embedding.embed_request import EmbedRequest, Pending, split_calls, still_pending
from ingest.embedding.model_input import ModelInput, Rows
from ingest.embedding.model_trials import calibrate
from ingest.embedding.model_worker import FAILURES_MAX, ModelWorker, settle
from ingest.embedding.runtime import Model
from ingest.embedding.runtimes import open_runtime
from tenants.entities import EmbeddingModel
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Refused, Unavailable
from vicinage.metrics import counter, gauge, histogram
from vicinage.records import Floats
from vicinage.settings import EmbedderSettings
from vicinage.telemetry import events
from vicinage.tenant_context import TenantContext

CALL_S: Final = 0.1
"""About how long, in seconds, a query text may wait behind a model call."""
THREAD_TOKENS: Final = 128
"""Tokens of a call per thread before another thread helps: eight short query texts.

The threads of smaller calls mostly wait for each other, on cores that the gateway needs.
"""
NORM_MIN: Final = np.float32(1e-12)
"""Lower bound on the length by which a vector is divided."""
TIMEOUT_S: Final = 600.0

_event = events("embedder")
_tokens = counter("vicinage_ingest_embed_tokens_total")
_queue = gauge("vicinage_ingest_embed_queue_tokens")
_seconds = histogram("vicinage_ingest_embed_seconds")


class LocalEmbedder:
    """One model in this process. Safe for many threads; starting it takes seconds.

    `on_failure` gets the error of a worker that ended by itself. Waiting and later callers get
    Unavailable.
    """

    def __init__(
        self,
        entry: EmbeddingModel,
        settings: EmbedderSettings,
        *,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._entry = entry
        self._input = ModelInput(entry)
        runtime = open_runtime(entry, device=settings.device, name=settings.runtime)
        self._model, self.calibration = calibrate(
            runtime, settings, self._input.encode, self._forward
        )
        self._batcher = Batcher(
            queue_tokens=settings.queue_tokens, batch_tokens=settings.batch_tokens
        )
        n_tokens = sum(len(row) for row in self._input.encode(PROBE))
        self._batcher.aim(self.calibration.chosen.texts_per_s * n_tokens / len(PROBE), CALL_S)
        self._failures = 0
        self._worker = ModelWorker(
            "embedder",
            take=self._take,
            serve=self._serve,
            refuse=lambda item, error: settle(item.request.done, error),
            on_failure=on_failure,
        )
        _event.info(
            "model.calibrated", model=entry.name, runtime=runtime.name, **self.calibration.facts()
        )
        self._worker.start()

    @property
    def model(self) -> str:
        """The model's name in the registry."""
        return self._entry.name

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._entry.dimension

    @property
    def window_tokens(self) -> int:
        """Longest text, special tokens not counted."""
        return self._entry.window_tokens - 2

    def alive(self) -> bool:
        """Returns whether the worker still serves."""
        return self._worker.alive()

    def embed(
        self,
        texts: Sequence[str],
        *,
        tenant: TenantContext,
        lane: Lane = Lane.DOCUMENT,
        deadline: Deadline | None = None,
    ) -> Floats:
        """See Embedder."""
        pending = self.submit(texts, tenant=tenant, lane=lane, deadline=deadline)
        try:
            return pending.vectors.result(deadline.left_s() if deadline else TIMEOUT_S)
        except TimeoutError:
            pending.vectors.cancel()
            raise DeadlineExceeded(
                "the embedder did not respond in time", dependency="embedder"
            ) from None

    def submit(
        self,
        texts: Sequence[str],
        *,
        tenant: TenantContext,
        lane: Lane = Lane.DOCUMENT,
        deadline: Deadline | None = None,
    ) -> Pending:
        """Queues the texts, and returns a future of what `embed` returns.

        Canceling the future saves the model the work. Raises Refused, Overloaded and Unavailable at
        once.
        """
        rows, windows = self._input.rows(texts, lane)
        request = EmbedRequest(
            np.empty((len(rows), self.dimension), np.float32),
            len(rows),
            deadline,
            windows,
            self._entry.normalized,
        )
        if not rows:
            request.finish()
        items = [Item(ids, request, i) for i, ids in enumerate(rows)]
        self._worker.put(lambda: self._put(items, tenant, lane))
        return Pending(request.done, sum(len(ids) for ids in rows))

    def close(self) -> None:
        """Finishes the call in progress and refuses the rest. Idempotent."""
        self._worker.close()

    def _put(self, items: list[Item], tenant: TenantContext, lane: Lane) -> None:
        self._batcher.put(tenant, lane, items)
        _queue.set(self._batcher.waiting_tokens())

    def _take(self) -> list[Item]:
        items = self._batcher.take()
        _queue.set(self._batcher.waiting_tokens())
        return items

    # the worker thread

    def _serve(self, items: list[Item]) -> None:
        """Embeds the items in one model call or several.

        Raises RuntimeError after FAILURES_MAX failed calls in a row.
        """
        for call in split_calls(still_pending(items), self._model.pad_share):
            self._failures = 0 if self._serve_call(call) else self._failures + 1
            if self._failures == FAILURES_MAX:
                raise RuntimeError(
                    f"{FAILURES_MAX} model calls in a row failed, and each time a known text too"
                )

    def _serve_call(self, call: list[Item]) -> bool:
        """Embeds a call and settles its requests, even on failure.

        Returns False if the model fails rather than a text. If a call fails while a known text
        still works, a text is at fault: each text is then embedded alone.
        """
        try:
            self._embed(call)
        except Exception as error:  # noqa: BLE001  (pending callers must get any error of a model)
            _event.exception("model_call.failed", texts=len(call))
            if not self._embeds_known_text():
                for item in call:
                    settle(
                        item.request.done,
                        Unavailable("the embedding model failed", dependency="embedder"),
                    )
                return False
            if len(call) > 1:
                served = [self._serve_call([item]) for item in call]  # every text, whatever fails
                return all(served)
            [item] = call
            settle(
                item.request.done,
                Refused(
                    f"the model cannot embed this text: {type(error).__name__}",
                    field=f"input.{item.request.text_of(item.row)}",
                ),
            )
        return True

    def _embeds_known_text(self) -> bool:
        """Returns whether the model still embeds a text that it embedded at its start."""
        try:
            vectors = self._forward(self._model, self._input.encode(PROBE[:1]), 1)
            return bool(np.isfinite(vectors).all())
        except Exception:  # noqa: BLE001  (as above)
            _event.exception("model.failed")
            return False

    def _embed(self, items: list[Item]) -> None:
        n_tokens = sum(len(item.tokens) for item in items)
        threads = min(self.calibration.chosen.threads, -(-n_tokens // THREAD_TOKENS))
        start = time.perf_counter()
        vectors = self._forward(self._model, [item.tokens for item in items], threads)
        self._account(n_tokens, time.perf_counter() - start)
        for item, vector in zip(items, vectors, strict=True):
            item.request.set_row(item.row, vector)

    def _account(self, n_tokens: int, seconds: float) -> None:
        _tokens.inc(n_tokens)
        _seconds.observe(seconds)
        if n_tokens > 256:  # the time of a smaller call says little about the model's speed
            with self._worker.lock:
                self._batcher.aim(n_tokens / seconds, CALL_S)

    def _forward(self, model: Model, rows: Rows, threads: int) -> Floats:
        """Returns float32 [n, d] for rows of token ids of similar lengths.

        The vectors are L2-normalized if the registry's entry says so.
        """
        vectors = model(*self._input.padded(rows), threads)
        if self._entry.normalized:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), NORM_MIN)
        return vectors
