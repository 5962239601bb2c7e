"""A sentence-transformers model of any family in torch, on a CPU or a GPU.

On a CPU, a BERT encoder runs in a faster form (bert.py). A form depends on details of torch and
transformers. So it is compared with the library's model when it is loaded, and the library's model
runs if it fails or differs.
"""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from ingest.embedding.bert import Encoder, is_bert
from ingest.embedding.packed import has_instructions
from ingest.embedding.runtime import Ids
from vicinage.records import Floats
from vicinage.telemetry import events

PAD_SHARE: Final = 1.25
"""A call is split if padding makes it larger by more than this factor.

For models that compute padding like tokens.
"""
PAD_SHARE_ATTENTION: Final = 2.0
"""PAD_SHARE for models in which only attention computes padding (bert.py)."""
CHECK_TEXT: Final = "The boundary layer on a flat plate becomes turbulent."
"""Two rows of a batch check a form of a model: this text, and its first half with padding."""
CHECK_COSINE: Final = {"float32": 0.9999}
CHECK_COSINE_16: Final = 0.99
"""Least cosine of a form's vectors to those of the library's model in the same precision."""

_event = events("embedder")


class TorchModel:
    """See `runtime.Model`. `forward` takes and returns what a SentenceTransformer does."""

    def __init__(self, forward: Any, device: str = "cpu") -> None:
        self._forward = forward
        self._device = device
        self.pad_share = PAD_SHARE_ATTENTION if isinstance(forward, Encoder) else PAD_SHARE

    def __call__(self, ids: Ids, mask: Ids, threads: int) -> Floats:
        """See `runtime.Model`."""
        import torch

        torch.set_num_threads(threads)
        features = {
            "input_ids": self._sent(torch.from_numpy(ids)),
            "attention_mask": self._sent(torch.from_numpy(mask)),
        }
        with torch.inference_mode():
            vectors: Floats = self._forward(features)["sentence_embedding"].float().cpu().numpy()
        return vectors

    def _sent(self, tensor: Any) -> Any:
        """Returns the tensor on the model's device.

        Copies to a GPU from pinned memory, so that the copy does not block.
        """
        return (
            tensor
            if self._device == "cpu"
            else tensor.pin_memory().to(self._device, non_blocking=True)
        )


class TorchRuntime:
    """See `runtime.Runtime`."""

    name = "torch"

    def __init__(self, root: Path, device: str) -> None:
        self._device = device
        self._loaded = load(root, device)
        self._models: dict[str, TorchModel] = {}
        self.dimension: int = self._loaded.get_embedding_dimension()

    def precisions(self) -> tuple[str, ...]:
        """Returns the precisions to try.

        Leaves out bfloat16 on a processor that only emulates it, to save the seconds of its trials.
        """
        import torch

        if self._device != "cpu":
            return ("float32", "float16")
        return ("float32", "bfloat16") if has_instructions(torch.bfloat16) else ("float32",)

    def at(self, precision: str, threads: int) -> TorchModel:  # noqa: ARG002  (set at each call)
        """Returns a copy in the form that the device runs fastest.

        A copy, because rounding of the weights cannot be reversed.
        """
        if precision not in self._models:
            self._models[precision] = TorchModel(self._fastest(precision), self._device)
        return self._models[precision]

    def _fastest(self, precision: str) -> Any:
        """Returns the first form with the vectors of the library's model, else that model."""
        if self._device == "cpu":
            for name, build in self._forms(precision):
                try:
                    form = build()
                    self._check(form, precision)
                except Exception as error:  # noqa: BLE001  (private operators can fail in any way)
                    reason = f"{type(error).__name__}: {error}"[:500]
                    _event.warning(
                        "model_form.rejected", form=name, precision=precision, reason=reason
                    )
                else:
                    return form
        return self._plain(precision)

    def _forms(self, precision: str) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yields the names and the constructors of the faster forms, the fastest first."""
        if is_bert(self._loaded):
            yield "packed encoder", lambda: Encoder(self._loaded, precision)
            yield "encoder", lambda: Encoder(self._loaded, precision, packed=False)

    def _plain(self, precision: str) -> Any:
        import torch

        return copy.deepcopy(self._loaded).to(getattr(torch, precision))

    def _check(self, form: Any, precision: str) -> None:
        """Raises ValueError if the form's vectors differ from those of the library's model."""
        ids = np.asarray(self._loaded.tokenizer(CHECK_TEXT)["input_ids"], np.int64)
        batch, mask = np.stack([ids, ids]), np.ones((2, len(ids)), np.int64)
        batch[1, len(ids) // 2 :] = mask[1, len(ids) // 2 :] = 0
        wanted, found = (
            TorchModel(model)(batch, mask, 1) for model in (self._plain(precision), form)
        )
        lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
        cosine = float((np.einsum("ij,ij->i", wanted, found) / lengths).min())
        floor = CHECK_COSINE.get(precision, CHECK_COSINE_16)
        if not cosine >= floor:  # also for NaN
            raise ValueError(f"cosine {cosine:.5f} to the library's model, below {floor}")


def load(root: Path, device: str) -> Any:
    """Returns the SentenceTransformer in `root`; never accesses the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Spins of an OpenMP thread before it sleeps; read when torch is first imported. On two busy
    # cores, a call of 32 query texts takes 948 ms with the default (300,000) and 78 ms with this
    # value. On idle cores, sleeping at once costs half of the second thread's gain: 1,006 texts/s
    # instead of 1,110.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # stderr carries events
    return SentenceTransformer(str(root), device=device).eval()
