"""A BERT encoder in ONNX Runtime, on the CPU and in float32.

The extra `cpu` installs this runtime, without torch.
"""

from pathlib import Path
from typing import Any, Final

from ingest.embedding.onnx_bert import INPUTS, check_bert, serialized
from ingest.embedding.runtime import Ids
from vicinage.errors import Refused
from vicinage.records import Floats

PRECISION: Final = "float32"
PAD_SHARE: Final = 1.25
"""A call is split if padding makes it larger by more than this factor: padding is computed."""


class OnnxModel:
    """See `runtime.Model`.

    A session has a fixed number of threads: one session is for small calls, another for the rest.
    """

    pad_share = PAD_SHARE

    def __init__(self, graph: bytes, threads: int) -> None:
        self._sessions = {n: _session(graph, n) for n in sorted({1, threads})}

    def __call__(self, ids: Ids, mask: Ids, threads: int) -> Floats:
        """See `runtime.Model`."""
        session = self._sessions[1 if threads == 1 else max(self._sessions)]
        vectors: Floats = session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))[0]
        return vectors


class OnnxRuntime:
    """See `runtime.Runtime`."""

    name = "onnx"

    def __init__(self, root: Path) -> None:
        self.dimension: int = check_bert(root)["hidden_size"]
        self._graph = serialized(root)

    def precisions(self) -> tuple[str, ...]:
        """See `runtime.Runtime`."""
        return (PRECISION,)

    def at(self, precision: str, threads: int) -> OnnxModel:
        """See `runtime.Runtime`."""
        if precision != PRECISION:
            raise Refused(
                f"ONNX Runtime computes in {PRECISION} here, not in {precision}", field="precision"
            )
        return OnnxModel(self._graph, threads)


def _session(graph: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # other roles need the cores
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
