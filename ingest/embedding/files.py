"""Reads the facts of a sentence-transformers model from its JSON files. Loads no weights.

Sources: sentence-transformers 5 (`modules.json`, `sentence_bert_config.json`,
`config_sentence_transformers.json`, `1_Pooling/config.json`) and transformers (`config.json`,
`tokenizer_config.json`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from tenants.entities import EmbeddingModel
from vicinage.errors import Refused

QUERY_PROMPTS: Final = ("query",)
DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")
"""Prompt names that `encode_query` and `encode_document` of sentence-transformers try, in order."""
PADDED_POSITIONS: Final = frozenset(
    {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl"}
)
"""Architectures whose position embeddings begin after the padding index.

They have two positions fewer than `max_position_embeddings`.
"""
UNBOUNDED: Final = 1_000_000
"""From this on, a `model_max_length` is the library's placeholder for an unknown length."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Facts of a model folder; None if the files do not state them.

    `positions`: the longest input, special tokens included, that the network can compute.
    `window_tokens`: the longest input that the model is intended for (`max_seq_length`), never more
    than `positions`.
    """

    dimension: int | None
    positions: int | None
    window_tokens: int | None
    normalized: bool
    query_prompt: str
    document_prompt: str
    prompt_excluded: bool
    """The pooling leaves the prompt's tokens out of the vector, which the embedder cannot do."""


def read_model_files(folder: Path) -> ModelFiles:
    """Returns the facts in the files of `folder`. Raises Refused for a file that is not JSON."""
    modules = _modules(folder)
    transformer = _transformer_folder(folder, modules)
    config = _json(transformer / "config.json")
    pooling = _pooling(folder, modules)
    positions = _positions(config, _json(transformer / "tokenizer_config.json"))
    intended = _whole(_json(transformer / "sentence_bert_config.json").get("max_seq_length"))
    prompts = _json(folder / "config_sentence_transformers.json")
    return ModelFiles(
        dimension=_dimension(folder, modules, pooling, config),
        positions=positions,
        window_tokens=min((n for n in (intended, positions) if n is not None), default=None),
        normalized=any(str(m.get("type", "")).endswith("Normalize") for m in modules),
        query_prompt=_prompt(prompts, QUERY_PROMPTS),
        document_prompt=_prompt(prompts, DOCUMENT_PROMPTS),
        prompt_excluded=pooling.get("include_prompt") is False,
    )


def check_model_files(model: EmbeddingModel, files: ModelFiles) -> None:
    """Raises Refused if the registry's entry contradicts the model's files."""
    if files.dimension not in (None, model.dimension):
        raise Refused(
            f"model {model.name} has dimension {files.dimension}, not {model.dimension}",
            field="dimension",
            limit=files.dimension,
        )
    if files.positions is not None and model.window_tokens > files.positions:
        raise Refused(
            f"model {model.name} computes at most {files.positions} tokens, special ones included; "
            f"window_tokens is {model.window_tokens}",
            field="window_tokens",
            limit=files.positions,
        )
    if files.prompt_excluded and (model.query_prompt or model.document_prompt):
        raise Refused(
            f"model {model.name} leaves its prompt out of the pooling (include_prompt: false), "
            "which is not supported",
            field="location",
        )


def _modules(folder: Path) -> list[Mapping[str, Any]]:
    found = _load(folder / "modules.json")
    return [m for m in found if isinstance(m, dict)] if isinstance(found, list) else []


def _transformer_folder(folder: Path, modules: list[Mapping[str, Any]]) -> Path:
    paths = [
        str(m.get("path", "")) for m in modules if str(m.get("type", "")).endswith("Transformer")
    ]
    return folder / paths[0] if paths and paths[0] else folder


def _pooling(folder: Path, modules: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    paths = [str(m.get("path", "")) for m in modules if str(m.get("type", "")).endswith("Pooling")]
    return _json(folder / paths[0] / "config.json") if paths and paths[0] else {}


def _dimension(
    folder: Path,
    modules: list[Mapping[str, Any]],
    pooling: Mapping[str, Any],
    config: Mapping[str, Any],
) -> int | None:
    """Returns the last dense layer's dimension, else the pooling's, else the network's width."""
    dense = [str(m.get("path", "")) for m in modules if str(m.get("type", "")).endswith("Dense")]
    if dense:
        return _whole(_json(folder / dense[-1] / "config.json").get("out_features"))
    if any(value is True for key, value in pooling.items() if key.startswith("pooling_mode_")):
        modes = sum(
            value is True for key, value in pooling.items() if key.startswith("pooling_mode_")
        )
        width = _whole(pooling.get("word_embedding_dimension"))
        return width * modes if width is not None else None
    return _whole(config.get("hidden_size"))


def _positions(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int | None:
    most = _whole(config.get("max_position_embeddings"))
    if most is not None and config.get("model_type") in PADDED_POSITIONS:
        most -= 2
    stated = _whole(tokenizer.get("model_max_length"))
    known = [n for n in (most, stated) if n is not None and n < UNBOUNDED]
    return min(known, default=None)


def _prompt(config: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Returns the prompt of the first of `names` that exists, else the default prompt, else ''."""
    prompts = config.get("prompts")
    if not isinstance(prompts, dict):
        return ""
    chosen = next((name for name in names if name in prompts), config.get("default_prompt_name"))
    found = prompts.get(chosen)
    return found if isinstance(found, str) else ""


def _whole(value: object) -> int | None:
    return (
        int(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1
        else None
    )


def _json(path: Path) -> Mapping[str, Any]:
    found = _load(path)
    return found if isinstance(found, dict) else {}


def _load(path: Path) -> object:
    try:
        return orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise Refused(
            f"{path.name} of the model cannot be read: {str(error)[:200]}", field="location"
        ) from None
