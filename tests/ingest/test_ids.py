"""Valid document IDs: any file name or URL, unless it shortens a path."""

from urllib.parse import urljoin, urlsplit

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.ids import fault_of, fault_of_new, has_dot_segment

DOTS = [
    "..",
    ".",
    "../../other",
    "a/../b",
    "a/.",
    "./a",
    "..\\..\\other",
    "a\\..",
    "%2e%2E",
    "a/%2e./b",
    "../",
    "..%2F..%5cother",
]
FINE = [
    "...",
    "a..b",
    ".hidden",
    "a/.hidden",
    "v1.2/x..",
    "https://example.com/a/b?c#d",
    "a//b",
    "50%",
    "%2",
    "Screen Shot at 9.41\u202fAM.png",
    "no\u00a0break",
    "\U0001f469\u200d\U0001f4bb.png",
    "نامه\u200cای",
    "soft\u00adhyphen",
    "\u2028",
    "+",
    " ",
]


@pytest.mark.parametrize("name", DOTS)
def test_an_id_that_shortens_a_path_is_refused_for_new_documents_and_can_still_be_deleted(
    name: str,
) -> None:
    assert "'..'" in (fault_of_new(name, 512) or "")
    assert fault_of(name, 512) is None


@pytest.mark.parametrize("name", FINE)
def test_names_of_files_and_urls_are_valid_ids(name: str) -> None:
    assert fault_of_new(name, 512) is None


@pytest.mark.parametrize(
    "name", ["", "a\x00", "a\nb", "\x7f", "\x85", "\ud800", "é" * 257, None, 7, ["a"]]
)
def test_invalid_ids_are_refused(name: object) -> None:
    assert fault_of(name, 512)
    assert fault_of_new(name, 512)


@given(st.text(st.sampled_from("./\\ab"), min_size=1, max_size=8))
@example("..")
def test_a_url_parser_keeps_every_other_id(name: str) -> None:
    if has_dot_segment(name):
        return
    folder = "http://gateway/v1/collections/c/documents/"
    assert httpx2.URL(folder + name).path == "/v1/collections/c/documents/" + name
    if "//" not in name and not name.startswith("/"):  # a reference of its own, to urljoin
        assert urlsplit(urljoin(folder, f"./{name}")).path == "/v1/collections/c/documents/" + name
