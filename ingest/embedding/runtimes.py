"""Selects the runtime of a local model: torch or ONNX Runtime.

ONNX Runtime is smaller by gigabytes; it runs BERT encoders on a CPU.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ingest.embedding.files import check_model_files, read_model_files
from ingest.embedding.runtime import Runtime
from ingest.embedding.tokenizer import model_root
from tenants.entities import EmbeddingModel
from vicinage.errors import Refused

Name = Literal["auto", "torch", "onnx"]


def open_runtime(entry: EmbeddingModel, *, device: str, name: Name) -> Runtime:
    """Returns the model from local files, never from the network, in the runtime `name`.

    `auto` is torch if it is installed, because its batches are faster
    (docs/decisions/036-packaging.md). Raises Refused if the files contradict the registry, or if no
    installed runtime runs the model.
    """
    root = model_root(entry)
    check_model_files(entry, read_model_files(root))
    runtime = _open(root, device, chosen(name, device))
    if runtime.dimension != entry.dimension:
        raise Refused(
            f"model {entry.name} has dimension {runtime.dimension}; "
            f"the registry has {entry.dimension}",
            field="model",
        )
    return runtime


def chosen(name: Name, device: str) -> Name:
    """Returns the runtime that `name` selects on this machine. Raises Refused if it is missing."""
    if name == "auto":
        name = "torch" if device != "cpu" or has_torch() else "onnx"
    if name == "onnx" and not (find_spec("onnx") and find_spec("onnxruntime")):
        raise Refused(
            "no runtime for local models is installed: "
            "install vicinage with the extra `cpu` or `torch`"
        )
    if name == "torch" and not has_torch():
        raise Refused(
            f"a local model on {device} needs torch: install vicinage with the extra `torch`"
        )
    return name


def has_torch() -> bool:
    """Returns whether torch and sentence-transformers are installed. Imports neither."""
    return find_spec("torch") is not None and find_spec("sentence_transformers") is not None


def _open(root: Path, device: str, name: Name) -> Runtime:
    if name == "torch":
        from ingest.embedding.torch_runtime import TorchRuntime

        return TorchRuntime(root, device)
    from ingest.embedding.onnx_runtime import OnnxRuntime

    return OnnxRuntime(root)
