"""Errors as RFC 9457 problem documents."""

import re
from typing import Any

import orjson
import pytest
from starlette.responses import Response

from query.problems import internal, plain, problem
from vicinage import errors
from vicinage.errors import VicinageError


def body(response: Response) -> dict[str, Any]:
    assert response.media_type == "application/problem+json"
    found: dict[str, Any] = orjson.loads(response.body)
    assert found["status"] == response.status_code
    assert found["type"] == f"urn:vicinage:problem:{found['type'].rsplit(':', 1)[1]}"
    return found


def every(kind: type[VicinageError]) -> list[type[VicinageError]]:
    own = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(each for child in own for each in every(child))]


def make(kind: type[VicinageError]) -> VicinageError:
    needed: dict[str, Any] = {}
    if issubclass(kind, errors.Unavailable):
        needed["dependency"] = "log"
    if issubclass(kind, errors.Corrupt):
        needed["path"] = "segments/x"
    return kind("what is wrong", **needed)


@pytest.mark.parametrize("kind", every(VicinageError), ids=lambda k: k.__name__)
def test_every_error_of_the_tree_has_type_title_status_and_detail(
    kind: type[VicinageError],
) -> None:
    found = body(problem(make(kind)))
    assert found["type"] == f"urn:vicinage:problem:{kind.kind}"
    assert (found["title"], found["status"], found["detail"]) == (
        kind.title,
        kind.status,
        "what is wrong",
    )


def test_the_statuses_are_those_of_the_error_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+) +(\d{3})\b", errors.__doc__ or "")
    assert len(drawn) >= 10
    for name, status in drawn:
        assert getattr(errors, name).status == int(status), name


def test_a_refusal_names_the_field_and_the_limit() -> None:
    found = body(problem(errors.Refused("k is 0", field="k", limit=1)))
    assert (found["field"], found["limit"]) == ("k", 1)


@pytest.mark.parametrize(("wait_s", "header"), [(0.1, "1"), (1.0, "1"), (1.2, "2"), (30, "30")])
def test_retry_after_is_in_whole_seconds_and_never_zero(wait_s: float, header: str) -> None:
    for error in (
        errors.Overloaded("full", retry_after_s=wait_s),
        errors.Unavailable("away", dependency="log", retry_after_s=wait_s),
    ):
        response = problem(error)
        assert response.headers["retry-after"] == header
        assert body(response)["retry_after_s"] == wait_s


def test_a_request_without_a_key_is_told_how_to_send_one() -> None:
    assert problem(errors.Unauthenticated("no")).headers["www-authenticate"].startswith("Bearer")
    assert "www-authenticate" not in problem(errors.Forbidden("no")).headers


def test_an_internal_error_is_reported_by_id_without_details() -> None:
    found = body(internal("abc"))
    assert (found["status"], found["request_id"]) == (500, "abc")


def test_problems_of_http_itself_have_the_same_form() -> None:
    response = plain(405, "Method Not Allowed", "no", {"Allow": "GET"})
    assert body(response)["type"] == "urn:vicinage:problem:method-not-allowed"
    assert response.headers["allow"] == "GET"
