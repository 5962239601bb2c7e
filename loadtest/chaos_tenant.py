"""One tenant of a chaos run: its writes over HTTP and Kafka, and the model of its documents."""

import json
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
from chaos_model import GONE, Ledger, State, part_of

DIMENSION = 8
ANSWER_S = 30.0
"""Longer than any request may take: a missing answer is a finding."""
SEND_S = 8.0
"""Time in which the producer tries to send a record.

A restarted broker answers within that time; otherwise the outcome of the write is unknown.
"""
BOOTSTRAP_MS = 3_000
"""Time in which the producer looks for a broker before a record is not sent.

By default kafka-python looks for 30 s, at each call.
"""
K = 1_000
Pairs = Sequence[tuple[str, State]]


def vector_of(number: int) -> list[float]:
    """Returns the vector of the document that this write makes. The number alone determines it."""
    made: list[float] = np.random.default_rng(number).standard_normal(DIMENSION).round(4).tolist()
    return made


@dataclass
class Collection:
    """A collection of vectors, or of texts if it has a model."""

    name: str
    model: str | None
    ledger: Ledger = field(default_factory=Ledger)

    def document(self, name: str, number: int, *, padding: int = 0) -> dict[str, Any]:
        """Returns the document that the write `number` makes."""
        metadata = {"n": number, "part": part_of(number), "padding": "x" * padding}
        if self.model:
            return {"id": name, "text": f"w{number} {name}", "metadata": metadata}
        return {"id": name, "vector": vector_of(number), "metadata": metadata}

    def query(self, name: str, number: int, *, mode: str = "dense") -> dict[str, Any]:
        """Returns the search whose first hit is the document of this write."""
        if mode == "lexical":
            return {"text": f"w{number}", "mode": mode}
        return {"text": f"w{number} {name}"} if self.model else {"vector": vector_of(number)}


@dataclass
class Tenant:
    """The tenant's key, collections and clients.

    Every method sends a request once, without a retry that the model would not see.
    """

    name: str
    key: str
    url: str
    brokers: str
    collections: list[Collection] = field(default_factory=list)
    last: str = ""
    """The last answer other than 202."""
    refused: bool = False
    """Whether it was a 4xx: then nothing was written, and nothing will be."""
    slow: list[str] = field(default_factory=list)
    """Requests without an answer within ANSWER_S."""
    _producer: Any = None

    def __post_init__(self) -> None:
        self.http = httpx2.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {self.key}"},
            timeout=ANSWER_S,
            trust_env=False,
        )

    @property
    def topic(self) -> str:
        """Returns the tenant's documents topic."""
        return f"vicinage.docs.{self.name}"

    # writing

    def write(self, collection: Collection, pairs: Pairs, *, padding: int = 0) -> str | None:
        """POSTs documents. Returns the token; None if they were not acknowledged."""
        documents = [
            collection.document(name, n, padding=padding) for name, n in pairs if n is not None
        ]
        answer = self._post(collection, "documents", {"documents": documents})
        if answer is not None and answer["rejected"]:
            raise AssertionError(f"rejected: {answer['rejected']}")
        self._note(collection, pairs, answer, "http")
        return answer["token"] if answer else None

    def delete(self, collection: Collection, names: Sequence[str]) -> None:
        """Deletes by ID."""
        answer = self._post(collection, "documents:delete", {"ids": list(names)})
        self._note(collection, [(name, GONE) for name in names], answer, "http")

    def delete_part(self, collection: Collection, part: int) -> None:
        """Deletes by filter."""
        answer = self._post(collection, "documents:delete", {"filter": {"part": part}})
        note = f"judged {answer['judged']}, {answer['token']}" if answer else self.last[:60]
        if answer is not None or not self.refused:
            collection.ledger.deleted_part(part, acknowledged=answer is not None, note=note)

    def race(self, collection: Collection, part: int, pairs: Pairs) -> None:
        """Deletes by filter while it writes."""
        before = {name: collection.ledger.may_be(name) for name in collection.ledger.ids()}
        body = {"filter": {"part": part}}
        with ThreadPoolExecutor(1) as pool:
            deleting = pool.submit(self._post, collection, "documents:delete", body)
            for pair in pairs:
                self.write(collection, [pair])
            done = deleting.result()
        if done is None:
            collection.ledger.deleted_part(part, acknowledged=False, note="raced, no answer")
        else:
            collection.ledger.raced(part, before, [name for name, _ in pairs])

    def produce(self, collection: Collection, pairs: Pairs) -> None:
        """Sends documents and deletions with a Kafka producer; waits for each acknowledgment."""
        for name, n in pairs:
            if (future := self._send(collection, name, n)) is None:
                continue
            try:
                at = future.get(timeout=SEND_S)
                known = len(self._producer_now().partitions_for(self.topic) or ())
                note = f"kafka {at.partition}-{at.offset} of {known}"
                collection.ledger.wrote(name, n, acknowledged=True, note=note)
            except Exception as error:  # noqa: BLE001  (the outcome of the write is unknown, whatever the error)
                self.last = f"kafka: {error}"
                collection.ledger.wrote(
                    name, n, acknowledged=False, note=f"kafka {type(error).__name__}"
                )
                self.reconnect()

    def produce_raw(self, value: bytes | None, key: bytes | None = None, headers: Any = ()) -> None:
        """Sends a record that is not a document of the model."""
        with suppress(Exception):
            self._producer_now().send(self.topic, key=key, value=value, headers=list(headers)).get(
                timeout=SEND_S
            )

    def _send(self, collection: Collection, name: str, n: State) -> Any:
        """Returns the future of a record; None if the producer refuses it without a write."""
        value = None
        if n is not GONE:
            value = json.dumps(
                {"collection": collection.name, **collection.document(name, n)}
            ).encode()
        try:
            return self._producer_now().send(
                self.topic, key=f"{collection.name}/{name}".encode(), value=value
            )
        except Exception as error:  # noqa: BLE001  (no such topic, no broker)
            self.last = f"kafka: {error}"
            self.reconnect()
            return None

    def _producer_now(self) -> Any:
        from kafka import KafkaProducer

        if self._producer is None:
            self._producer = KafkaProducer(
                bootstrap_servers=self.brokers,
                acks="all",
                linger_ms=0,
                max_block_ms=3_000,
                delivery_timeout_ms=int(SEND_S * 1_000),
                request_timeout_ms=5_000,
                max_request_size=16 << 20,
                bootstrap_timeout_ms=BOOTSTRAP_MS,
            )
        return self._producer

    def reconnect(self) -> None:
        """Drops the producer, so that the next one reads the topic as it is then.

        Nothing is left in flight.
        """
        if self._producer is not None:
            with suppress(Exception):
                self._producer.close(timeout=1)
        self._producer = None

    def close(self) -> None:
        """Closes the connections."""
        self.reconnect()
        self.http.close()

    def _post(self, collection: Collection, what: str, body: Mapping[str, Any]) -> Any:
        """Returns the answer to a write; None unless it was 202."""
        began, self.refused = time.monotonic(), False
        try:
            answer = self.http.post(f"/v1/collections/{collection.name}/{what}", json=body)
        except httpx2.HTTPError as error:
            self.last = f"{type(error).__name__} {error}"
            if time.monotonic() - began > ANSWER_S - 1:
                self.slow.append(f"{what} of {self.name}/{collection.name}: {self.last}")
            return None
        if answer.status_code != httpx2.codes.ACCEPTED:
            self.last, self.refused = (
                f"{answer.status_code} {answer.text[:300]}",
                answer.is_client_error,
            )
            return None
        return answer.json()

    def _note(self, collection: Collection, pairs: Pairs, answer: Any, way: str) -> None:
        if answer is None and self.refused:
            return
        note = f"{way} {answer['token']}" if answer else f"{way} {self.last[:60]}"
        for name, n in pairs:
            collection.ledger.wrote(name, n, acknowledged=answer is not None, note=note)

    # reading

    def look(self, collection: Collection, wait_s: float) -> dict[str, int]:
        """Returns ID → state of every document, once everything acknowledged is searchable.

        Raises TimeoutError if it is not within `wait_s`, or if all answers are degraded. Raises
        AssertionError if a document is found twice or the counts differ.
        """
        end = time.monotonic() + wait_s
        body = {
            "vector": vector_of(0),
            "k": K,
            "exact": True,
            "include": ["metadata"],
            "wait_for": "latest",
        }
        while True:
            left_s = max(0.5, end - time.monotonic())
            said = self._ask(collection, {**body, "timeout_ms": round(min(5.0, left_s) * 1_000)})
            if isinstance(said, list):
                break
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name}/{collection.name} after {wait_s:.0f} s: {said}")
            time.sleep(0.05)
        seen = {hit["document_id"]: int(hit["metadata"]["n"]) for hit in said}
        assert len(seen) == len(said), f"{self.name}/{collection.name}: documents found twice"
        counts = self._counts(collection, end)
        assert counts["documents"] == counts["passages"] == len(seen), (
            self.name,
            collection.name,
            counts,
            len(seen),
        )
        return seen

    def _ask(self, collection: Collection, body: Mapping[str, Any]) -> list[Any] | str:
        """Returns the hits of a search, or the reason why there are none."""
        try:
            answer = self.http.post(f"/v1/collections/{collection.name}/search", json=body)
        except httpx2.HTTPError as error:
            return f"{type(error).__name__} {error}"
        if answer.status_code != httpx2.codes.OK:
            return f"{answer.status_code} {answer.text[:400]}"
        found = answer.json()
        return f"degraded: {found['degraded']}" if found["degraded"] else list(found["hits"])

    def _counts(self, collection: Collection, end: float) -> dict[str, Any]:
        while True:
            with suppress(httpx2.HTTPError, KeyError):
                facts = self.http.get(f"/v1/collections/{collection.name}?wait_for=latest").json()
                if not facts["counts"]["at_least"] or time.monotonic() > end:
                    return dict(facts["counts"])
            if time.monotonic() > end:
                return {"documents": -1, "passages": -1}
            time.sleep(0.1)

    def probe(
        self, collection: Collection, seen: Mapping[str, int], choose: random.Random
    ) -> list[str]:
        """Returns errors of one document, by ID and by its words, and of a deleted one."""
        wrong = []
        gone = sorted(set(collection.ledger.ids()) - seen.keys())
        for name in ([choose.choice(sorted(seen))] if seen else []) + (
            [choose.choice(gone)] if gone else []
        ):
            answer = self.http.get(f"/v1/collections/{collection.name}/documents/{name}")
            found = (
                answer.json()["metadata"]["n"] if answer.status_code == httpx2.codes.OK else GONE
            )
            if found != seen.get(name):
                wrong.append(
                    f"reading {name}: {answer.status_code} {found}, the search had {seen.get(name)}"
                )
        if seen:
            name, n = choose.choice(sorted(seen.items()))
            modes = ["dense", "lexical"] if collection.model else ["dense"]
            for mode in modes:
                body = {**collection.query(name, n, mode=mode), "k": 1, "include": ["metadata"]}
                hits = self._ask(collection, body)
                if isinstance(hits, str) or [h["document_id"] for h in hits] != [name]:
                    wrong.append(f"{mode} search for {n} of {name}: {str(hits)[:300]}")
        return wrong
