"""Builds a BERT encoder as an ONNX graph from a sentence-transformers folder.

The graph uses ONNX Runtime's own operators where one replaces several of ONNX. They are attention
over query, key and value as one product, a sum with its layer normalization, and GELU with bias
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from vicinage.errors import Refused
from vicinage.records import Floats

OPSET: Final = 17
IR: Final = 9
CONTRIB: Final = "com.microsoft"
INPUTS: Final = ("input_ids", "attention_mask")
OUTPUT: Final = "sentence_embedding"


def check_bert(root: Path) -> Mapping[str, Any]:
    """Returns the configuration of a plain BERT encoder with mean pooling.

    Raises Refused for another model.
    """
    config = _json(root / "config.json")
    modules = _json(root / "modules.json")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _unsupported(f"its modules are {', '.join(kinds)}")
    if modules[0].get("path"):
        raise _unsupported("its encoder is in a subfolder")
    if config.get("model_type") != "bert":
        raise _unsupported(f"its architecture is {config.get('model_type')}")
    if (
        config.get("hidden_act") != "gelu"
        or config.get("position_embedding_type", "absolute") != "absolute"
    ):
        raise _unsupported("its activation or its position embeddings are not BERT's own")
    pooling = _json(root / str(modules[1].get("path", "")) / "config.json")
    modes = {
        name
        for name, value in pooling.items()
        if name.startswith("pooling_mode_") and value is True
    }
    if modes != {"pooling_mode_mean_tokens"} and pooling.get("pooling_mode") != "mean":
        raise _unsupported("its pooling is not the mean of the tokens")
    return config  # type: ignore[no-any-return]


def _unsupported(why: str) -> Refused:
    return Refused(
        f"ONNX Runtime runs plain BERT encoders here, and {why}: "
        "install vicinage with the extra `torch`"
    )


def _json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise Refused(
            f"{path.name} of the model cannot be read: {str(error)[:200]}", field="location"
        ) from None


def serialized(root: Path) -> bytes:
    """Returns the graph with its weights, serialized. Raises Refused.

    It maps INPUTS, int64 [n, tokens], to OUTPUT, float32 [n, d].
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    config = check_bert(root)
    try:
        loaded = load_file(root / "model.safetensors")
    except (
        OSError,
        SafetensorError,
        KeyError,
        TypeError,
    ) as error:  # the latter two: a type that numpy lacks
        raise Refused(
            f"the model's weights cannot be read: {str(error)[:200]}", field="location"
        ) from None
    weights = {
        name.removeprefix("bert."): value.astype(np.float32, copy=False)
        for name, value in loaded.items()
    }
    try:
        return _Graph(config, weights).serialized()
    except KeyError as error:
        raise Refused(f"the model's weights lack {error}", field="location") from None


class _Graph:
    """A graph under construction: its nodes and constants."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Floats]) -> None:
        self._weights = weights
        self._width: int = config["hidden_size"]
        self._heads: int = config["num_attention_heads"]
        self._layers: int = config["num_hidden_layers"]
        self._eps: float = config["layer_norm_eps"]
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def serialized(self) -> bytes:
        from onnx import TensorProto, helper

        x = self._embedded()
        lengths = self._node(
            "ReduceSum", [self._cast(TensorProto.INT32), self._constant(np.array([1]))], keepdims=0
        )
        for number in range(self._layers):
            x = self._layer(x, lengths, f"encoder.layer.{number}.")
        self._mean(x, self._cast(TensorProto.FLOAT))
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "tokens"])
                for name in INPUTS
            ],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", self._width])],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        serialized_model: bytes = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR
        ).SerializeToString()
        return serialized_model

    def _embedded(self) -> str:
        """Adds the normalized sum of each token's word, position and type: [n, tokens, d]."""
        types = self._weights["embeddings.token_type_embeddings.weight"]
        positions = self._constant(
            self._weights["embeddings.position_embeddings.weight"] + types[0]
        )
        words = self._node(
            "Gather", [self._weight("embeddings.word_embeddings.weight"), "input_ids"]
        )
        zero = self._constant(np.array([0]))
        near = self._node(
            "Slice", [positions, zero, self._node("Shape", ["input_ids"], start=1, end=2), zero]
        )
        norm = [self._weight(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias")]
        return self._node(
            "LayerNormalization", [self._node("Add", [words, near]), *norm], epsilon=self._eps
        )

    def _layer(self, x: str, lengths: str, prefix: str) -> str:
        names = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
        product = self._constant(
            np.concatenate([self._weights[f"{name}.weight"] for name in names]).T
        )
        bias = self._constant(np.concatenate([self._weights[f"{name}.bias"] for name in names]))
        attended = self._node(
            "Attention", [x, product, bias, lengths], CONTRIB, num_heads=self._heads
        )
        x = self._added(
            self._product(attended, f"{prefix}attention.output.dense"),
            x,
            f"{prefix}attention.output",
        )
        wide = self._product(x, f"{prefix}intermediate.dense")
        wide = self._node(
            "BiasGelu", [wide, self._weight(f"{prefix}intermediate.dense.bias")], CONTRIB
        )
        return self._added(self._product(wide, f"{prefix}output.dense"), x, f"{prefix}output")

    def _product(self, x: str, name: str) -> str:
        return self._node("MatMul", [x, self._constant(self._weights[f"{name}.weight"].T)])

    def _added(self, x: str, before: str, name: str) -> str:
        """Adds the normalized sum of x, its bias and the residual `before`."""
        parts = (f"{name}.LayerNorm.weight", f"{name}.LayerNorm.bias", f"{name}.dense.bias")
        return self._node(
            "SkipLayerNormalization",
            [x, before, *map(self._weight, parts)],
            CONTRIB,
            epsilon=self._eps,
        )

    def _mean(self, x: str, mask: str) -> None:
        one = self._constant(np.array([1]))
        counted = self._node(
            "Mul", [x, self._node("Unsqueeze", [mask, self._constant(np.array([2]))])]
        )
        total = self._node("ReduceSum", [counted, one], keepdims=0)
        self._node("Div", [total, self._node("ReduceSum", [mask, one], keepdims=1)], out=OUTPUT)

    def _cast(self, to: int) -> str:
        return self._node("Cast", ["attention_mask"], to=to)

    def _weight(self, name: str) -> str:
        return self._constant(self._weights[name])

    def _constant(self, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _node(
        self, kind: str, inputs: list[str], domain: str = "", *, out: str = "", **attributes: Any
    ) -> str:
        from onnx import helper

        out = out or f"node_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [out], domain=domain, **attributes))
        return out
