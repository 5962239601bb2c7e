"""Disk under steady updates and deletions: how many bytes the log and the store take, and the gateway's memory and files.

`python loadtest/disk.py [--seconds 600] [--updates 200] [--deletions 20] [--documents 20000] [--rest 120]`:
a platform of its own, one collection of vectors. Prints a line every ten seconds, and at the end the bytes at rest as multiples of the living data.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import running

D = 384
EVERY_S = 10.0


def disk(data: Path) -> dict[str, float]:
    """Megabytes of the log, its write-ahead log, and the store."""

    def size(*files: Path) -> float:
        found = 0
        for file in files:
            with suppress(FileNotFoundError):  # deleted while it is looked at
                found += file.lstat().st_size if not file.is_dir() else 0
        return found / 1e6

    store = size(*(data / "store").rglob("*"))
    return {"log": size(data / "log.db"), "wal": size(data / "log.db-wal"), "store": store}


def line(seconds: float, data: Path, gateway: psutil.Process, sent: int) -> None:
    """Prints one measurement."""
    sizes = " ".join(f"{name} {mb:.1f}" for name, mb in disk(data).items())
    memory = gateway.memory_info().rss / 1e6
    print(
        f"{seconds:6.0f} s  {sent} writes  MB: {sizes}  gateway: {memory:.0f} MB, {gateway.num_fds()} files", flush=True
    )


def write(client: Any, names: list[str], chance: np.random.Generator) -> None:
    """Writes a document of each name."""
    vectors = chance.standard_normal((len(names), D)).astype(np.float32)
    body = [{"id": n, "vector": v.tolist()} for n, v in zip(names, vectors, strict=True)]
    client.post("/v1/collections/c/documents", json={"documents": body}).raise_for_status()


def updates(asked: argparse.Namespace, client: Any, show: Callable[[float, int], None]) -> None:
    """Updates and deletes documents at the rates that were asked, a tenth of a second's at once."""
    chance, dice = np.random.default_rng(1), random.Random(0)
    names = [f"d{i}" for i in range(asked.documents)]
    began = shown = time.monotonic()
    sent = 0
    while (now := time.monotonic()) - began < asked.seconds:
        write(client, dice.sample(names, asked.updates // 10), chance)
        gone = dice.sample(names, asked.deletions // 10)
        client.post("/v1/collections/c/documents:delete", json={"ids": gone}).raise_for_status()
        sent += asked.updates // 10 + len(gone)
        if now - shown >= EVERY_S:
            shown = now
            show(now - began, sent)
        time.sleep(max(0.0, 0.1 - (time.monotonic() - now)))


def measure(asked: argparse.Namespace, platform: running.Platform) -> None:
    """Fills a collection, updates it, and says what lies on the disk, meanwhile and at rest."""
    made = platform.cli("tenant", "create", "disk")
    headers = {"authorization": f"Bearer {made['key']}"}
    gateway = psutil.Process(platform.pids()["gateway"])
    with httpx.Client(base_url=platform.url, headers=headers, timeout=30, trust_env=False) as client:
        client.post("/v1/collections", json={"name": "c", "dimension": D}).raise_for_status()
        for at in range(0, asked.documents, 500):
            write(client, [f"d{i}" for i in range(at, min(at + 500, asked.documents))], np.random.default_rng(at))
        updates(asked, client, lambda seconds, sent: line(seconds, platform.data, gateway, sent))
        time.sleep(asked.rest)
        line(asked.seconds + asked.rest, platform.data, gateway, 0)
        count = client.get("/v1/collections/c").json()["counts"]["documents"]
    living, total = count * D * 4 / 1e6, sum(disk(platform.data).values())
    print(f"{count} documents, {living:.1f} MB living; {total:.1f} MB on disk: {total / living:.1f} times")


def main() -> None:
    """Measures with what the command line says."""
    words = argparse.ArgumentParser(description=__doc__)
    known = {"seconds": 600, "updates": 200, "deletions": 20, "documents": 20_000, "rest": 120}
    for name, value in known.items():
        words.add_argument(f"--{name}", type=int, default=value)
    running.end_when_told()
    with tempfile.TemporaryDirectory(prefix="vicinage-disk-") as folder, running.running(Path(folder)) as platform:
        measure(words.parse_args(), platform)


if __name__ == "__main__":
    main()
