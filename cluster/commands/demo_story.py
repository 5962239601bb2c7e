"""The story that `vicinage demo` tells: two tenants, real documents, searches, freshness and isolation on a platform of its own."""

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
WITHIN: Final = 3
"""The answer that a question is known to have is among so many hits."""
WAIT_MS: Final = 600_000
"""The most that a search may wait: a machine that is busy embeds slowly."""
START_S: Final = 650.0
"""A little longer than `vicinage up --detach` waits."""
NEWS: Final = {
    "id": "news",
    "text": "The ferry to the northern islands leaves at seven from pier four.",
}
NEWS_QUESTION: Final = "when does the boat leave?"
Tell = Callable[[str], None]


@dataclass(slots=True)
class Story:
    """What was found to hold, in order; `tell` hears of each line at once."""

    tell: Tell
    checks: list[dict[str, Any]] = field(default_factory=list)

    def step(self, title: str) -> None:
        """Tells what begins now."""
        self.tell(f"\n{title}")

    def check(self, held: bool, what: str, detail: str) -> None:
        """Notes whether something held."""
        self.checks.append({"check": what, "ok": held, "detail": detail})
        self.tell(f"  {'ok    ' if held else 'FAILED'} {what}: {detail}")

    def ok(self) -> bool:
        """Returns whether all of it held."""
        return all(check["ok"] for check in self.checks)


@dataclass(frozen=True, slots=True)
class Side:
    """A tenant as an application sees the platform: by its own key alone."""

    corpus: Corpus
    http: httpx2.Client

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON. Raises httpx2.HTTPStatusError for a refusal."""
        response = self.http.request(method, f"/v1/collections/{COLLECTION}{path}", json=body)
        response.raise_for_status()
        return response.json()

    def search(self, text: str, **more: Any) -> dict[str, Any]:
        """Returns what a search for a text answers."""
        found: dict[str, Any] = self.call(
            "POST", "/search", {"text": text, "k": WITHIN, "timeout_ms": WAIT_MS, **more}
        )
        return found


def run_demo(data: Path, port: int, n_documents: int, tell: Tell) -> Story:
    """Starts a platform on `data`, tells its story, and stops it.

    Raises Unavailable where it does not start.
    """
    story = Story(tell)
    began = time.monotonic()
    story.step(
        f"Starting a platform in {data}: gateway with searcher, ingest with indexer, embedder"
    )
    with _platform(data, port) as url:
        story.check(True, "ready", f"{url} after {time.monotonic() - began:.0f} s")
        try:
            _told(story, url, Operator(data, None, None), n_documents)
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"the platform did not answer as it should: {error}", dependency="gateway"
            ) from error
    return story


def _told(story: Story, url: str, operator: Operator, n_documents: int) -> None:
    sides = [_side(operator, url, corpus) for corpus in CORPORA]
    try:
        tokens = [_index(story, side, n_documents) for side in sides]
        for side, token in zip(sides, tokens, strict=True):
            _search(story, side, token)
        _freshness(story, sides[0])
        _isolation(story, *sides)
    finally:
        for side in sides:
            side.http.close()


@contextmanager
def _platform(data: Path, port: int) -> Iterator[str]:
    """A platform with default settings, whatever this process's environment and directory set."""
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


def _side(operator: Operator, url: str, corpus: Corpus) -> Side:
    key = operator.call("POST", "/tenants", {"name": corpus.tenant})["key"]
    operator.call("POST", f"/tenants/{corpus.tenant}/collections", {"name": COLLECTION})
    http = httpx2.Client(
        base_url=url,
        headers={"authorization": f"Bearer {key}"},
        timeout=WAIT_MS / 1000 + 10,
        trust_env=False,
    )
    return Side(corpus, http)


def _index(story: Story, side: Side, limit: int) -> str:
    documents = side.corpus.documents(limit)
    story.step(
        f"Tenant {side.corpus.tenant}: {len(documents)} docstrings into its collection {COLLECTION}"
    )
    began = time.monotonic()
    written = side.call("POST", "/documents", {"documents": documents})
    story.check(
        written["accepted"] == len(documents),
        "durable",
        f"{_since_ms(began):.0f} ms, token {written['token']}",
    )
    token: str = written["token"]
    side.search("any", wait_for=token)
    story.check(True, "chunked, embedded and searchable", f"{time.monotonic() - began:.1f} s")
    return token


def _search(story: Story, side: Side, token: str) -> None:
    story.step(f"Questions of tenant {side.corpus.tenant}")
    for question, answer in side.corpus.answers:
        began = time.monotonic()
        hits = side.search(question, wait_for=token)["hits"]
        took = _since_ms(began)
        found = [hit["document_id"] for hit in hits]
        best = f"{found[0]} ({hits[0]['score']:.2f}), {took:.0f} ms" if hits else "nothing"
        story.check(any(name.startswith(answer) for name in found), question, best)


def _freshness(story: Story, side: Side) -> None:
    story.step("Freshness: a search waits for a write that it names by its token")
    began = time.monotonic()
    token = side.call("POST", "/documents", {"documents": [NEWS]})["token"]
    found = side.search(NEWS_QUESTION, wait_for=token)
    first = found["hits"][0]["document_id"] if found["hits"] else "nothing"
    detail = f"{first} found {_since_ms(began):.0f} ms after it was sent; lag {found['freshness']['lag_ms']} ms"
    story.check(first == NEWS["id"], NEWS_QUESTION, detail)


def _isolation(story: Story, one: Side, other: Side) -> None:
    story.step("Isolation: a key reaches its own tenant's documents, and no others")
    hits = other.search(NEWS_QUESTION, k=1_000, timeout_ms=WAIT_MS)["hits"]
    strangers = [hit["document_id"] for hit in hits if hit["document_id"] in _ids(one)]
    detail = f"{len(hits)} hits of {other.corpus.tenant}, {len(strangers)} of {one.corpus.tenant}"
    story.check(bool(hits) and not strangers, "the same question by the other tenant", detail)
    status = other.http.get(f"/v1/collections/{COLLECTION}/documents/{NEWS['id']}").status_code
    story.check(
        status == httpx2.codes.NOT_FOUND,
        "the other tenant asks for the document by its id",
        f"HTTP {status}",
    )
    bare = httpx2.get(one.http.base_url.join("/v1/collections"), trust_env=False).status_code
    story.check(bare == httpx2.codes.UNAUTHORIZED, "without a key", f"HTTP {bare}")


def _ids(side: Side) -> set[str]:
    return {NEWS["id"], *(document["id"] for document in side.corpus.documents(1 << 20))}


def _since_ms(began: float) -> float:
    return (time.monotonic() - began) * 1000
