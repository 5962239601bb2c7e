"""A model's weights in the order in which the processor's kernels read them, laid once instead of in every call.

oneDNN reorders the weight of each linear layer whenever it is called; for a question or two that is a third of the call.
These are the operators that torch's own compiler emits when it freezes a model; torch is pinned by the lock file.
"""

from typing import Any


def packed(model: Any) -> Any:
    """`model` with its linear layers packed, in place: for inference on the CPU only.

    Unchanged where torch lacks oneDNN, or the processor what oneDNN needs for weights of that precision.
    """
    import torch

    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not can_lay(next(model.parameters()).dtype):  # type: ignore[no-untyped-call]
        return model

    class Packed(torch.nn.Module):
        """Linear, its weight packed: [.., in] → [.., out]."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self._weight = ops._reorder_linear_weight(linear.weight.detach(), None)  # noqa: SLF001
            self._bias = None if linear.bias is None else linear.bias.detach()

        def forward(self, x: torch.Tensor) -> Any:
            return ops._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # noqa: SLF001

    with torch.inference_mode():
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is torch.nn.Linear:
                    setattr(module, name, Packed(child))
    return model


def can_lay(dtype: Any) -> bool:
    """Whether this processor has the instructions for weights of that type; without them the operators raise."""
    import torch

    ops = torch.ops.mkldnn
    needs = {torch.bfloat16: ops._is_mkldnn_bf16_supported, torch.float16: ops._is_mkldnn_fp16_supported}  # noqa: SLF001
    return bool(needs[dtype]()) if dtype in needs else True
