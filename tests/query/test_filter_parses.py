"""A filter is parsed by the request, carried by the plan and evaluated by the shard."""

import pickle
from typing import Any

import numpy as np
import pytest
from rows import message, unit

from indexer.backends import open_backend
from indexer.index.shard import Shard
from query.api.search_request import from_json
from query.plan import make_plan
from tenants.entities import Collection, Generation, Manifest, Objectives
from vicinage import filters
from vicinage.settings import GatewaySettings


def test_a_search_parses_its_filter_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    clause = filters._clause

    def counted(key: str, *rest: Any) -> Any:
        parsed.append(key)
        return clause(key, *rest)

    monkeypatch.setattr(filters, "_clause", counted)
    body = {"vector": [1.0, 0.0], "text": "red", "mode": "hybrid", "filter": {"color": "red"}}
    request = from_json("c", body, GatewaySettings())
    live = Generation("t", "c", 1, "live", None, 2, "cosine", "auto", (0,), (0,))
    collection = Collection("t", "c", "active", 1, (live,), Objectives())
    [query] = make_plan(request, collection, np.array([1, 0], np.float32), 42).queries
    query = pickle.loads(pickle.dumps(query))
    shard = Shard(
        query.shard,
        dimension=2,
        metric="cosine",
        recall=0.95,
        backend=open_backend(),
        manifest=Manifest(query.shard, 0, 0, 0, ()),
    )
    rows = [("a", 1, [unit(1, 2)], '{"color": "red"}'), ("b", 2, [unit(2, 2)], '{"color": "blue"}')]
    shard.apply(message(rows, 2), 0)
    shard.needs(query)
    assert [hit.document_id for hit in shard.search(query).hits[0]] == ["a"]
    assert parsed == ["color"]
