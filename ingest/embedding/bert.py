"""Runs a BERT encoder in few calls of the processor's kernels, with little Python between them.

For one or two query texts, half of a call of the library's model is spent between the products.
Here query, key and value are one product, and GELU is part of the product before it. Models of
other families run as they are. CPU only.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ingest.embedding.packed import Linear, can_pack, packed_linear, plain_linear

if TYPE_CHECKING:
    from torch import Tensor


def is_bert(model: Any) -> bool:
    """Returns whether `Encoder` can run this model: a plain BERT with mean pooling.

    `model` is a SentenceTransformer; a Normalize module may follow the pooling.
    """
    from transformers import BertModel

    first, *rest = model
    bert = getattr(first, "auto_model", None) or getattr(first, "model", None)
    kinds = [type(module).__name__ for module in rest]
    return (
        type(bert) is BertModel
        and bert.config.hidden_act == "gelu"
        and getattr(bert.config, "position_embedding_type", "absolute") == "absolute"
        and kinds in (["Pooling"], ["Pooling", "Normalize"])
        and rest[0].get_config_dict().get("pooling_mode") == "mean"
    )


class Encoder:
    """`model` (see `is_bert`) at a precision: float32, bfloat16 or float16.

    `packed`: its weights are packed, if the processor can use such weights in that precision.
    """

    def __init__(self, model: Any, precision: str, *, packed: bool = True) -> None:
        import torch

        bert = getattr(model[0], "auto_model", None) or model[0].model
        dtype = getattr(torch, precision)
        linear = packed_linear if packed and can_pack(dtype) else plain_linear
        table = bert.embeddings
        heads: int = bert.config.num_attention_heads
        with torch.inference_mode():
            self._words = table.word_embeddings.weight.to(dtype)
            self._positions = (
                table.position_embeddings.weight + table.token_type_embeddings.weight[0]
            ).to(dtype)
            self._norm = _norm(table.LayerNorm, dtype)
            self._layers = [_layer(each, dtype, heads, linear) for each in bert.encoder.layer]

    def __call__(self, features: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """Returns `sentence_embedding` [n, d] for `input_ids` and `attention_mask` [n, tokens].

        Rows are padded on the right.
        """
        import torch

        mask = features["attention_mask"]
        share = mask / mask.sum(1, keepdim=True)
        return {
            "sentence_embedding": torch.einsum("nt,ntd->nd", share, self.states(features).float())
        }

    def states(self, features: dict[str, "Tensor"]) -> "Tensor":
        """Returns the last layer's state of each token, [n, tokens, d]; zero for padding."""
        import torch

        mask = features["attention_mask"]
        rows = _Rows(mask, self._words.dtype)
        positions = torch.arange(mask.shape[1]).expand(mask.shape)
        words = torch.nn.functional.embedding(rows.packed(features["input_ids"]), self._words)
        x = self._norm(
            words + torch.nn.functional.embedding(rows.packed(positions), self._positions)
        )
        for layer in self._layers:
            x = layer(x, rows)
        return rows.padded(x)


class _Rows:
    """Positions of tokens in a padded batch.

    Products use tokens alone, [tokens, ..]; attention uses [n, longest, ..].
    """

    def __init__(self, mask: "Tensor", dtype: Any) -> None:
        import torch

        self.shape = mask.shape
        full = bool(mask.all())
        self._at = None if full else mask.flatten().nonzero().squeeze(1)
        lowest = torch.zeros(mask.shape, dtype=dtype).masked_fill_(mask == 0, float("-inf"))
        self.hidden = None if full else lowest[:, None, None, :]
        """Added to the scores of attention: -inf for padding. None if the batch has no padding."""

    def packed(self, x: "Tensor") -> "Tensor":
        """Removes padding: [n, longest, ..] → [tokens, ..]."""
        flat = x.flatten(0, 1)
        return flat if self._at is None else flat.index_select(0, self._at)

    def padded(self, x: "Tensor") -> "Tensor":
        """Restores padding, as zeros: [tokens, d] → [n, longest, d]."""
        if self._at is not None:
            x = x.new_zeros(self.shape.numel(), x.shape[1]).index_copy_(0, self._at, x)
        return x.view(*self.shape, -1)


def _layer(
    layer: Any, dtype: Any, heads: int, linear: Callable[..., Linear]
) -> Callable[["Tensor", _Rows], "Tensor"]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    def dense(*modules: Any, gelu: bool = False) -> Linear:
        """Returns the product with the weights of all `modules`, side by side."""
        weight = torch.cat([m.weight for m in modules]).to(dtype)
        bias = torch.cat([m.bias for m in modules]).to(dtype)
        return linear(weight, bias, gelu=gelu)

    own, after = layer.attention.self, layer.attention.output
    attend = dense(own.query, own.key, own.value)
    mix = dense(after.dense)
    widen = dense(layer.intermediate.dense, gelu=True)
    narrow = dense(layer.output.dense)
    norm_attended, norm_out = _norm(after.LayerNorm, dtype), _norm(layer.output.LayerNorm, dtype)

    def run(x: "Tensor", rows: _Rows) -> "Tensor":
        parts = rows.padded(attend(x)).view(*rows.shape, 3, heads, x.shape[1] // heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=rows.hidden)
        x = norm_attended(mix(rows.packed(attended.transpose(1, 2).flatten(2))) + x)
        return norm_out(narrow(widen(x)) + x)

    return run


def _norm(norm: Any, dtype: Any) -> Callable[["Tensor"], "Tensor"]:
    import torch

    weight, bias = norm.weight.to(dtype), norm.bias.to(dtype)
    return lambda x: torch.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
