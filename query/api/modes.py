"""Validates combinations of `mode`, `fusion`, `rerank`, text and vector."""

import math
from collections.abc import Mapping
from typing import Any, Final, get_args

from query.api.http import integer, typed, unknown_in
from query.plan import Fusion, Method
from vicinage.errors import Refused
from vicinage.records import Mode

VECTORS: Final = ("vector", "vector_base64")
FUSION: Final = frozenset({"method", "dense_weight"})


def mode_of(value: Mapping[str, Any]) -> Mode:
    """Returns the mode of a search that has the fields of that mode and no others.

    Raises Refused naming the field.
    """
    given = value.get("mode")
    mode: Mode | None = (
        next((m for m in get_args(Mode) if m == given), None) if given is not None else "dense"
    )
    if mode is None:
        raise Refused("mode is dense, lexical or hybrid", field="mode")
    vectors = [name for name in VECTORS if value.get(name) is not None]
    ways = [name for name in ("text",) if value.get(name) is not None] + vectors
    if mode == "dense" and len(ways) != 1:
        raise Refused(
            "send exactly one of text, vector and vector_base64",
            field=ways[1] if ways else "text",
        )
    if mode != "dense" and "text" not in ways:
        raise Refused(f"mode {mode} searches by words: it needs text", field="text")
    if mode == "lexical" and vectors:
        raise Refused("mode lexical takes text alone", field=vectors[0])
    if len(vectors) > 1:
        raise Refused("send the vector once, as vector or vector_base64", field=vectors[1])
    if mode != "hybrid" and value.get("fusion") is not None:
        raise Refused(
            "fusion is for mode hybrid: other modes have one list of hits", field="fusion"
        )
    return mode


def fusion_of(value: Mapping[str, Any]) -> Fusion:
    """Returns how to fuse: `{"method": "weighted" | "rrf", "dense_weight": 0..1}`.

    Raises Refused(field="fusion").
    """
    given = typed(value, "fusion", dict, "an object")
    if given is None:
        return Fusion()
    if (unknown := unknown_in(given, FUSION)) is not None:
        raise Refused(
            f"fusion has no {unknown!r}; there are method and dense_weight", field="fusion"
        )
    wanted = given.get("method", Fusion().method)
    method: Method | None = next((m for m in get_args(Method) if m == wanted), None)
    if method is None:
        raise Refused("fusion.method is weighted or rrf", field="fusion")
    weight = given.get("dense_weight")
    if weight is None:
        return Fusion(method)
    if method == "rrf":
        raise Refused(
            "fusion.dense_weight is for method weighted: rrf weights both lists equally",
            field="fusion",
        )
    if type(weight) not in (int, float) or not math.isfinite(weight) or not 0 <= weight <= 1:
        raise Refused("fusion.dense_weight is a number from 0 to 1", field="fusion")
    return Fusion(method, float(weight))


def rerank_of(value: Mapping[str, Any], k: int, most: int) -> int:
    """Returns the number of hits to rerank, 0 without `rerank`. Raises Refused(field="rerank")."""
    if value.get("rerank") is None:
        return 0
    n = integer(value, "rerank", 1, most, 0)
    if value.get("text") is None:
        raise Refused("reranking compares hits with the search text: send text", field="rerank")
    if n < k:
        raise Refused(
            f"rerank is at least k, which is {k}: only reranked hits are returned",
            field="rerank",
            limit=k,
        )
    return n
