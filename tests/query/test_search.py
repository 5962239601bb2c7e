"""Parsing of searches and writing of answers do not block the shared event loop."""

import asyncio
import base64
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from gate import platform

from query.answer import Answer
from query.api.bounds import BASE64_MAX, SEARCH_BYTES_MAX
from query.api.collections import objectives_of
from query.api.http import SHOWN_MAX, VALUES_MAX, checked_object
from query.api.search_request import FIELDS, from_json
from query.api.search_response import written
from query.api.sending import SLICE_BYTES
from tenants.models import DIMENSION_MAX
from vicinage.errors import Refused
from vicinage.records import Hit
from vicinage.settings import GatewaySettings

VALUES = 500_000
"""Nearly as many as a body may have."""
NAMES = {f"name {i}": 1 for i in range(VALUES)}
LONGEST = np.ones(DIMENSION_MAX, "<f4")


def parsed(**fields: Any) -> Any:
    return from_json("c", {"vector": [1.0], **fields}, GatewaySettings())


HUGE: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "a vector of numbers": ({"vector": [1] * VALUES}, "vector", DIMENSION_MAX),
    "a vector of vectors": ({"vector": [[1] * VALUES]}, "vector", None),
    "a vector in base64": (
        {"vector": None, "vector_base64": base64.b64encode(bytes(4 * VALUES)).decode()},
        "vector_base64",
        DIMENSION_MAX,
    ),
    "what to include": ({"include": ["text"] * VALUES}, "include", None),
    "a token": ({"wait_for": {"partition": 0, "offset": 0, **NAMES}}, "wait_for", None),
    "a way of fusing": ({"mode": "hybrid", "text": "words", "fusion": NAMES}, "fusion", None),
}


@pytest.mark.parametrize("what", HUGE)
def test_a_far_too_long_value_is_refused_before_it_is_read(what: str) -> None:
    fields, name, limit = HUGE[what]
    began = time.thread_time()
    with pytest.raises(Refused) as refused:
        parsed(**fields)
    assert time.thread_time() - began < 0.005
    assert (refused.value.field, refused.value.limit) == (name, limit)


def test_the_longest_vector_is_accepted_as_list_and_in_base64() -> None:
    encoded = base64.b64encode(LONGEST.tobytes()).decode()
    assert len(encoded) == BASE64_MAX
    for fields in ({"vector": LONGEST.tolist()}, {"vector": None, "vector_base64": encoded}):
        np.testing.assert_array_equal(parsed(**fields).vector, LONGEST)


def test_an_unknown_name_is_found_without_reading_a_million_and_is_reported_in_short() -> None:
    long = {"vector": [1], "x" * 1_000_000: 1, **NAMES}
    began = time.thread_time()
    with pytest.raises(Refused) as refused:
        checked_object(long, FIELDS)
    with pytest.raises(Refused, match="unknown objective"):
        objectives_of({"objectives": long})
    assert time.thread_time() - began < 0.005
    assert refused.value.field == "x" * SHOWN_MAX
    assert len(refused.value.detail) < 500


def test_a_search_of_a_batch_that_is_too_large_is_refused_alone(tmp_path: Path) -> None:
    with platform(tmp_path) as call:
        _, key = call.tenant()
        call.collection(key)
        body = b'{"searches":[{"vector":[' + b"1," * (VALUES_MAX + 1) + b"1]}]}"
        headers = {"content-type": "application/json"}
        found = call("POST", "/v1/collections/c/search:batch", key, content=body, headers=headers)
        assert orjson.loads(found.content)["problem"]["limit"] == SEARCH_BYTES_MAX


def answer_of(n: int, dimension: int) -> Answer:
    vectors = np.random.default_rng(7).standard_normal((n, dimension)).astype(np.float32)
    hits = tuple(Hit(str(i), 0, 0.5, 1, metadata={"n": i}, vector=v) for i, v in enumerate(vectors))
    return Answer(hits, "0-7", 3, 1, 16, 0.0, None)


def test_a_long_answer_is_written_in_turns() -> None:
    async def work() -> tuple[bytes, int]:
        turns = 0

        async def another() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(another())
        data = await written(answer_of(256, 4_096))
        beside.cancel()
        return data, turns

    data, turns = asyncio.run(work())
    assert len(data) < 12 << 20, "some ten characters a number"
    assert turns >= len(data) // (2 * SLICE_BYTES)


def test_a_vector_in_an_answer_is_the_one_that_was_stored() -> None:
    found = answer_of(3, 64)
    value = orjson.loads(asyncio.run(written(found, index=5)))
    assert list(value) == ["index", "hits", "freshness", "generation", "effort", "degraded"]
    for said, hit in zip(value["hits"], found.hits, strict=True):
        assert (said["document_id"], said["metadata"]) == (hit.document_id, hit.metadata)
        np.testing.assert_array_equal(np.array(said["vector"], np.float32), hit.vector)
