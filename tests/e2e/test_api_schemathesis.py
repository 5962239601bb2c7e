"""Schemathesis sends requests made from the OpenAPI document, valid and invalid, to a real gateway.

The document is made stricter for it: the response `default`, which stands for problems of HTTP
itself, is left out, and no response may have a field that is not documented.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from gate import Caller, build, platform, serving

from capacity.report import report
from capacity.snapshot import Rates, take
from query.api.openapi import bounds_of, document
from query.api.operations import JSON
from query.api.routes import ROUTERS
from query.scatter import Searchers
from vicinage.settings import GatewaySettings

SEED = 1
EXAMPLES_MAX = 4
"""Random examples of each operation, beside the boundary values of each field."""
NOT_CHECKED = (
    "positive_data_acceptance",  # names in a valid body need not exist, and fields exclude others
)
ADMIN = "^/v1/admin"
CONFIG = """
[[operations]]
include-operation-id = "putDocuments"
checks.negative_data_rejection.enabled = false  # an invalid document is rejected by itself

[[operations]]
include-operation-id = "searchBatch"
checks.negative_data_rejection.enabled = false  # an invalid search has a problem in its own line

[[operations]]
include-operation-id = "verifyAudit"
checks.not_a_server_error.enabled = false  # a hash that the chain does not have means corruption
"""


def strict(made: dict[str, Any]) -> dict[str, Any]:
    """The document without `default` answers, and with closed answers.

    The parameters of a search belong to a body of bytes: beside JSON they are not read.
    Schemathesis writes neither Arrow nor every name of NDJSON.
    """
    made = deepcopy(made)
    search = made["paths"]["/v1/collections/{collection}/search"]["post"]
    search["parameters"] = [p for p in search["parameters"] if p["in"] == "path"]
    write = made["paths"]["/v1/collections/{collection}/documents"]["post"]
    write["requestBody"]["content"] = {JSON: write["requestBody"]["content"][JSON]}
    for methods in made["paths"].values():
        for operation in methods.values():
            del operation["responses"]["default"]
    for schema in made["components"]["schemas"].values():
        if schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
    return made


SETTINGS = GatewaySettings(key_failures_per_s=1_000_000, timeout_ms=2_000)


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with platform(tmp_path_factory.mktemp("schemathesis"), SETTINGS) as caller:
        yield caller


@pytest.fixture(scope="module")
def url(call: Caller) -> Iterator[str]:
    async def measure_capacity(searchers: Searchers) -> dict[str, Any]:
        stats = await searchers.stats()
        found = take(call.base.registry, call.base.log, stats, Rates(), call.base.clock.now_ms())
        return report(found, call.base.settings.indexer)

    app = build(call.base, [call.searcher], SETTINGS, measure_capacity=measure_capacity)
    with serving(app) as url:
        yield url


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["tenants", "operators"])
def test_every_answer_is_documented_and_what_the_document_forbids_is_refused(
    call: Caller, url: str, tmp_path: Path, part: str
) -> None:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(strict(document(ROUTERS, bounds_of(call.state)))))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    _, key = call.tenant()
    call.collection(key, "articles")
    call.write(key, [{"id": "guide-7", "vector": [1, 0, 0, 0], "text": "words"}], "articles")
    select = "--include-path-regex" if part == "operators" else "--exclude-path-regex"
    words = [
        sys.executable, "-m", "schemathesis.cli", "run", str(path), "--url", url, select, ADMIN,
        "--header", f"Authorization: Bearer {call.operator if part == 'operators' else key}",
        "--phases", "examples,coverage,fuzzing", "--exclude-checks", ",".join(NOT_CHECKED),
        "--max-examples", str(EXAMPLES_MAX), "--seed", str(SEED), "--no-color",
        "--generation-deterministic",
        "--continue-on-failure", "--warnings", "off",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "120"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
