"""The run of `vicinage demo`: two tenants, real documents, searches, freshness and isolation."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2

from cluster import local
from cluster.commands.demo_documents import CORPORA, Corpus
from cluster.commands.operator import Operator
from vicinage.errors import Unavailable

COLLECTION: Final = "docs"
K: Final = 3
"""The expected hit of a search is among this many hits."""
WAIT_MS: Final = 600_000
"""Longest wait of a search: a busy machine embeds slowly."""
START_S: Final = 650.0
"""A little longer than the wait of `vicinage up --detach`."""
NEWS: Final = {
    "id": "news",
    "text": "The ferry to the northern islands leaves at seven from pier four.",
}
NEWS_SEARCH: Final = "when does the boat leave?"
Print = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """The checks so far, in order; `print_line` receives each line at once."""

    print_line: Print
    checks: list[dict[str, Any]] = field(default_factory=list)

    def step(self, title: str) -> None:
        """Prints the title of the next step."""
        self.print_line(f"\n{title}")

    def check(self, passed: bool, what: str, detail: str) -> None:
        """Records and prints a check."""
        self.checks.append({"check": what, "ok": passed, "detail": detail})
        self.print_line(f"  {'ok    ' if passed else 'FAILED'} {what}: {detail}")

    def ok(self) -> bool:
        """Returns whether all checks passed."""
        return all(check["ok"] for check in self.checks)


@dataclass(frozen=True, slots=True)
class TenantClient:
    """An application of one tenant, with only its key."""

    corpus: Corpus
    http: httpx2.Client

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Returns the answer's JSON. Raises httpx2.HTTPStatusError for a refusal."""
        response = self.http.request(method, f"/v1/collections/{COLLECTION}{path}", json=body)
        response.raise_for_status()
        return response.json()

    def search(self, text: str, **more: Any) -> dict[str, Any]:
        """Searches for a text."""
        found: dict[str, Any] = self.call(
            "POST", "/search", {"text": text, "k": K, "timeout_ms": WAIT_MS, **more}
        )
        return found


def run_demo(data: Path, port: int, n_documents: int, print_line: Print) -> Report:
    """Starts a platform on `data`, runs all checks, and stops it.

    Raises Unavailable if it does not start.
    """
    report = Report(print_line)
    began = time.monotonic()
    report.step(
        f"Starting a platform in {data}: gateway with searcher, ingest with indexer, embedder"
    )
    with _platform(data, port) as url:
        report.check(True, "ready", f"{url} after {time.monotonic() - began:.0f} s")
        try:
            _run_checks(report, url, Operator(data, None, None), n_documents)
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"the platform did not answer correctly: {error}", dependency="gateway"
            ) from error
    return report


def _run_checks(report: Report, url: str, operator: Operator, n_documents: int) -> None:
    clients = [_tenant_client(operator, url, corpus) for corpus in CORPORA]
    try:
        tokens = [_index(report, client, n_documents) for client in clients]
        for client, token in zip(clients, tokens, strict=True):
            _search(report, client, token)
        _freshness(report, clients[0])
        _isolation(report, *clients)
    finally:
        for client in clients:
            client.http.close()


@contextmanager
def _platform(data: Path, port: int) -> Iterator[str]:
    """Runs a platform with default settings; ignores this process's environment and directory."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("VICINAGE_")
    }
    command = [*local.PROGRAM, "up", "--data", str(data), "--port", str(port), "--detach", "--json"]
    try:
        done = subprocess.run(
            command,
            cwd=data,
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        if done.returncode != 0:
            raise Unavailable(
                f"the platform did not start: {done.stderr.strip()[-500:]}", dependency="supervisor"
            )
        yield f"http://127.0.0.1:{port}"
    finally:
        local.stop(data)


def _tenant_client(operator: Operator, url: str, corpus: Corpus) -> TenantClient:
    key = operator.call("POST", "/tenants", {"name": corpus.tenant})["key"]
    operator.call("POST", f"/tenants/{corpus.tenant}/collections", {"name": COLLECTION})
    http = httpx2.Client(
        base_url=url,
        headers={"authorization": f"Bearer {key}"},
        timeout=WAIT_MS / 1000 + 10,
        trust_env=False,
    )
    return TenantClient(corpus, http)


def _index(report: Report, client: TenantClient, limit: int) -> str:
    documents, tenant = client.corpus.documents(limit), client.corpus.tenant
    report.step(f"Tenant {tenant}: {len(documents)} docstrings into its collection {COLLECTION}")
    began = time.monotonic()
    written = client.call("POST", "/documents", {"documents": documents})
    report.check(
        written["accepted"] == len(documents),
        "durable",
        f"{_since_ms(began):.0f} ms, token {written['token']}",
    )
    token: str = written["token"]
    client.search("any", wait_for=token)
    report.check(True, "chunked, embedded and searchable", f"{time.monotonic() - began:.1f} s")
    return token


def _search(report: Report, client: TenantClient, token: str) -> None:
    report.step(f"Searches of tenant {client.corpus.tenant}")
    for text, expected in client.corpus.searches:
        began = time.monotonic()
        hits = client.search(text, wait_for=token)["hits"]
        took = _since_ms(began)
        found = [hit["document_id"] for hit in hits]
        best = f"{found[0]} ({hits[0]['score']:.2f}), {took:.0f} ms" if hits else "nothing"
        report.check(any(name.startswith(expected) for name in found), text, best)


def _freshness(report: Report, client: TenantClient) -> None:
    report.step("Freshness: a search waits for the write of a token")
    began = time.monotonic()
    token = client.call("POST", "/documents", {"documents": [NEWS]})["token"]
    found = client.search(NEWS_SEARCH, wait_for=token)
    first = found["hits"][0]["document_id"] if found["hits"] else "nothing"
    lag_ms = found["freshness"]["lag_ms"]
    detail = f"{first} found {_since_ms(began):.0f} ms after it was sent; lag {lag_ms} ms"
    report.check(first == NEWS["id"], NEWS_SEARCH, detail)


def _isolation(report: Report, one: TenantClient, other: TenantClient) -> None:
    report.step("Isolation: a key gives access only to its own tenant's documents")
    hits = other.search(NEWS_SEARCH, k=1_000, timeout_ms=WAIT_MS)["hits"]
    leaked = [hit["document_id"] for hit in hits if hit["document_id"] in _ids(one)]
    detail = f"{len(hits)} hits of {other.corpus.tenant}, {len(leaked)} of {one.corpus.tenant}"
    report.check(bool(hits) and not leaked, "the same search by the other tenant", detail)
    status = other.http.get(f"/v1/collections/{COLLECTION}/documents/{NEWS['id']}").status_code
    report.check(
        status == httpx2.codes.NOT_FOUND,
        "the document's id requested by the other tenant",
        f"HTTP {status}",
    )
    bare = httpx2.get(one.http.base_url.join("/v1/collections"), trust_env=False).status_code
    report.check(bare == httpx2.codes.UNAUTHORIZED, "without a key", f"HTTP {bare}")


def _ids(client: TenantClient) -> set[str]:
    return {NEWS["id"], *(document["id"] for document in client.corpus.documents(1 << 20))}


def _since_ms(began: float) -> float:
    return (time.monotonic() - began) * 1000
