"""Guarantee 1 on every route: the key decides the tenant, and no data of another tenant shows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest
from fastapi.routing import APIRoute
from gate import Caller, platform, problem

from query.gateway import create_app
from tenants.keys import Keys
from vicinage.clock import SystemClock

SECRET = "zebra"
"""A word in every name, ID, text and metadata value of the other tenant."""


@dataclass
class Two:
    """A platform with two tenants, of which `theirs` has data to hide."""

    call: Caller
    mine: str
    my_key: str
    my_reader: str
    my_writer: str
    theirs: str
    their_key_id: str
    their_job: str


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with platform(tmp_path_factory.mktemp("isolation")) as call:
        mine, my_key = call.tenant()
        call.collection(my_key, "mine")
        theirs = f"{SECRET}-corp"
        their_key = call.admin("POST", "/tenants", {"name": theirs}, status=201)["key"]
        call.collection(their_key, f"{SECRET}s")
        document = {
            "id": f"{SECRET}-1",
            "text": SECRET,
            "vector": [1, 0, 0, 0],
            "metadata": {SECRET: SECRET},
        }
        token = call.write(their_key, [document], f"{SECRET}s")
        assert call.search(their_key, f"{SECRET}s", vector=[1, 0, 0, 0], wait_for=token)["hits"]
        token = call.write(my_key, [{"id": "own", "vector": [1, 0, 0, 0]}], "mine")
        call.search(my_key, "mine", vector=[1, 0, 0, 0], wait_for=token)
        job = call.admin(
            "POST", "/reindex", {"tenant": theirs, "collection": f"{SECRET}s"}, status=202
        )["id"]

        def narrow(scope: str) -> str:
            return call.admin("POST", "/keys", {"tenant": mine, "scopes": [scope]}, status=201)[
                "key"
            ]

        yield Two(
            call,
            mine,
            my_key,
            narrow("read"),
            narrow("write"),
            theirs,
            their_key.split("_")[1],
            job,
        )


COLLECTION: dict[str, Any] = {"json": {"name": "x", "dimension": 2}}
READ: dict[tuple[str, str], dict[str, Any]] = {
    ("GET", "/v1/collections"): {},
    ("GET", "/v1/collections/{collection}"): {},
    ("GET", "/v1/collections/{collection}/documents/{document_id:path}"): {},
    ("POST", "/v1/collections/{collection}/search"): {"json": {"vector": [1, 0, 0, 0]}},
    ("POST", "/v1/collections/{collection}/search:batch"): {
        "json": {"searches": [{"vector": [1, 0, 0, 0]}]}
    },
    ("GET", "/v1/dead-letters"): {},
    ("GET", "/v1/dead-letters/{position}"): {},
}
WRITE: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/collections"): COLLECTION,
    ("DELETE", "/v1/collections/{collection}"): {},
    ("PATCH", "/v1/collections/{collection}"): {"json": {"objectives": {"recall": 0.9}}},
    ("POST", "/v1/dead-letters:replay"): {"json": {}},
    ("POST", "/v1/dead-letters:purge"): {"json": {"to": 0}},
    ("POST", "/v1/collections/{collection}/documents"): {
        "json": {"documents": [{"id": "x", "vector": [1, 0, 0, 0]}]}
    },
    ("DELETE", "/v1/collections/{collection}/documents/{document_id:path}"): {},
    ("POST", "/v1/collections/{collection}/documents:delete"): {"json": {"ids": [f"{SECRET}-1"]}},
}
OPERATE: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/admin/tenants"): {"json": {"name": "x"}},
    ("GET", "/v1/admin/tenants"): {},
    ("GET", "/v1/admin/tenants/{tenant}"): {},
    ("PATCH", "/v1/admin/tenants/{tenant}"): {"json": {"class": "gold"}},
    ("GET", "/v1/admin/tenants/{tenant}/dead-letters"): {},
    ("GET", "/v1/admin/tenants/{tenant}/dead-letters/{position}"): {},
    ("POST", "/v1/admin/tenants/{tenant}/dead-letters:replay"): {"json": {}},
    ("POST", "/v1/admin/tenants/{tenant}/dead-letters:purge"): {"json": {"to": 0}},
    ("PATCH", "/v1/admin/tenants/{tenant}/collections/{collection}"): {
        "json": {"objectives": {"recall": 0.9}}
    },
    ("DELETE", "/v1/admin/tenants/{tenant}/collections/{collection}"): {},
    ("POST", "/v1/admin/tenants/{tenant}/suspend"): {},
    ("POST", "/v1/admin/tenants/{tenant}/resume"): {},
    ("POST", "/v1/admin/tenants/{tenant}/resume-ingest"): {"json": {"dry_run": True}},
    ("POST", "/v1/admin/tenants/{tenant}/partitions"): {"json": {"partitions": 1, "dry_run": True}},
    ("DELETE", "/v1/admin/tenants/{tenant}"): {},
    ("POST", "/v1/admin/keys"): {"json": {"tenant": f"{SECRET}-corp", "scopes": ["read"]}},
    ("GET", "/v1/admin/keys"): {},
    ("DELETE", "/v1/admin/keys/{key_id}"): {},
    ("POST", "/v1/admin/tenants/{tenant}/collections"): COLLECTION,
    ("GET", "/v1/admin/collections"): {},
    ("GET", "/v1/admin/tenants/{tenant}/collections/{collection}"): {},
    ("GET", "/v1/admin/models"): {},
    ("POST", "/v1/admin/models"): {"json": {"name": "x"}},
    ("POST", "/v1/admin/models/{name:path}/retire"): {},
    ("GET", "/v1/admin/audit"): {},
    ("POST", "/v1/admin/audit/verify"): {},
    ("POST", "/v1/admin/reindex"): {
        "json": {"tenant": f"{SECRET}-corp", "collection": f"{SECRET}s"}
    },
    ("GET", "/v1/admin/reindex"): {},
    ("GET", "/v1/admin/reindex/{job_id}"): {},
    ("POST", "/v1/admin/reindex/{job_id}/cancel"): {},
    ("GET", "/v1/admin/capacity"): {},
    ("GET", "/v1/admin/freshness"): {},
    ("GET", "/v1/admin/recall"): {},
}
OPEN = {
    ("GET", path)
    for path in (
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/docs/{name}",
        "/redoc",
    )
}
"""Without a key: the state of the process, and the pages of the OpenAPI document."""
EVERY = {**READ, **WRITE, **OPERATE}


def filled(path: str, two: Two) -> str:
    """Returns the route's path with the other tenant's names."""
    names = {
        "{collection}": f"{SECRET}s",
        "{document_id:path}": f"{SECRET}-1",
        "{tenant}": two.theirs,
        "{key_id}": two.their_key_id,
        "{job_id}": two.their_job,
        "{position}": "0",
    }
    for name, value in names.items():
        path = path.replace(name, value)
    return path


def routes(two: Two) -> set[tuple[str, str]]:
    return {(m, r.path) for r in _routes(two.call.app.routes) for m in r.methods}


def _routes(found: Any) -> Iterator[APIRoute]:
    for route in found:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from _routes(route.original_router.routes)


def test_no_route_is_left_out_of_these_tests(two: Two) -> None:
    assert routes(two) == set(EVERY) | OPEN


each = pytest.mark.parametrize("route", sorted(EVERY), ids=" ".join)


@each
@pytest.mark.parametrize(
    "credential",
    [
        None,
        "",
        "Basic abc",
        "Bearer",
        "Bearer nonsense",
        "Bearer vk_0000000000000000_" + "A" * 43,
        "Bearer \u00e9\u00e9",
    ],
)
def test_without_a_valid_key_every_route_answers_401_alone(
    two: Two, route: tuple[str, str], credential: str | None
) -> None:
    headers = {} if credential is None else {"authorization": credential.encode()}
    found = two.call(route[0], filled(route[1], two), headers=headers, **EVERY[route])
    problem(found, 401, "unauthenticated")
    assert found.headers["www-authenticate"].startswith("Bearer")


def test_a_key_with_another_keys_secret_is_invalid(two: Two) -> None:
    ours = two.my_key.split("_", 2)
    forged = f"vk_{two.their_key_id}_{ours[2]}"
    problem(two.call("GET", "/v1/collections", forged), 401, "unauthenticated")


@each
def test_another_tenants_key_finds_nothing_of_theirs_on_any_route(
    two: Two, route: tuple[str, str]
) -> None:
    if route in OPERATE:
        found = two.call(route[0], filled(route[1], two), two.my_key, **EVERY[route])
        problem(found, 403, "forbidden")
    elif "{collection}" in route[1]:
        found = two.call(route[0], filled(route[1], two), two.my_key, **EVERY[route])
        problem(found, 404, "not-found")
    elif route[0] == "GET":
        found = two.call(route[0], filled(route[1], two), two.my_key)
        assert found.status_code in (200, 404)
    else:
        assert route[1] in ("/v1/collections", "/v1/dead-letters:replay", "/v1/dead-letters:purge")
        return
    assert "corp" not in found.text
    assert f"{SECRET}-1" not in found.text


@pytest.mark.parametrize("route", sorted(READ), ids=" ".join)
def test_missing_and_foreign_resources_look_the_same(two: Two, route: tuple[str, str]) -> None:
    theirs = two.call(route[0], filled(route[1], two), two.my_key, **EVERY[route])
    path = filled(route[1], two).replace(SECRET, "absent")
    absent = two.call(route[0], path, two.my_key, **EVERY[route])
    assert theirs.status_code == absent.status_code
    if theirs.status_code != 200:
        assert theirs.text.replace(SECRET, "absent") == absent.text


@each
def test_an_operators_key_cannot_use_a_tenants_data(two: Two, route: tuple[str, str]) -> None:
    if route not in OPERATE:
        found = two.call(route[0], filled(route[1], two), two.call.operator, **EVERY[route])
        problem(found, 403, "forbidden")


@each
def test_a_key_does_what_its_scope_allows_and_no_more(two: Two, route: tuple[str, str]) -> None:
    wrong = two.my_writer if route in READ else two.my_reader
    problem(two.call(route[0], filled(route[1], two), wrong, **EVERY[route]), 403, "forbidden")


@pytest.mark.parametrize("place", ["body", "path", "query", "header", "metadata"])
def test_a_tenant_is_taken_from_the_key_alone(two: Two, place: str) -> None:
    body: dict[str, Any] = {"vector": [1, 0, 0, 0]}
    given: dict[str, Any] = {}
    path = "/v1/collections/mine/search"
    if place == "body":
        body["tenant"] = two.theirs
    elif place == "path":
        path = f"/v1/collections/{two.theirs}%2F{SECRET}s/search"
    elif place == "query":
        given["params"] = {"tenant": two.theirs}
    elif place == "header":
        given["headers"] = {"x-tenant": two.theirs, "x-vicinage-tenant": two.theirs}
    else:
        body["filter"] = {"tenant": two.theirs}
    found = two.call("POST", path, two.my_key, json=body, **given)
    if place in ("body", "path"):
        assert found.status_code in (400, 404)
    else:
        assert found.status_code == 200
        assert [h["document_id"] for h in found.json()["hits"]] in (["own"], [])


def test_the_other_tenant_still_has_everything(two: Two) -> None:
    key = Keys(two.call.base.engine, SystemClock()).create(two.theirs, ["read"], actor="test")[1]
    found = two.call.search(key, f"{SECRET}s", vector=[1, 0, 0, 0])
    assert [h["document_id"] for h in found["hits"]] == [f"{SECRET}-1"]


def test_an_app_for_the_local_operator_requires_a_key_to_read_data(two: Two) -> None:
    app = create_app(replace(two.call.state, local_operator=True))

    async def ask(path: str) -> int:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://g"
        ) as http:
            return (await http.get(path)).status_code

    assert two.call.portal.call(ask, "/v1/admin/tenants") == 200
    assert two.call.portal.call(ask, "/v1/collections") == 401
