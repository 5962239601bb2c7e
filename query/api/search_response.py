"""Encodes an answer as JSON."""

import asyncio
from typing import Any

import numpy as np
import orjson

from query.answer import Answer
from query.api.sending import SLICE_BYTES
from vicinage.records import Hit


async def written(found: Answer, **first: int) -> bytes:
    """Returns the answer's JSON, with the fields of `first` before it.

    Encodes a long answer in slices, so that other requests run in between.
    """
    hits: list[orjson.Fragment] = []
    size = 0
    for hit in found.hits:
        data = orjson.dumps(_hit(hit), option=orjson.OPT_SERIALIZE_NUMPY)
        hits.append(orjson.Fragment(data))
        size += len(data)
        if size > SLICE_BYTES:
            size = 0
            await asyncio.sleep(0)
    degraded = (
        {"reason": found.reason, "missing_share": found.missing_share} if found.reason else None
    )
    return orjson.dumps(
        {
            **first,
            "hits": hits,
            "freshness": {"watermark": found.watermark, "lag_ms": found.lag_ms},
            "generation": found.generation,
            "effort": found.effort,
            "degraded": degraded,
        }
    )


def _hit(hit: Hit) -> dict[str, Any]:
    line: dict[str, Any] = {
        "document_id": hit.document_id,
        "passage": hit.passage,
        "score": hit.score,
    }
    if hit.dense_score is not None:
        line["dense_score"] = hit.dense_score
    if hit.lexical_score is not None:
        line["lexical_score"] = hit.lexical_score
    if hit.text is not None:
        line |= {"text": hit.text, "start": hit.start, "end": hit.end}
    if hit.metadata is not None:
        line["metadata"] = hit.metadata
    if hit.vector is not None:
        # As float32, which has half the digits of a Python float.
        line["vector"] = np.ascontiguousarray(hit.vector)
    return line
