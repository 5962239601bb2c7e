"""Documents to passages: a splitter library cuts at the best boundary that the model's window allows.

Nothing is truncated, ever: a text longer than the window becomes several passages, with their places kept. The library cuts by
characters, as many as the text's own density of tokens makes worth a passage, and every piece is then counted in tokens;
cutting by tokens directly tokenises everything some twenty times over, and took 19 s for a megabyte where this takes one.
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
"""What a model's own tokenizer adds around a text."""
BLOCK_CHARS: Final = 16_384
"""The library's time grows with the square of a text without paragraphs: longer texts are first cut into blocks."""
CHARS_PER_TOKEN_MAX: Final = 8
"""A word of any length may be one (unknown) token; a passage stays of a size that a person can read."""
BYTES_PER_TOKEN: Final = 4
Count = Callable[[Sequence[str]], list[int]]
"""Tokens of each text, special ones not counted; never fewer than the model will find."""


class Chunker:
    """Cuts for one model. Safe for many threads."""

    def __init__(self, count: Count, *, aim: int, window: int, overlap: int) -> None:
        assert 0 <= overlap < aim <= window, (overlap, aim, window)
        self._count = count
        self._aim = aim
        self._window = window
        self._overlap = overlap

    def chunk(self, text: str) -> list[Passage]:
        """Passages in order, `text[start:end]` each: about `aim` tokens, never over the window, neighbours overlapping.

        Every character that can be read is in one. A text that fits is one passage.
        """
        [n] = self._count([text])
        whole = _trimmed(text)
        if n <= self._aim and len(whole.text) <= self._aim * CHARS_PER_TOKEN_MAX:
            return [whole]
        return _in_order(self._chunk(text, 0, n)) or [whole]

    def _chunk(self, text: str, start: int, n_tokens: int) -> Iterator[Passage]:
        """The passages of a text of `n_tokens` that stands at `start`; a piece that is denser than the rest is cut again."""
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
        for start, block in _split(text, BLOCK_CHARS, overlap) if len(text) > BLOCK_CHARS else [(0, text)]:
            for at, piece in _split(block, chars, overlap):
                yield start + at, piece


def _split(text: str, chars: int, overlap: int) -> list[tuple[int, str]]:
    """(place, piece) of at most `chars` characters, cut between sentences, words or characters, as high as possible."""
    from semantic_text_splitter import TextSplitter

    found: list[tuple[int, str]] = TextSplitter(chars, overlap=overlap, trim=True).chunk_indices(text)
    return found


def _in_order(passages: Iterable[Passage]) -> list[Passage]:
    """Returns passages by place, without blank ones and those that lie wholly within the one before.

    An overlap of a piece that was cut again may do so.
    """
    kept: list[Passage] = []
    for p in sorted(passages, key=lambda p: (p.start, -p.end)):
        if (not kept or p.end > kept[-1].end) and not is_blank(p.text):
            kept.append(p)
    return kept


def _trimmed(text: str) -> Passage:
    """The whole text but the white space around it."""
    trimmed = text.strip() or text
    start = text.index(trimmed)
    return Passage(trimmed, start, start + len(trimmed))


def open_chunker(model: EmbeddingModel, settings: IngestSettings) -> Chunker:
    """The chunker for `model`; loads its tokenizer, not the model.

    Of a model behind a server only the window is known: its tokens are taken to be bytes, which they never outnumber.
    """
    if model.kind == "local":
        count, unit = _token_count(open_tokenizer(model)), 1
    else:
        count, unit = _byte_count, BYTES_PER_TOKEN
    prompt = count([model.document_prompt])[0] if model.document_prompt else 0
    window = model.window_tokens - SPECIAL_TOKENS - prompt
    if window < 1:
        raise Refused(f"the document prompt of model {model.name} fills its window", field="document_prompt")
    aim = min(settings.passage_tokens * unit, window)
    return Chunker(count, aim=aim, window=window, overlap=min(settings.passage_overlap_tokens * unit, aim // 2))


def _token_count(tokenizer: Any) -> Count:
    def count(texts: Sequence[str]) -> list[int]:
        return [len(e.ids) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return count


def _byte_count(texts: Sequence[str]) -> list[int]:
    return [len(t.encode()) for t in texts]
