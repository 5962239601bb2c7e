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
from gate import Caller, platform, serving

from query.api.openapi import bounds_of, document
from query.api.routes import ROUTERS
from vicinage.settings import GatewaySettings

SEED = 1
EXAMPLES_MAX = 4
"""Random examples of each operation, beside the boundary values of each field."""
NOT_CHECKED = (
    "positive_data_acceptance",  # names in a valid body need not exist, and fields exclude others
)
ADMIN = "^/v1/admin"


def strict(made: dict[str, Any]) -> dict[str, Any]:
    """The document without `default` answers, and with closed answers."""
    made = deepcopy(made)
    for methods in made["paths"].values():
        for operation in methods.values():
            del operation["responses"]["default"]
    for schema in made["components"]["schemas"].values():
        if schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    settings = GatewaySettings(key_failures_per_s=1_000_000, timeout_ms=2_000)
    with platform(tmp_path_factory.mktemp("schemathesis"), settings) as caller:
        yield caller


@pytest.fixture(scope="module")
def url(call: Caller) -> Iterator[str]:
    with serving(call.another()) as url:
        yield url


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["tenants", "operators"])
def test_every_answer_is_documented_and_what_the_document_forbids_is_refused(
    call: Caller, url: str, tmp_path: Path, part: str
) -> None:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(strict(document(ROUTERS, bounds_of(call.state)))))
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
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4_000:]
