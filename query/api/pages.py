"""The OpenAPI document, and pages that show it and load nothing from other hosts.

`tests/e2e/openapi/vendor.py` writes the compressed scripts and styles, with their licenses.
"""

import gzip
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vicinage.errors import NotFound

router = APIRouter()
STATIC: Final = Path(__file__).parent / "static"
SCRIPT: Final = "text/javascript; charset=utf-8"
STYLE: Final = "text/css; charset=utf-8"
ASSETS: Final = {
    "swagger-ui-bundle.js": SCRIPT,
    "swagger-ui.css": STYLE,
    "docs.js": SCRIPT,
    "redoc.standalone.js": SCRIPT,
    "redoc.js": SCRIPT,
}
SECURITY: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Both pages add styles while they run. Redoc searches in a worker that it makes of a blob."""
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Vicinage HTTP API</title>
<link rel="icon" href="data:,">
{styles}</head>
<body>
<div id="page"></div>
{scripts}</body>
</html>
"""


@router.get("/openapi.json", include_in_schema=False)
def openapi_json(request: Request) -> Response:
    """Returns the OpenAPI document, which the first call builds in some tenths of a second."""
    return Response(request.app.state.openapi_json(), media_type="application/json")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Returns the page that shows the API and sends requests (Swagger UI)."""
    return _page("swagger-ui.css", "swagger-ui-bundle.js", "docs.js")


@router.get("/redoc", include_in_schema=False)
async def redoc() -> Response:
    """Returns the page that shows the API as a reference (Redoc)."""
    return _page("redoc.standalone.js", "redoc.js")


@router.get("/docs/{name}", include_in_schema=False)
def asset(name: str, request: Request) -> Response:
    """Returns a script or a style of the pages, compressed if the client accepts that."""
    if name not in ASSETS:
        raise NotFound("there is nothing of that name")
    data = _compressed(name)
    headers = {**SECURITY, "Cache-Control": "public, max-age=3600", "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
    else:
        data = gzip.decompress(data)
    return Response(data, media_type=ASSETS[name], headers=headers)


@cache
def _compressed(name: str) -> bytes:
    path = STATIC / f"{name}.gz"
    if path.exists():
        return path.read_bytes()
    return gzip.compress((STATIC / name).read_bytes(), mtime=0)


def _page(*names: str) -> Response:
    styles = (f'<link rel="stylesheet" href="/docs/{n}">\n' for n in names if n.endswith(".css"))
    scripts = (f'<script src="/docs/{n}"></script>\n' for n in names if n.endswith(".js"))
    text = PAGE.format(styles="".join(styles), scripts="".join(scripts))
    return Response(text, media_type="text/html", headers=SECURITY)
