"""Documents to passages: a splitter library cuts at the best boundary that the model's window allows.

Nothing is truncated, ever: a text longer than the window becomes several passages, with their places kept.
"""

from pathlib import Path
from typing import Any

from tenants.entities import EmbeddingModel
from vicinage.errors import Refused
from vicinage.records import Passage
from vicinage.settings import IngestSettings

SPECIAL_TOKENS = 2
"""What a model's own tokenizer adds around a text."""


class Cutter:
    """Cuts for one model. Safe for many threads."""

    def __init__(self, tokenizer: Any, *, tokens: int, overlap: int) -> None:
        from semantic_text_splitter import TextSplitter

        self._splitter = TextSplitter.from_huggingface_tokenizer(tokenizer, tokens, overlap=overlap, trim=True)

    def cut(self, text: str) -> list[Passage]:
        """Passages in order, `text[start:end]` each, at most the window long, neighbours overlapping."""
        return [Passage(piece, start, start + len(piece)) for start, piece in self._splitter.chunk_indices(text)]


def open_cutter(model: EmbeddingModel, settings: IngestSettings) -> Cutter:
    """The cutter for `model`; loads its tokenizer, not the model."""
    tokens = min(settings.passage_tokens, model.window_tokens - SPECIAL_TOKENS)
    overlap = min(settings.passage_overlap_tokens, tokens // 2)
    return Cutter(open_tokenizer(model), tokens=tokens, overlap=overlap)


def open_tokenizer(model: EmbeddingModel) -> Any:
    """The model's `tokenizers.Tokenizer`, neither truncating nor padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def model_folder(model: EmbeddingModel) -> Path:
    """Where a model's files lie: inside an installed package (`package:<module>`) or at a path. Raises Refused."""
    if not model.location.startswith("package:"):
        folder = Path(model.location)
    else:
        from importlib.util import find_spec

        name = model.location.removeprefix("package:")
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise Refused(f"model {model.name}: the package {name} is not installed (extra `embed`)", field="model")
        folder = Path(spec.origin).parent / "model"
    found = next(iter(sorted(folder.rglob("tokenizer.json"))), None) if folder.is_dir() else None
    if found is None:
        raise Refused(f"model {model.name}: no tokenizer.json under {folder}", field="model")
    return found.parent
