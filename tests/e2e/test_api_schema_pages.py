"""The pages that show the OpenAPI document work without a network and without other hosts."""

import re
import zlib
from collections.abc import Iterator

import pytest
from gate import Caller, platform, problem

from query.api.pages import STATIC


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with platform(tmp_path_factory.mktemp("pages")) as caller:
        yield caller


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_and_all_that_it_loads_come_from_the_gateway(call: Caller, path: str) -> None:
    page = call("GET", path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "connect-src 'self';" in policy
    assert "http" not in policy
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assets = [link for link in links if link != "data:,"]
    assert len(assets) >= 2
    assert all(link.startswith("/docs/") for link in assets)
    assert "<script>" not in page.text
    for link in assets:
        found = call("GET", link)
        assert found.status_code == 200, link
        kind = "text/css" if link.endswith(".css") else "text/javascript"
        assert found.headers["content-type"] == f"{kind}; charset=utf-8"
    own = call("GET", assets[-1]).text
    assert '"/openapi.json"' in own
    assert "//" not in own


def test_an_asset_is_compressed_for_clients_that_accept_it(call: Caller) -> None:
    path = "/docs/swagger-ui.css"
    plain = call("GET", path, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    small = call("GET", path, headers={"accept-encoding": "gzip"})
    assert small.headers["content-encoding"] == "gzip"
    assert small.content == plain.content
    size = int(small.headers["content-length"])
    assert size < len(plain.content) / 3
    assert small.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("name", ["", "..", "%2e%2e%2fpages.py", "swagger-ui.LICENSE.txt", "x.js"])
def test_no_other_file_is_served(call: Caller, name: str) -> None:
    problem(call("GET", f"/docs/{name}"), 404, "not-found")


def test_the_assets_are_whole_and_have_their_licenses() -> None:
    for path in STATIC.glob("*.gz"):
        reader = zlib.decompressobj(wbits=31)
        assert reader.decompress(path.read_bytes())
        assert reader.eof
    names = {path.name for path in STATIC.iterdir()}
    assert {"swagger-ui.LICENSE.txt", "redoc.LICENSE.txt"} < names
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 1_000_000
