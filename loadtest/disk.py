"""Measures disk use by part under steady updates and deletions, and at rest after them.

    python loadtest/disk.py [--seconds 600] [--updates 200] [--deletions 20]
                            [--documents 20000] [--rest 600]

It starts a platform with one collection of vectors. It prints a line every ten seconds, and at the
end the bytes of each phase, with the gateway's memory and open files.

Living data are what a client would have to write again: the float32 vectors, texts and metadata of
the documents that the collection counts. IDs, versions, indexes and copies are not living data. A
document here is a vector alone.
"""

import argparse
import random
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx2
import numpy as np
import orjson
import psutil
import pyarrow as pa
import running

D: Final = 384
EVERY_S: Final = 10.0
BATCH_MAX: Final = 500
"""Documents of one request."""
OFFSET_BITS: Final = 40
"""Bits of a record's row ID in the log that are its offset within the partition."""


def size(*files: Path) -> int:
    """Returns the bytes of those of the files that exist."""
    found = 0
    for file in files:
        with suppress(FileNotFoundError):  # deleted meanwhile
            found += file.lstat().st_size if not file.is_dir() else 0
    return found


def opened(database: Path) -> closing[sqlite3.Connection]:
    """Opens a database for reading."""
    return closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30))


def of_log(database: Path) -> Counter[str]:
    """Returns the bytes of the log's file by the kind of topic.

    Bytes that are neither a record's nor free are page overhead.
    """
    sizes = "SELECT id >> ?, sum(length(value) + coalesce(length(key), 0)) FROM records GROUP BY 1"
    found: Counter[str] = Counter()
    with opened(database) as log:
        topics = dict(log.execute("SELECT id, topic FROM partitions"))
        for number, n in log.execute(sizes, (OFFSET_BITS,)).fetchall():
            found[f"log {topics[number].split('.')[1]}" if number in topics else "log other"] += n
        free, page, pages = (
            log.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("freelist_count", "page_size", "page_count")
        )
    found["log free"] = free * page
    found["log pages"] = max(0, pages * page - found.total())
    return found


def named(catalog: Path) -> dict[str, str]:
    """Returns path → role of every object that a manifest names."""
    with opened(catalog) as c:
        rows = c.execute("SELECT segments FROM manifests").fetchall()
    segments = [segment for (text,) in rows for segment in orjson.loads(text)]
    return {o["path"]: role for segment in segments for role, o in segment["objects"].items()}


def disk(data: Path) -> Counter[str]:
    """Returns the bytes of all files in the data directory, by part."""
    current = named(data / "catalog.db")
    found = of_log(data / "log.db")
    store = data / "store"
    for file in store.rglob("*"):
        role = current.get(str(file.relative_to(store)))
        found[f"segments {role}" if role else "superseded"] += size(file)
    found["log wal"] = size(data / "log.db-wal")
    found["catalog"] = size(data / "catalog.db", data / "catalog.db-wal")
    found["cache"] = size(*(data / "cache").rglob("*"))
    found["run"] = size(*(data / "run").rglob("*"))
    return found


class Phases:
    """The measurements of each phase, printed as they are taken."""

    def __init__(self, data: Path, gateway: psutil.Process, living: Callable[[], int]) -> None:
        self._data, self._gateway, self._living = data, gateway, living
        self._seen: dict[str, list[tuple[Counter[str], int]]] = {}
        self._began = time.monotonic()

    def look(self, phase: str) -> None:
        """Measures once, and prints the result."""
        parts, living = disk(self._data), max(1, self._living())
        self._seen.setdefault(phase, []).append((parts, living))
        memory = self._gateway.memory_info()
        print(
            f"{phase:8} {time.monotonic() - self._began:5.0f} s  {parts.total() / living:5.1f} "
            "times  gateway "
            f"{memory.rss / 1e6:.0f} MB ({memory.shared / 1e6:.0f} of files), "
            f"{self._gateway.num_fds()} descriptors"
            f"  MB: {described(parts)}",
            flush=True,
        )

    def summary(self) -> None:
        """Prints the ratios of each phase, and the parts at its peak and at its end."""
        for phase, looks in self._seen.items():
            ratios = [parts.total() / living for parts, living in looks]
            parts, living = max(looks, key=lambda look: look[0].total() / look[1])
            print(
                f"{phase}: times the living data: peak {max(ratios):.1f}, p50 "
                f"{median(ratios):.1f}, last {ratios[-1]:.1f}"
            )
            print(f"  at the peak, MB: living {living / 1e6:.1f}; {described(parts)}")
            print(f"  at the last, MB: living {looks[-1][1] / 1e6:.1f}; {described(looks[-1][0])}")


def described(parts: Counter[str]) -> str:
    """Returns the parts in megabytes, the largest first, without those below a twentieth of one."""
    return ", ".join(f"{name} {n / 1e6:.1f}" for name, n in parts.most_common() if n >= 5e4)


def write(client: httpx2.Client, names: list[str], chance: np.random.Generator) -> None:
    """Writes a document for each name, as Arrow, which costs the machine the least."""
    numbers = pa.array(chance.standard_normal(len(names) * D).astype(np.float32))
    batch = pa.record_batch({"id": names, "vector": pa.FixedSizeListArray.from_arrays(numbers, D)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    path, headers = (
        "/v1/collections/c/documents",
        {"content-type": "application/vnd.apache.arrow.stream"},
    )
    client.post(path, content=sink.getvalue().to_pybytes(), headers=headers).raise_for_status()


def updates(options: argparse.Namespace, client: httpx2.Client, look: Callable[[], None]) -> None:
    """Updates and deletes documents at the given rates, and searches up to ten times a second.

    Prints the reached rates: a busy machine may be slower.
    """
    chance, dice = np.random.default_rng(1), random.Random(0)
    names = [f"d{i}" for i in range(options.documents)]
    began = shown = time.monotonic()
    written = deleted = 0
    while (seconds := (now := time.monotonic()) - began) < options.seconds:
        due = min(int(seconds * options.updates) - written, BATCH_MAX)
        if due > 0:
            write(client, dice.sample(names, due), chance)
            written += due
        gone = dice.sample(
            names, max(0, min(int(seconds * options.deletions) - deleted, BATCH_MAX))
        )
        if gone:
            client.post("/v1/collections/c/documents:delete", json={"ids": gone}).raise_for_status()
            deleted += len(gone)
        search = {"vector": chance.standard_normal(D).tolist(), "k": 10}
        client.post("/v1/collections/c/search", json=search).raise_for_status()
        if now - shown >= EVERY_S:
            shown = now
            look()
        time.sleep(max(0.0, 0.1 - (time.monotonic() - now)))
    took_s = time.monotonic() - began
    print(
        f"{written / took_s:.0f} updates and {deleted / took_s:.0f} deletions a second were "
        "reached",
        flush=True,
    )


def rest(options: argparse.Namespace, look: Callable[[], None]) -> None:
    """Measures without writes."""
    end = time.monotonic() + options.rest
    while time.monotonic() < end:
        time.sleep(min(EVERY_S, max(0.0, end - time.monotonic())))
        look()


def measure(options: argparse.Namespace, platform: running.Platform) -> None:
    """Fills a collection, updates it, and reports the disk use meanwhile and at rest."""
    made: dict[str, Any] = platform.cli("tenant", "create", "disk")
    headers = {"authorization": f"Bearer {made['key']}"}
    gateway = psutil.Process(platform.pids()["gateway"])
    with httpx2.Client(
        base_url=platform.url, headers=headers, timeout=30, trust_env=False
    ) as client:

        def living() -> int:
            return 4 * D * int(client.get("/v1/collections/c").json()["counts"]["documents"])

        client.post("/v1/collections", json={"name": "c", "dimension": D}).raise_for_status()
        for at in range(0, options.documents, 500):
            write(
                client,
                [f"d{i}" for i in range(at, min(at + 500, options.documents))],
                np.random.default_rng(at),
            )
        phases = Phases(platform.data, gateway, living)
        updates(options, client, lambda: phases.look("updates"))
        rest(options, lambda: phases.look("rest"))
    phases.summary()


def main() -> None:
    """Measures with the options of the command line."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {"seconds": 600, "updates": 200, "deletions": 20, "documents": 20_000, "rest": 600}
    for name, value in known.items():
        words.add_argument(f"--{name}", type=int, default=value)
    running.end_when_told()
    with (
        tempfile.TemporaryDirectory(prefix="vicinage-disk-") as folder,
        running.running(Path(folder)) as platform,
    ):
        measure(words.parse_args(), platform)


if __name__ == "__main__":
    main()
