"""Trials of a model: before it enters the registry, and when the embedder starts."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

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
from ingest.embedding.runtime import Model, Runtime
from ingest.embedding.runtimes import open_runtime
from ingest.embedding.tokenizer import open_tokenizer
from tenants.entities import EmbeddingModel
from vicinage.errors import Refused
from vicinage.records import Floats
from vicinage.settings import EmbedderSettings

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Returns the token ids of each text."""
Forward = Callable[[Model, list[list[int]], int], Floats]
"""Returns the vectors of rows of token ids, computed by a model on some threads."""


def calibrate(
    runtime: Runtime, settings: EmbedderSettings, encode: Encode, forward: Forward
) -> tuple[Model, Calibration]:
    """Returns the model at the fastest precision and thread count, and the calibration.

    Raises Refused if no precision keeps `cosine_floor`.
    """
    rows = sorted(encode([PROBE[i % len(PROBE)] for i in range(BATCH)]), key=len)
    pairs = _pairs(runtime, settings)
    models: dict[tuple[str, int], Model] = {}
    truth = forward(runtime.at("float32", 1), rows, 1)
    best: dict[tuple[str, int], Trial] = {}
    end = time.perf_counter() + BUDGET_S

    def embed(pair: tuple[str, int], n: int) -> Floats:
        return forward(models[pair], rows[:n], pair[1])

    # Trials run in rounds, so that a moment of other load affects all of them.
    for pair in pairs * ROUNDS:
        if time.perf_counter() > end and pair[0] in {precision for precision, _ in best}:
            break  # the machine is busy now: the trials so far must suffice
        if pair not in models:
            models[pair] = runtime.at(*pair)
        trial = measure(*pair, partial(embed, pair), truth)
        best[pair] = trial.better(best[pair]) if pair in best else trial
    calibration = choose(list(best.values()), settings.cosine_floor)
    return models[calibration.chosen.precision, calibration.chosen.threads], calibration


def _pairs(runtime: Runtime, settings: EmbedderSettings) -> list[tuple[str, int]]:
    """Returns the (precision, threads) pairs to try, the most likely ones first."""
    cores = os.cpu_count() or 1
    threads = (
        [settings.threads]
        if settings.threads
        else sorted({1, max(1, cores // 2), cores}, reverse=True)
    )
    precisions = runtime.precisions() if settings.precision == "auto" else (settings.precision,)
    return [(precision, n) for n in threads for precision in precisions]


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
                f"model {entry.name} returns vectors of shape {vectors.shape}, or numbers that "
                "are not finite",
                field="location",
            )
