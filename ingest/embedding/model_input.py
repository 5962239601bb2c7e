"""Token ids of texts for a model, and the mean of the windows of a long text."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from ingest.embedding import Lane
from ingest.embedding.runtime import Ids
from ingest.embedding.tokenizer import open_tokenizer
from tenants.entities import EmbeddingModel
from vicinage.errors import Refused
from vicinage.records import Floats

Rows = Sequence[Sequence[int]]
"""Token ids, special ones included, of each row of a model call."""
WINDOW_SLACK: Final = 4
"""Tokens that a window of a long text leaves free.

A text split from a longer one may have one more token at each end.
"""


class ModelInput:
    """The tokenizer of one model, with its prompts and its window. Safe for many threads."""

    def __init__(self, entry: EmbeddingModel) -> None:
        self._entry = entry
        self._tokenizer = open_tokenizer(entry)
        self._pad = int(self._tokenizer.token_to_id("[PAD]") or 0)

    def rows(self, texts: Sequence[str], lane: Lane) -> tuple[list[list[int]], list[list[int]]]:
        """Returns the token ids of each row, and each text's windows (see mean_of_windows).

        Raises Refused for a document longer than the window, because ingest chunks documents. A
        longer query text is split into windows, so that all of it counts
        (docs/decisions/034-long-search-texts.md).
        """
        if lane is Lane.DOCUMENT:
            rows = self.encode(texts, self._entry.document_prompt)
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
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        n, offsets = len(tokens.ids), tokens.offsets
        n_around = len(self._tokenizer.encode(self._entry.query_prompt).ids)
        size = max(1, self._entry.window_tokens - n_around - WINDOW_SLACK)
        spans = [(offsets[i][0], offsets[min(i + size, n) - 1][1]) for i in range(0, n, size)]
        return self.encode([text[start:end] for start, end in spans], self._entry.query_prompt)

    def encode(self, texts: Sequence[str], prompt: str = "") -> list[list[int]]:
        """Returns the token ids of each text after `prompt`.

        Raises Refused (field `input.<number>`) for a text longer than the window.
        """
        encoded = [
            e.ids for e in self._tokenizer.encode_batch_fast([prompt + text for text in texts])
        ]
        window = self._entry.window_tokens
        for i, ids in enumerate(encoded):
            if len(ids) > window:
                raise Refused(
                    f"the text has {len(ids)} tokens, special ones included; "
                    f"the window of {self._entry.name} is {window}",
                    field=f"input.{i}",
                    limit=window,
                )
        return encoded

    def padded(self, rows: Rows) -> tuple[Ids, Ids]:
        """Returns ids and mask, int64 [n, tokens], for rows of similar lengths."""
        ids = np.full((len(rows), max(map(len, rows))), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask


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
