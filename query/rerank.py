"""Reranks the best hits of a search with a cross-encoder, which reads each hit with the query text.

The server speaks the API of text-embeddings-inference, `POST /rerank`. The platform's own embedder
role speaks it, and so do other servers.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import aiohttp
import numpy as np
import orjson

from ingest.embedding.http_client import Requests, embedder_headers
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Overloaded, Unavailable
from vicinage.records import Floats, Hit, Mode
from vicinage.tenant_context import TenantContext

SHARE: Final = 0.8
"""Share of a search's remaining time that reranking may take.

The rest is for an answer without reranking.
"""


class Reranker(Protocol):
    """Scores passages for a query text."""

    async def scores(
        self,
        query: str,
        passages: Sequence[str],
        *,
        tenant: TenantContext,
        deadline: Deadline,
    ) -> Floats:
        """Returns float32 [n] in the order of `passages`; a greater score means a nearer passage.

        Raises Unavailable, Overloaded.
        """
        ...

    async def aclose(self) -> None:
        """Closes the connections. Idempotent."""
        ...


def reranked(hits: Sequence[Hit], scores: Floats, mode: Mode) -> tuple[Hit, ...]:
    """Returns the hits in the order of `scores`. Pure.

    `scores` has one score for each hit with a text, in the order of the hits. Hits without
    a text come last, with a score of 0. The score that a hit was found by stays beside the new one.
    """
    new = iter(scores.tolist())
    read = [_scored(hit, next(new) if hit.text is not None else 0.0, mode) for hit in hits]
    return tuple(sorted(read, key=lambda hit: (hit.text is None, -hit.score)))


def _scored(hit: Hit, score: float, mode: Mode) -> Hit:
    if mode == "dense":
        return hit._replace(score=score, dense_score=hit.score)
    return (
        hit._replace(score=score, lexical_score=hit.score)
        if mode == "lexical"
        else hit._replace(score=score)
    )


class TeiReranker:
    """The `/rerank` endpoint of a server. Belongs to one event loop.

    `ours` means that the server is the platform's embedder role. Only that server gets the tenant,
    the weight and the deadline.
    """

    def __init__(self, url: str, *, key: str | None, ours: bool = False) -> None:
        self._url = f"{url.rstrip('/')}/rerank"
        self._ours = ours
        self._requests = Requests(self._url, key)

    async def scores(
        self,
        query: str,
        passages: Sequence[str],
        *,
        tenant: TenantContext,
        deadline: Deadline,
    ) -> Floats:
        """Implements Reranker.scores."""
        left_s = deadline.left_s() * SHARE
        if not left_s:  # aiohttp reads 0 as no limit
            raise DeadlineExceeded("no time was left to rerank", dependency="reranker")
        body = orjson.dumps({"query": query, "texts": list(passages), "truncate": True})
        headers = embedder_headers(tenant, left_s) if self._ours else {}
        try:
            status, _, content = await self._requests.post(body, headers, left_s)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the reranker did not answer in time", dependency="reranker"
            ) from error
        except aiohttp.ClientError as error:
            raise Unavailable(
                f"the reranker cannot be reached: {error}", dependency="reranker"
            ) from error
        return self._read(status, content, len(passages))

    def _read(self, status: int, content: bytes, n: int) -> Floats:
        """Returns the n scores of a response. Raises Overloaded, Unavailable.

        An invalid response is an error of the server, never of the search request.
        """
        if status == Overloaded.status:
            raise Overloaded("the reranker is busy")
        scores = np.full(n, np.nan, np.float32)
        try:
            for line in orjson.loads(content) if status == 200 else ():
                scores[line["index"]] = line["score"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Unavailable(
                f"{self._url} returned an invalid ranking: {error!r}", dependency="reranker"
            ) from error
        if not np.isfinite(scores).all():
            start = content[:200].decode(errors="replace")
            raise Unavailable(
                f"{self._url} answered {status} without a score for each text: {start}",
                dependency="reranker",
            )
        return scores

    async def aclose(self) -> None:
        """Closes the connections. Idempotent."""
        await self._requests.aclose()
