"""ONNX Runtime gives torch's vectors, refuses unsupported models, and is used without torch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.embedding.onnx_bert import check_bert
from ingest.embedding.onnx_runtime import OnnxRuntime
from ingest.embedding.runtime import Ids
from ingest.embedding.runtimes import chosen, open_runtime
from ingest.embedding.tokenizer import model_root, open_tokenizer
from ingest.embedding.torch_runtime import TorchRuntime
from tenants.entities import DEFAULT_MODEL
from vicinage.errors import Refused

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("model"), pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[3]
TEXTS = [
    "x",
    "red apples",
    "the boundary layer on a flat plate",
    "median of a list of numbers " * 30,
]


def padded(texts: list[str]) -> tuple[Ids, Ids]:
    rows = [e.ids for e in open_tokenizer(DEFAULT_MODEL).encode_batch_fast(texts)]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def test_its_vectors_are_torchs_for_any_batch_and_threads() -> None:
    root = model_root(DEFAULT_MODEL)
    torch, onnx = TorchRuntime(root, "cpu").at("float32", 2), OnnxRuntime(root).at("float32", 2)
    for texts in ([TEXTS[2]], [TEXTS[2]] * 3, TEXTS, TEXTS * 4):
        ids, mask = padded(texts)
        want = torch(ids, mask, 1)
        for threads in (1, 2):
            np.testing.assert_allclose(onnx(ids, mask, threads), want, atol=1e-5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a copy of the default model's files, with linked weights."""
    source, made = model_root(DEFAULT_MODEL), tmp_path / "model"
    shutil.copytree(source, made, ignore=shutil.ignore_patterns("*.safetensors"))
    (made / "model.safetensors").symlink_to(source / "model.safetensors")
    return made


def changed(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def other_activation(folder: Path) -> None:
    changed(folder / "config.json", hidden_act="relu")


def another_family(folder: Path) -> None:
    changed(folder / "config.json", model_type="distilbert")


def first_token_counts(folder: Path) -> None:
    changed(
        folder / "1_Pooling" / "config.json",
        pooling_mode_mean_tokens=False,
        pooling_mode_cls_token=True,
    )


def another_layer_on_top(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(
        json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}])
    )


def broken_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"no weights")


def more_layers_than_weights(folder: Path) -> None:
    changed(folder / "config.json", num_hidden_layers=7)


@pytest.mark.parametrize(
    "change", [other_activation, another_family, first_token_counts, another_layer_on_top]
)
def test_an_unsupported_model_is_refused_with_what_to_install(
    folder: Path, change: Callable[[Path], None]
) -> None:
    check_bert(folder)
    change(folder)
    with pytest.raises(Refused, match="extra `torch`"):
        OnnxRuntime(folder)


@pytest.mark.parametrize("change", [broken_weights, more_layers_than_weights])
def test_missing_weights_are_reported(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    with pytest.raises(Refused, match="the model's weights"):
        OnnxRuntime(folder)


def test_only_float32_is_computed() -> None:
    with pytest.raises(Refused, match="float32"):
        open_runtime(DEFAULT_MODEL, device="cpu", name="onnx").at("bfloat16", 1)


def test_torch_is_used_if_it_is_installed() -> None:
    assert (chosen("auto", "cpu"), chosen("onnx", "cpu"), chosen("auto", "cuda:0")) == (
        "torch",
        "onnx",
        "torch",
    )


def test_onnx_runtime_imports_no_torch() -> None:
    """A process that embeds by ONNX Runtime never loads torch, though it is installed here."""
    code = (
        "import sys; from ingest.embedding.local import LocalEmbedder\n"
        "from tenants.entities import DEFAULT_MODEL\n"
        "from vicinage.settings import EmbedderSettings\n"
        "from vicinage.tenant_context import TenantContext\n"
        "model = LocalEmbedder(DEFAULT_MODEL, EmbedderSettings(runtime='onnx', threads=1))\n"
        "print(model.embed(['red apples'], tenant=TenantContext('t')).shape); model.close()\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["(1, 384)"]), (
        done.stderr
    )
