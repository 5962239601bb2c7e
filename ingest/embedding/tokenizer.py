"""Locates a model's files, and opens its tokenizer."""

from pathlib import Path
from typing import Any, Final

from tenants.entities import DEFAULT_MODEL, EmbeddingModel
from vicinage.errors import Refused

IN_THE_WHEEL: Final = Path(__file__).parent / "default_model"
"""The folder of the default model in a wheel built by `make dist` (hatch_build.py)."""


def open_tokenizer(model: EmbeddingModel) -> Any:
    """Returns the model's `tokenizers.Tokenizer`, without truncation or padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def model_folder(model: EmbeddingModel) -> Path:
    """Returns the folder of a model's tokenizer. Raises Refused.

    The location is an installed package (`package:<module>`) or a path.
    """
    if not model.location.startswith("package:"):
        folder = Path(model.location)
    else:
        from importlib.util import find_spec

        name = model.location.removeprefix("package:")
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent / "model"
        elif model.location == DEFAULT_MODEL.location and IN_THE_WHEEL.is_dir():
            folder = IN_THE_WHEEL
        else:
            raise Refused(
                f"model {model.name}: the package {name} is not installed (extra `torch`)",
                field="model",
            )
    found = next(iter(sorted(folder.rglob("tokenizer.json"))), None) if folder.is_dir() else None
    if found is None:
        raise Refused(f"model {model.name}: no tokenizer.json under {folder}", field="model")
    return found.parent


def model_root(model: EmbeddingModel) -> Path:
    """Returns the folder of a model's `modules.json`: its tokenizer's folder or the parent.

    Raises Refused.
    """
    folder = model_folder(model)
    above = folder.parent
    return (
        above
        if not (folder / "modules.json").exists() and (above / "modules.json").exists()
        else folder
    )
