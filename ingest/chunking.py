"""Chunks documents: a splitter library splits at the best boundary that the model's window allows.

No text is truncated: a text longer than the window becomes several passages with their positions.
The library splits by characters; the text's characters per token give the length of a passage.
Then the tokens of every piece are counted. Splitting by tokens tokenizes everything some twenty
times over, and takes 19 s for a megabyte instead of 1 s.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from ingest.embedding.tokenizer import open_tokenizer
from tenants.entities import EmbeddingModel
from vicinage.errors import Refused
from vicinage.records import Passage
from vicinage.settings import IngestSettings
from vicinage.texts import is_blank

SPECIAL_TOKENS: Final = 2
"""Tokens that a model's tokenizer adds around a text."""
BLOCK_CHARS: Final = 16_384
"""Longer texts are split into blocks first.

The library's time grows with the square of the length of a text without paragraphs.
"""
CHARS_PER_TOKEN_MAX: Final = 8
"""Bound on the length of a passage: a word of any length may be one (unknown) token.

It keeps a passage to a size that a person can read.
"""
BYTES_PER_TOKEN: Final = 4
Count = Callable[[Sequence[str]], list[int]]
"""Counts the tokens of each text, without special tokens; never fewer than the model counts."""


class Chunker:
    """Chunks texts for one model. Safe for many threads."""

    def __init__(self, count: Count, *, aim: int, window: int, overlap: int) -> None:
        assert 0 <= overlap < aim <= window, (overlap, aim, window)
        self._count = count
        self._aim = aim
        self._window = window
        self._overlap = overlap

    def chunk(self, text: str) -> list[Passage]:
        """Returns passages in order, each `text[start:end]`; neighbors overlap.

        A passage has about `aim` tokens and never more than the window. Every visible character
        is in a passage. A text that fits is one passage.
        """
        [n] = self._count([text])
        trimmed = _trimmed(text)
        if n <= self._aim and len(trimmed.text) <= self._aim * CHARS_PER_TOKEN_MAX:
            return [trimmed]
        return _in_order(self._chunk(text, 0, n)) or [trimmed]

    def _chunk(self, text: str, start: int, n_tokens: int) -> Iterator[Passage]:
        """Yields the passages of a text of `n_tokens` that begins at `start`.

        Splits a piece again if it has more tokens than the window.
        """
        pieces = list(self._pieces(text, n_tokens))
        for (at, piece), n in zip(pieces, self._count([p for _, p in pieces]), strict=True):
            if n <= self._window or len(piece) == 1:
                yield Passage(piece, start + at, start + at + len(piece))
            else:
                yield from self._chunk(piece, start + at, n)

    def _pieces(self, text: str, n_tokens: int) -> Iterator[tuple[int, str]]:
        density = min(CHARS_PER_TOKEN_MAX, len(text) / max(1, n_tokens))  # characters a token
        chars = max(1, min(int(self._aim * density), len(text) - 1))
        overlap = min(int(self._overlap * density), chars - 1)
        for start, block in (
            _split(text, BLOCK_CHARS, overlap) if len(text) > BLOCK_CHARS else [(0, text)]
        ):
            for at, piece in _split(block, chars, overlap):
                yield start + at, piece


def _split(text: str, chars: int, overlap: int) -> list[tuple[int, str]]:
    """Returns (position, piece) pairs of at most `chars` characters.

    Splits between sentences, else words, else characters.
    """
    from semantic_text_splitter import TextSplitter

    found: list[tuple[int, str]] = TextSplitter(chars, overlap=overlap, trim=True).chunk_indices(
        text
    )
    return found


def _in_order(passages: Iterable[Passage]) -> list[Passage]:
    """Returns passages by position, without blank ones and those within the previous passage.

    The overlap of a piece that was split again can lie within the previous passage.
    """
    kept: list[Passage] = []
    for p in sorted(passages, key=lambda p: (p.start, -p.end)):
        if (not kept or p.end > kept[-1].end) and not is_blank(p.text):
            kept.append(p)
    return kept


def _trimmed(text: str) -> Passage:
    """Returns the text without surrounding white space as one passage."""
    trimmed = text.strip() or text
    start = text.index(trimmed)
    return Passage(trimmed, start, start + len(trimmed))


def open_chunker(model: EmbeddingModel, settings: IngestSettings) -> Chunker:
    """Returns the chunker for `model`; loads its tokenizer, not the model.

    The tokenizer of a model behind a server is unknown. A text counts one token per byte then,
    because it never has more tokens than bytes. Raises Refused if the document prompt fills the
    window.
    """
    if model.kind == "local":
        count, unit = _token_count(open_tokenizer(model)), 1
    else:
        count, unit = _byte_count, BYTES_PER_TOKEN
    prompt = count([model.document_prompt])[0] if model.document_prompt else 0
    window = model.window_tokens - SPECIAL_TOKENS - prompt
    if window < 1:
        raise Refused(
            f"the document prompt of model {model.name} fills its window", field="document_prompt"
        )
    aim = min(settings.passage_tokens * unit, window)
    return Chunker(
        count, aim=aim, window=window, overlap=min(settings.passage_overlap_tokens * unit, aim // 2)
    )


def _token_count(tokenizer: Any) -> Count:
    def count(texts: Sequence[str]) -> list[int]:
        return [
            len(e.ids) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    return count


def _byte_count(texts: Sequence[str]) -> list[int]:
    return [len(t.encode()) for t in texts]
