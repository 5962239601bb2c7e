"""The embedder role's model: a runtime (runtime.py), one worker thread and a bounded fair queue.

Trials at start on this machine select the precision and the thread count. A precision qualifies
only if the cosine of its vectors to float32's is at least the floor. Requests gather while a model
call is in progress.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from ingest.embedding import Lane
from ingest.embedding.batcher import Batcher, Item
from ingest.embedding.calibration import (
    BATCH,
    BUDGET_S,
    PROBE,
    ROUNDS,
    Calibration,
    Trial,
    choose,
    measure,
)
from ingest.embedding.model_worker import FAILURES_MAX, ModelWorker, settle
from ingest.embedding.runtime import Model, Runtime
from ingest.embedding.runtimes import open_runtime
from ingest.embedding.tokenizer import open_tokenizer
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
CALL_TOKENS: Final = 40
"""Tokens of padding that never split a call.

Computing them takes about as long as the fixed part of another call.
"""
WINDOW_SLACK: Final = 4
"""Tokens that a window of a long text leaves free.

A text split from a longer one may have one more token at each end.
"""
NORM_MIN: Final = np.float32(1e-12)
"""Lower bound on the length by which a vector is divided."""
TIMEOUT_S: Final = 600.0

_event = events("embedder")
_tokens = counter("vicinage_ingest_embed_tokens_total")
_queue = gauge("vicinage_ingest_embed_queue_tokens")
_seconds = histogram("vicinage_ingest_embed_seconds")


@dataclass(slots=True)
class _Request:
    """Texts of one caller; done when every row is embedded.

    `vectors` is float32 [rows, d]. A text has one row, or several if it is longer than the window.
    `windows[i]` has the number of tokens of each row of text i.
    """

    vectors: Floats
    left: int
    deadline: Deadline | None
    windows: "Sequence[Sequence[int]]" = ()
    normalized: bool = True
    done: Future[Floats] = field(default_factory=Future)

    def text_of(self, row: int) -> int:
        """Returns the text that a row belongs to."""
        ends = np.cumsum([len(each) for each in self.windows])
        return int(np.searchsorted(ends, row, side="right"))

    def late(self) -> bool:
        return self.deadline is not None and self.deadline.passed()

    def finish(self) -> None:
        """Completes the request with its vectors."""
        settle(self.done, mean_of_windows(self.vectors, self.windows, normalized=self.normalized))


def mean_of_windows(
    vectors: Floats, windows: Sequence[Sequence[int]], *, normalized: bool
) -> Floats:
    """Returns float32 [texts, d]: the mean of each text's windows, weighted by their tokens. Pure.

    `vectors` has a row per window. `windows[i]` has the number of tokens of each window of text i;
    () means one row per text.
    """
    if len(windows) == len(vectors) or not windows:
        return vectors
    starts = np.cumsum([0] + [len(each) for each in windows[:-1]])
    weights = np.concatenate([np.asarray(each, np.float32) / sum(each) for each in windows])
    means: Floats = np.add.reduceat(vectors * weights[:, None], starts, axis=0)
    if normalized:
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return means


@dataclass(frozen=True, slots=True)
class Pending:
    """A request in progress: the future of its vectors, and its tokens, special ones included."""

    vectors: Future[Floats]
    tokens: int


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
        self._tokenizer = open_tokenizer(entry)
        self._pad = int(self._tokenizer.token_to_id("[PAD]") or 0)
        runtime = open_runtime(entry, device=settings.device, name=settings.runtime)
        self._model, self.calibration = self._calibrated(runtime, settings)
        self._batcher = Batcher(
            queue_tokens=settings.queue_tokens, batch_tokens=settings.batch_tokens
        )
        n_tokens = sum(len(row) for row in self._tokenise(PROBE))
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
            "calibrated", model=entry.name, runtime=runtime.name, **self.calibration.facts()
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
        asked = self.submit(texts, tenant=tenant, lane=lane, deadline=deadline)
        try:
            return asked.vectors.result(deadline.left_s() if deadline else TIMEOUT_S)
        except TimeoutError:
            asked.vectors.cancel()
            raise DeadlineExceeded(
                "the embedder did not answer in time", dependency="embedder"
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
        rows, windows = self._rows(texts, lane)
        request = _Request(
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

    def _rows(self, texts: Sequence[str], lane: Lane) -> tuple[list[list[int]], list[list[int]]]:
        """Returns the token ids of each row, and each text's windows (see mean_of_windows).

        Raises Refused for a document longer than the window, because ingest chunks documents. A
        longer query text is split into windows, so that all of it counts
        (docs/decisions/034-long-search-texts.md).
        """
        if lane is Lane.DOCUMENT:
            rows = self._tokenise(texts, self._entry.document_prompt)
            return rows, [[len(row)] for row in rows]
        prompt = self._entry.query_prompt
        encoded = [
            e.ids for e in self._tokenizer.encode_batch_fast([prompt + text for text in texts])
        ]
        if all(len(ids) <= self._entry.window_tokens for ids in encoded):
            return encoded, [[len(row)] for row in encoded]
        each = [
            [ids] if len(ids) <= self._entry.window_tokens else self._windows(text)
            for text, ids in zip(texts, encoded, strict=True)
        ]
        return [row for rows in each for row in rows], [[len(row) for row in rows] for rows in each]

    def _windows(self, text: str) -> list[list[int]]:
        """Returns the token ids of the text's windows, each with prompt and special tokens.

        The last window may be short.
        """
        bare = self._tokenizer.encode(text, add_special_tokens=False)
        around = len(self._tokenizer.encode(self._entry.query_prompt).ids)
        size = max(1, self._entry.window_tokens - around - WINDOW_SLACK)
        spans = [
            (bare.offsets[at][0], bare.offsets[min(at + size, len(bare.ids)) - 1][1])
            for at in range(0, len(bare.ids), size)
        ]
        return self._tokenise([text[start:end] for start, end in spans], self._entry.query_prompt)

    def _tokenise(self, texts: Sequence[str], prompt: str = "") -> list[list[int]]:
        encoded = [
            e.ids for e in self._tokenizer.encode_batch_fast([prompt + text for text in texts])
        ]
        window = self._entry.window_tokens
        for i, ids in enumerate(encoded):
            if len(ids) > window:
                raise Refused(
                    f"the text has {len(ids)} tokens; {self.model} reads {window} with its special ones",
                    field=f"input.{i}",
                    limit=window,
                )
        return encoded

    # the worker thread

    def _serve(self, items: list[Item]) -> None:
        """Embeds the items in one call or several.

        Raises RuntimeError after FAILURES_MAX failed calls in a row.
        """
        for call in _calls(_wanted(items), self._model.pad_share):
            self._failures = 0 if self._answered(call) else self._failures + 1
            if self._failures == FAILURES_MAX:
                raise RuntimeError(
                    f"{FAILURES_MAX} model calls failed in a row, that of a known text too"
                )

    def _answered(self, call: list[Item]) -> bool:
        """Embeds a call and settles its requests, even on failure.

        Returns False if the model fails rather than a text. If a call fails while a known text
        still works, a text is at fault: each text is then embedded alone.
        """
        try:
            self._answer(call)
        except Exception as error:  # noqa: BLE001  (waiting callers must get any error of a model)
            _event.exception("model_call.failed", texts=len(call))
            if not self._works():
                for item in call:
                    settle(
                        item.request.done,
                        Unavailable("the embedding model failed", dependency="embedder"),
                    )
                return False
            if len(call) == 1:
                settle(
                    call[0].request.done,
                    Refused(
                        f"the model cannot embed this text: {type(error).__name__}",
                        field=f"input.{call[0].request.text_of(call[0].row)}",
                    ),
                )
            else:
                alone = [
                    self._answered([item]) for item in call
                ]  # each is embedded, even after a failure of another
                return all(alone)
        return True

    def _works(self) -> bool:
        """Returns whether the model still embeds a text that it embedded at its start."""
        try:
            return bool(
                np.isfinite(self._forward(self._model, self._tokenise(PROBE[:1]), threads=1)).all()
            )
        except Exception:  # noqa: BLE001  (as above)
            _event.exception("model.failed")
            return False

    def _answer(self, items: list[Item]) -> None:
        n_tokens = sum(len(item.tokens) for item in items)
        threads = min(self.calibration.chosen.threads, -(-n_tokens // THREAD_TOKENS))
        start = time.perf_counter()
        vectors = self._forward(self._model, [item.tokens for item in items], threads=threads)
        self._account(n_tokens, time.perf_counter() - start)
        for item, vector in zip(items, vectors, strict=True):
            request: _Request = item.request
            request.vectors[item.row] = vector
            request.left -= 1
            if request.left == 0:
                request.finish()

    def _account(self, n_tokens: int, seconds: float) -> None:
        _tokens.inc(n_tokens)
        _seconds.observe(seconds)
        if n_tokens > 256:  # the time of a smaller call says little about the model's speed
            with self._worker.lock:
                self._batcher.aim(n_tokens / seconds, CALL_S)

    def _forward(self, model: Model, rows: Sequence[Sequence[int]], *, threads: int) -> Floats:
        """Returns float32 [n, d] for rows of token ids of similar lengths.

        The vectors are L2-normalized if the registry's entry says so.
        """
        longest = max(len(r) for r in rows)
        ids = np.full((len(rows), longest), self._pad, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        vectors = model(ids, mask, threads)
        if self._entry.normalized:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), NORM_MIN)
        return vectors

    # calibration

    def _calibrated(
        self, runtime: Runtime, settings: EmbedderSettings
    ) -> tuple[Model, Calibration]:
        """Returns the model at the fastest precision and thread count, and the calibration."""
        rows = sorted(self._tokenise([PROBE[i % len(PROBE)] for i in range(BATCH)]), key=len)
        ways = _ways(runtime, settings)
        models: dict[tuple[str, int], Model] = {}
        truth = self._forward(runtime.at("float32", 1), rows, threads=1)
        best: dict[tuple[str, int], Trial] = {}
        end = time.perf_counter() + BUDGET_S
        # Trials run in rounds, so that a moment of other load affects all of them.
        for way in ways * ROUNDS:
            precision, threads = way
            if time.perf_counter() > end and precision in {known for known, _ in best}:
                break  # the machine is busy now: the trials so far must suffice
            if way not in models:
                models[way] = runtime.at(precision, threads)
            trial = measure(
                precision, threads, partial(self._probe, models[way], rows, threads), truth
            )
            best[way] = trial.better(best[way]) if way in best else trial
        calibration = choose(list(best.values()), settings.cosine_floor)
        return models[calibration.chosen.precision, calibration.chosen.threads], calibration

    def _probe(self, model: Model, rows: list[list[int]], threads: int, n: int) -> Floats:
        return self._forward(model, rows[:n], threads=threads)


def try_model(entry: EmbeddingModel) -> None:
    """Loads the model, and embeds a short text and one that fills its window.

    Raises Refused, or the library's error.
    """
    model, tokenizer = (
        open_runtime(entry, device="cpu", name="auto").at("float32", 1),
        open_tokenizer(entry),
    )
    for text in (PROBE[0], "word " * entry.window_tokens):
        ids = np.asarray([tokenizer.encode(text).ids[: entry.window_tokens]], np.int64)
        vectors = model(ids, np.ones_like(ids), 1)
        if vectors.shape != (1, entry.dimension) or not np.isfinite(vectors).all():
            raise Refused(
                f"model {entry.name} answers {vectors.shape}, or numbers that are not finite",
                field="location",
            )


def _ways(runtime: Runtime, settings: EmbedderSettings) -> list[tuple[str, int]]:
    """Returns the (precision, threads) pairs to try, the most likely ones first."""
    cores = os.cpu_count() or 1
    threads = (
        [settings.threads]
        if settings.threads
        else sorted({1, max(1, cores // 2), cores}, reverse=True)
    )
    precisions = runtime.precisions() if settings.precision == "auto" else (settings.precision,)
    return [(precision, n) for n in threads for precision in precisions]


def _wanted(items: list[Item]) -> list[Item]:
    """Returns the items of requests that still wait; fails requests whose deadline passed."""
    for item in items:
        if item.request.late():
            settle(
                item.request.done,
                DeadlineExceeded("the deadline passed in the queue", dependency="embedder"),
            )
    return [item for item in items if not item.request.done.done()]


def _calls(items: list[Item], pad_share: float) -> list[list[Item]]:
    """Splits items, ordered by length, into calls without too much padding.

    A call is split if padding exceeds both `pad_share` and CALL_TOKENS.
    """
    calls: list[list[Item]] = []
    tokens = 0
    for item in items:
        n = len(item.tokens)
        padded = n * (len(calls[-1]) + 1) if calls else 0
        if calls and padded <= max(pad_share * (tokens + n), tokens + n + CALL_TOKENS):
            calls[-1].append(item)
            tokens += n
        else:
            calls.append([item])
            tokens = n
    return calls
