"""Linear layers with weights in the layout that the processor's kernels read.

Other layers reorder their weights in every call. This module is the only one that uses the private
operators of oneDNN in torch, which torch's compiler emits when it freezes a model. A release of
torch may change or remove them. So `torch_runtime.py` compares the encoder with the library's model
when it loads it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Linear = Callable[["Tensor"], "Tensor"]
"""A linear layer: [.., in] → [.., out]."""


def can_pack(dtype: Any) -> bool:
    """Returns whether torch has oneDNN and the processor has the instructions for `dtype`."""
    import torch

    return bool(torch.backends.mkldnn.is_available()) and has_instructions(dtype)  # type: ignore[no-untyped-call]


def has_instructions(dtype: Any) -> bool:
    """Returns whether the processor has the instructions for products of that type.

    oneDNN's operators raise without them. Returns True if torch does not state it.
    """
    import torch

    queries = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    query = getattr(torch.ops.mkldnn, queries.get(dtype, ""), None)
    return bool(query()) if query is not None else True


def packed_linear(weight: "Tensor", bias: "Tensor | None", *, gelu: bool = False) -> Linear:
    """Returns a linear layer with a packed weight, followed by GELU with `gelu`."""
    import torch

    ops = torch.ops.mkldnn
    reordered = ops._reorder_linear_weight(weight, None)  # noqa: SLF001
    operation, algorithm = ("gelu", "none") if gelu else ("none", "")
    return lambda x: ops._linear_pointwise(x, reordered, bias, operation, [], algorithm)  # noqa: SLF001


def plain_linear(weight: "Tensor", bias: "Tensor | None", *, gelu: bool = False) -> Linear:
    """Returns the same layer in torch's public functions."""
    from torch.nn import functional

    if gelu:
        return lambda x: functional.gelu(functional.linear(x, weight, bias))
    return lambda x: functional.linear(x, weight, bias)
