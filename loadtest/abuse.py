"""Measures the cost of the worst requests of one client.

`python loadtest/abuse.py [--only WORD]` starts a platform on loopback in a temporary folder and
sends each request of the table for at most LIMIT_S seconds. It prints a line for each: the
duration, the answer, the peak growth of the gateway with its parsers, and the 99th percentile of a
neighbor's vector searches meanwhile.
"""

import argparse
import collections
import contextlib
import gzip
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
import orjson
import psutil
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
from running import Platform, end_when_told, running

ARROW = "application/vnd.apache.arrow.stream"
LIMIT_S = 60.0
N_COLLECTIONS = 488
N_PASSAGES = 10_000
N_READERS = 24
N_UNREAD = 120
WIDE = 4_096
MiB = 1 << 20
QUICK = {"embedder__threads": "1", "embedder__precision": "float32"}
"""No request here needs the embedder, so the platform starts without it."""


def memory(pid: int) -> int:
    """Returns the bytes that a process and those that it started have in memory."""
    process = psutil.Process(pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))


@dataclass
class Watch:
    """Runs searches of a neighbor, one after the other, and watches the gateway's memory."""

    url: str
    key: str
    pid: int
    latencies_ms: list[float] = field(default_factory=list)
    peak: int = 0
    failed: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def search(self) -> None:
        """Searches until told to stop."""
        body = orjson.dumps({"vector": [1, 0, 0, 0], "k": 3})
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        with httpx2.Client(trust_env=False, timeout=LIMIT_S, headers=headers) as http:
            while not self._stop.is_set():
                began = time.perf_counter()
                with contextlib.suppress(httpx2.HTTPError):
                    answer = http.post(f"{self.url}/v1/collections/c/search", content=body)
                    self.failed += answer.status_code != httpx2.codes.OK
                self.latencies_ms.append((time.perf_counter() - began) * 1000)
                self._stop.wait(0.005)

    def weigh(self) -> None:
        """Samples the memory of the gateway and of the processes that it started."""
        while not self._stop.wait(0.02):
            with contextlib.suppress(psutil.Error):
                self.peak = max(self.peak, memory(self.pid))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches while the block runs."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self.search, self.weigh)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def p99_ms(self) -> float:
        """Returns the 99th percentile of the searches: the slowest if there are few."""
        return (
            float(np.percentile(self.latencies_ms, 99, method="higher"))
            if self.latencies_ms
            else float("nan")
        )


@dataclass(frozen=True)
class Target:
    """The platform, and the keys of both tenants."""

    platform: Platform
    key: str
    neighbor: str

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str = "application/json",
        **more: str,
    ) -> str:
        """Sends one request as the abuser. Returns its status, or the reason why there is none."""
        headers = {"authorization": f"Bearer {self.key}", "content-type": kind, **more}
        try:
            found = httpx2.request(
                method,
                self.platform.url + path,
                content=body,
                headers=headers,
                timeout=LIMIT_S,
                trust_env=False,
            )
        except httpx2.HTTPError as error:
            return type(error).__name__
        return str(found.status_code)

    def at_once(self, n: int, send: Callable[[], str]) -> str:
        """Sends n requests at once. Returns how often each status occurred."""
        with ThreadPoolExecutor(n) as pool:
            found = collections.Counter(pool.map(lambda _: send(), range(n)))
        return ", ".join(
            f"{count} x {status}" if count > 1 else status for status, count in found.most_common()
        )


def documents(inner: str, n: int, fragment: str) -> bytes:
    """Returns a body that repeats the fragment n times at %s of `inner`."""
    return (inner % ",".join([fragment] * n)).encode()


def zeros(n: int, dimension: int) -> bytes:
    """Returns a compressed Arrow stream of one document with n zero vectors."""
    flat = pa.FixedSizeListArray.from_arrays(
        pa.array(np.zeros(n * dimension, np.float32)), dimension
    )
    batch = pa.record_batch(
        {"id": ["a"], "vectors": pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), flat)}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_batch(batch)
    made: bytes = sink.getvalue().to_pybytes()
    return made


def unread(target: Target, n: int, path: str) -> str:
    """Requests answers and reads none of them."""
    place = urlsplit(target.platform.url)
    request = (
        f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {target.key}\r\n\r\n".encode()
    )
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((place.hostname, place.port))
            connection.sendall(request)
        time.sleep(10)
    return f"{n} left unread"


def cases(target: Target, n_collections: int) -> dict[str, Callable[[], str]]:
    """Returns every request of the table."""
    path = "/v1/collections/c/documents"
    wrong = '{"documents":[{"id":"a","passages":[%s]}]}'
    bomb = zeros(7_500_000, 4)
    gone = orjson.dumps({"ids": [f"never-{i}" for i in range(10_000)]})
    large = f"{path}/large"
    batch = "/v1/collections/c/search:batch"
    numbers = documents('{"searches":[%s]}', 1_000, documents('{"text":[%s]}', 7_500, "1").decode())
    packed = gzip.compress(b" " * (256 * MiB), 1)
    whole = good(9_000)
    return {
        "1 MB of wrong passages": lambda: target.send("POST", path, documents(wrong, 500_000, "1")),
        "8 MB of wrong passages": lambda: target.send(
            "POST", path, documents(wrong, 4_000_000, "1")
        ),
        "33 MB of empty lists": lambda: target.send(
            "POST", path, documents('{"documents":[%s]}', 11_000_000, "[]")
        ),
        f"{len(bomb) // 1000} kB of compressed zeros, 8 at once": lambda: target.at_once(
            8, lambda: target.send("POST", path, bomb, ARROW)
        ),
        f"{len(whole) >> 20} MB of good documents": lambda: target.send("POST", path, whole),
        f"{len(packed) >> 20} MB of gzip that become 256 MB": lambda: target.send(
            "POST", path, packed, **{"content-encoding": "gzip"}
        ),
        "8 MB batch of empty lists": lambda: target.send(
            "POST", batch, documents('{"searches":[%s]}', 2_700_000, "[]")
        ),
        f"{len(numbers) >> 20} MB batch of 1,000 wrong searches": lambda: target.send(
            "POST", batch, numbers
        ),
        f"10,000 deletions in {WIDE} dimensions": lambda: target.send(
            "POST", "/v1/collections/wide/documents:delete", gone
        ),
        f"a list of {n_collections} collections, 4 readers": lambda: target.at_once(
            4, lambda: target.send("GET", "/v1/collections")
        ),
        f"a document of {N_PASSAGES:,} passages, {N_READERS} readers": lambda: target.at_once(
            N_READERS, lambda: target.send("GET", large)
        ),
        f"{N_UNREAD} answers that are not read": lambda: unread(target, N_UNREAD, large),
    }


def good(n: int) -> bytes:
    """Returns a body of n documents with vectors and texts."""
    document = {
        "id": "x" * 12,
        "vector": [0.5, 0.25, 0.125, 1.0],
        "text": "a word and another " * 300,
    }
    return orjson.dumps({"documents": [document] * n})


def prepared(platform: Platform, n_collections: int) -> Target:
    """Creates two tenants and the data that the requests need."""
    keys = [platform.cli("tenant", "create", name)["key"] for name in ("abuser", "neighbor")]
    for key in keys:
        with httpx2.Client(
            base_url=platform.url,
            headers={"authorization": f"Bearer {key}"},
            timeout=120,
            trust_env=False,
        ) as http:
            http.post("/v1/collections", json={"name": "c", "dimension": 4}).raise_for_status()
            body: dict[str, object] = {
                "documents": [{"id": f"d{i}", "vector": [1, i, 0, 0]} for i in range(1_000)]
            }
            token = (
                http.post("/v1/collections/c/documents", json=body)
                .raise_for_status()
                .json()["token"]
            )
            if key == keys[0]:
                http.post(
                    "/v1/collections", json={"name": "wide", "dimension": WIDE}
                ).raise_for_status()
                for i in range(n_collections):
                    http.post(
                        "/v1/collections", json={"name": f"c{i:03d}", "dimension": 4}
                    ).raise_for_status()
                passages = [f"p{i} " + "\x01" * 90 for i in range(N_PASSAGES)]
                large = {
                    "id": "large",
                    "passages": passages,
                    "vectors": [[1, i, 0, 0] for i in range(N_PASSAGES)],
                }
                written = http.post(
                    "/v1/collections/c/documents", json={"documents": [large]}
                ).raise_for_status()
                token = written.json()["token"]
            search = {"vector": [1, 0, 0, 0], "wait_for": token, "timeout_ms": 60_000}
            http.post("/v1/collections/c/search", json=search).raise_for_status()
    return Target(platform, *keys)


def measured(target: Target, name: str, send: Callable[[], str]) -> str:
    """Measures one line of the table."""
    gateway = target.platform.pids()["gateway"]
    before = memory(gateway)
    stored = sum(f.stat().st_size for f in target.platform.data.rglob("*") if f.is_file())
    watch = Watch(target.platform.url, target.neighbor, gateway)
    with watch.watching():
        time.sleep(0.5)
        watch.latencies_ms.clear()
        began = time.perf_counter()
        outcome = send()
        took_s = time.perf_counter() - began
        time.sleep(0.5)
    grown = sum(f.stat().st_size for f in target.platform.data.rglob("*") if f.is_file()) - stored
    cells = (
        name,
        f"{took_s:.2f}",
        outcome,
        f"{max(0, watch.peak - before) / MiB:.0f}",
        f"{grown / MiB:.1f}",
    )
    return f"| {' | '.join(cells)} | {watch.p99_ms():.0f} |"


def main() -> None:
    """Prints the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="requests whose name has this word")
    options.add_argument("--collections", type=int, default=N_COLLECTIONS)
    given = options.parse_args()
    end_when_told()
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder) / "data", **QUICK) as platform,
    ):
        target = prepared(platform, given.collections)
        print("| request | seconds | answered | memory, MiB | disk, MiB | neighbor's p99, ms |")
        print("|---|---|---|---|---|---|")
        print(measured(target, "none", lambda: time.sleep(5) or "-"), flush=True)
        for name, send in cases(target, given.collections).items():
            if given.only in name:
                print(measured(target, name, send), flush=True)
                time.sleep(3)


if __name__ == "__main__":
    main()
