"""The embedder role's model: sentence-transformers behind one worker thread and one bounded, fair queue.

Precision and thread count are measured at start on this very machine; a precision is taken only when its vectors keep a
cosine to float32's above the floor. Requests gather while a model call is under way.
"""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ingest.embedding import Lane
from ingest.embedding.batcher import Batcher, Item
from ingest.passages import model_folder, open_tokenizer
from tenants.entities import EmbeddingModel
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Refused, Unavailable
from vicinage.records import Floats
from vicinage.settings import EmbedderSettings
from vicinage.telemetry import counter, events, gauge, histogram

DOCUMENT_CALL_S: Final = 0.1
"""About how long a question may wait behind a call of documents."""
PAD_SHARE: Final = 1.25
"""A call is split when padding would make it this much larger."""
TIMEOUT_S: Final = 600.0
PROBE: Final = (
    "A managed vector retrieval platform answers questions of many tenants from their own documents.",
    "The quick brown fox jumps over the lazy dog while the committee reads the minutes of the last meeting.",
    "Boundary layers on swept wings at supersonic speed become turbulent earlier than theory predicts.",
    "Return the median of numeric data, using the common mean of middle two method.",
)

_event = events("embedder")
_tokens = counter("vicinage_ingest_embed_tokens_total", "tokens embedded")
_queue = gauge("vicinage_ingest_embed_queue_tokens", "tokens waiting at the embedder")
_seconds = histogram("vicinage_ingest_embed_seconds", "one model call")


@dataclass(slots=True)
class _Request:
    """Texts asked together; done when every row is there."""

    vectors: Floats
    left: int
    deadline: Deadline | None
    done: Future[Floats] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured at start, and what was chosen. Texts a second in calls of 64; `cosine` is the mean to float32."""

    precision: str
    threads: int
    texts_per_s: float
    cosine: float
    tried: tuple[dict[str, Any], ...]


class LocalEmbedder:
    """One model in this process. Safe for many threads; starting it takes seconds."""

    def __init__(self, entry: EmbeddingModel, settings: EmbedderSettings) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from sentence_transformers import SentenceTransformer

        self._entry = entry
        self._tokenizer = open_tokenizer(entry)
        folder = model_folder(entry)
        self._device = settings.device
        self._model: Any = SentenceTransformer(str(folder), device=settings.device).eval()
        if (found := self._model.get_embedding_dimension()) != entry.dimension:
            raise Refused(
                f"model {entry.name} has dimension {found}, the registry says {entry.dimension}", field="model"
            )
        self._pad = int(self._tokenizer.token_to_id("[PAD]") or 0)
        self._batcher = Batcher(queue_tokens=settings.queue_tokens, batch_tokens=settings.batch_tokens)
        self._work = threading.Condition()
        self._closed = False
        self.calibration = self._calibrate(settings)
        _event.info("calibrated", model=entry.name, chosen=self.calibration.precision, threads=self.calibration.threads)
        self._worker = threading.Thread(target=self._embed_all, name="embedder", daemon=True)
        self._worker.start()

    @property
    def model(self) -> str:
        """Its name in the registry."""
        return self._entry.name

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._entry.dimension

    @property
    def window_tokens(self) -> int:
        """Longest text, special tokens not counted."""
        return self._entry.window_tokens - 2

    def embed(
        self,
        texts: Sequence[str],
        *,
        tenant: str,
        lane: Lane = Lane.DOCUMENT,
        weight: int = 1,
        deadline: Deadline | None = None,
    ) -> Floats:
        """See Embedder."""
        future = self.submit(texts, tenant=tenant, lane=lane, weight=weight, deadline=deadline)
        try:
            return future.result(deadline.left_s() if deadline else TIMEOUT_S)
        except FutureTimeout:
            raise DeadlineExceeded("the embedder did not answer in time", dependency="embedder") from None

    def submit(
        self,
        texts: Sequence[str],
        *,
        tenant: str,
        lane: Lane = Lane.DOCUMENT,
        weight: int = 1,
        deadline: Deadline | None = None,
    ) -> Future[Floats]:
        """The same, as a future. Raises Refused and Overloaded at once."""
        request = _Request(np.empty((len(texts), self.dimension), np.float32), len(texts), deadline)
        if not texts:
            request.done.set_result(request.vectors)
            return request.done
        items = [Item(tokens, request, row) for row, tokens in enumerate(self._tokenise(texts))]
        with self._work:
            if self._closed:
                raise Unavailable("the embedder is stopping", dependency="embedder")
            self._batcher.put(tenant, lane, items, weight=weight)
            _queue.set(self._batcher.waiting_tokens())
            self._work.notify()
        return request.done

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens of `texts`, special ones included."""
        return sum(len(e.ids) for e in self._tokenizer.encode_batch_fast(list(texts)))

    def close(self) -> None:
        """Finish the call under way, refuse the rest. Idempotent."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        self._worker.join(30)

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast(list(texts))]
        for i, ids in enumerate(encoded):
            if len(ids) > self._entry.window_tokens:
                raise Refused(
                    f"text {i} has {len(ids)} tokens; {self.model} reads {self._entry.window_tokens} with its special ones: cut it first",
                    field=f"input.{i}",
                    limit=self._entry.window_tokens,
                )
        return encoded

    # the worker thread

    def _embed_all(self) -> None:
        import torch

        torch.set_num_threads(self.calibration.threads)
        while True:
            with self._work:
                while not (items := self._batcher.take()) and not self._closed:
                    self._work.wait()
                _queue.set(self._batcher.waiting_tokens())
            if self._closed:
                self._refuse(items)
                return
            live = [
                i
                for i in items
                if not (i.request.deadline and i.request.deadline.passed()) and not i.request.done.done()
            ]
            late = {id(i.request): i.request for i in items if i.request.deadline and i.request.deadline.passed()}
            for request in late.values():
                _settle(request, DeadlineExceeded("the deadline passed in the embedder's queue", dependency="embedder"))
            for call in _calls(live):
                self._answer(call)

    def _answer(self, items: list[Item]) -> None:
        start = time.perf_counter()
        try:
            vectors = self._forward([item.tokens for item in items])
        except Exception as error:  # noqa: BLE001  (the role's boundary: whoever waits must hear of it)
            _event.error("model call failed", error=repr(error))
            for item in items:
                _settle(item.request, Unavailable(f"the model failed: {error}", dependency="embedder"))
            return
        seconds = time.perf_counter() - start
        n_tokens = sum(len(item.tokens) for item in items)
        _tokens.inc(n_tokens)
        _seconds.observe(seconds)
        if n_tokens > 256:
            with self._work:
                self._batcher.aim(n_tokens / seconds, DOCUMENT_CALL_S)
        for item, vector in zip(items, vectors, strict=True):
            request: _Request = item.request
            request.vectors[item.row] = vector
            request.left -= 1
            if request.left == 0:
                _settle(request, None)

    def _forward(self, rows: list[list[int]]) -> Floats:
        """float32 [n, d], L2-normalised, of token ids of similar lengths."""
        import torch

        longest = max(len(r) for r in rows)
        ids = np.full((len(rows), longest), self._pad, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        features = {
            "input_ids": torch.from_numpy(ids).to(self._device),
            "attention_mask": torch.from_numpy(mask).to(self._device),
        }
        with torch.inference_mode():
            out = self._model(features)["sentence_embedding"].float()
            out = torch.nn.functional.normalize(out, dim=1)
        vectors: Floats = out.cpu().numpy()
        return vectors

    def _refuse(self, items: list[Item]) -> None:
        while items:
            for item in items:
                _settle(item.request, Unavailable("the embedder is stopping", dependency="embedder"))
            with self._work:
                items = self._batcher.take()

    # calibration

    def _calibrate(self, settings: EmbedderSettings) -> Calibration:
        """Measure precision × threads on a short probe; take the fastest whose vectors are still the model's."""
        import torch

        rows = self._tokenise([PROBE[i % len(PROBE)] for i in range(64)])
        cores = os.cpu_count() or 1
        threads = [settings.threads] if settings.threads else sorted({1, cores})
        truth = self._forward(rows)
        tried: list[dict[str, Any]] = []
        for precision in ("float32", "bfloat16") if settings.precision == "auto" else (settings.precision,):
            self._model.to(getattr(torch, precision))
            for n in threads:
                torch.set_num_threads(n)
                self._forward(rows[:8])
                start = time.perf_counter()
                vectors = self._forward(rows)
                per_s = len(rows) / (time.perf_counter() - start)
                cosine = float(np.einsum("ij,ij->i", truth, vectors).mean())
                tried.append(
                    {"precision": precision, "threads": n, "texts_per_s": round(per_s, 1), "cosine": round(cosine, 5)}
                )
        good = [t for t in tried if t["cosine"] >= settings.cosine_floor]
        if not good:
            raise Refused(
                f"no precision of {self.model} keeps a cosine of {settings.cosine_floor} to float32: {tried}",
                field="precision",
            )
        best = max(good, key=lambda t: float(t["texts_per_s"]))
        self._model.to(getattr(torch, best["precision"]))
        return Calibration(best["precision"], best["threads"], best["texts_per_s"], best["cosine"], tuple(tried))


def _settle(request: _Request, refusal: Exception | None) -> None:
    if request.done.done():
        return
    if refusal is None:
        request.done.set_result(request.vectors)
    else:
        request.done.set_exception(refusal)


def _calls(items: list[Item]) -> list[list[Item]]:
    """Split items, ordered by length, wherever one call would be mostly padding."""
    calls: list[list[Item]] = []
    tokens = 0
    for item in items:
        n = len(item.tokens)
        if calls and n * (len(calls[-1]) + 1) <= PAD_SHARE * (tokens + n):
            calls[-1].append(item)
            tokens += n
        else:
            calls.append([item])
            tokens = n
    return calls
