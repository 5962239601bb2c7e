"""Packs a model's weights once into the layout that the processor's kernels read.

Otherwise oneDNN reorders the weight of each linear layer in every call; for one or two query texts
that is a third of the call. The operators here are those that torch's compiler emits when it
freezes a model; torch is pinned by the lock file.
"""

from typing import Any


def packed(model: Any) -> Any:
    """Packs the linear layers of `model` in place and returns it; for inference on the CPU only.

    The model is unchanged if torch lacks oneDNN, or if the processor lacks the instructions that
    oneDNN needs for weights of that precision.
    """
    import torch

    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not can_lay(next(model.parameters()).dtype):  # type: ignore[no-untyped-call]
        return model

    class Packed(torch.nn.Module):
        """A linear layer with a packed weight: [.., in] → [.., out]."""

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
    """Returns whether the processor has the instructions for weights of that type.

    Without them the operators raise.
    """
    import torch

    ops = torch.ops.mkldnn
    needs = {
        torch.bfloat16: ops._is_mkldnn_bf16_supported,  # noqa: SLF001
        torch.float16: ops._is_mkldnn_fp16_supported,  # noqa: SLF001
    }
    return bool(needs[dtype]()) if dtype in needs else True
