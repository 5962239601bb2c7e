"""A bounded load of keep-alive clients, each in its own process, with prepared bodies.

A client costs as little as possible (http.client, bodies prepared in advance), so that the figures
are those of the server.
"""

import http.client
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import numpy as np
import psutil
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Request:
    """One prepared POST."""

    path: str
    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a load. `bodies[i]` is the answer to request i; times are in milliseconds."""

    n: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float
    bodies: list[bytes]
    times_ms: NDArray[np.float64]

    @property
    def per_s(self) -> float:
        """Returns answers a second."""
        return self.n / self.seconds


def run(
    url: str, key: str, requests: Sequence[Request], *, clients: int, server_pids: Sequence[int]
) -> Load:
    """Sends every request once, spread over `clients` processes.

    `server_cpu_ms` is the CPU time a request of `server_pids`.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for i in range(clients):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_client, args=(theirs, url, key, list(requests[i::clients])), daemon=True
        )
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()  # started
    cpu_before, start = cpu_seconds(server_pids), time.perf_counter()
    for pipe in pipes:
        pipe.send("go")
    results = [pipe.recv() for pipe in pipes]
    seconds = time.perf_counter() - start
    cpu = cpu_seconds(server_pids) - cpu_before
    for process in processes:
        process.join(10)
    bodies: list[bytes] = [b""] * len(requests)
    for i, (_, _, answers) in enumerate(results):
        bodies[i::clients] = answers
    times = np.concatenate([np.asarray(t) for t, _, _ in results]) * 1e3
    return Load(
        n=len(requests),
        errors=sum(e for _, e, _ in results),
        seconds=seconds,
        p50_ms=float(np.percentile(times, 50)),
        p99_ms=float(np.percentile(times, 99)),
        server_cpu_ms=cpu / len(requests) * 1e3,
        bodies=bodies,
        times_ms=times,
    )


def cpu_seconds(pids: Sequence[int]) -> float:
    """Returns the user and system CPU time that these processes have used so far."""
    return sum(t.user + t.system for t in (psutil.Process(pid).cpu_times() for pid in pids))


def _client(pipe: Connection, url: str, key: str, requests: list[Request]) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
    pipe.send("ready")
    pipe.recv()
    # not before: the server ends connections that stay idle while others start
    connection.connect()
    times, errors, answers = [], 0, []
    for request in requests:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": request.content_type}
        start = time.perf_counter()
        connection.request("POST", request.path, request.body, headers)
        response = connection.getresponse()
        body = response.read()
        times.append(time.perf_counter() - start)
        errors += response.status != 200
        answers.append(body)
    pipe.send((times, errors, answers))
