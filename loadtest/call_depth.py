"""Counts the project functions between the ASGI app and FAISS, for one vector search.

`python loadtest/call_depth.py [index spec]`: runs a platform in this process with one small sealed
collection, searches it once under `sys.setprofile` in all threads, and prints the functions on the
deepest path. The path has two parts: the gateway's, from the ASGI app to `Searcher.submit` on the
event loop, and the searcher's, from a search thread to the call of FAISS.
"""

import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gate import Caller, build, calling  # noqa: E402  (from the folder of the tests)
from resources import eventually, resources_in, running  # noqa: E402  (from the folder of the tests)

from vicinage.settings import GatewaySettings  # noqa: E402

PACKAGES: Final = ("vicinage", "tenants", "ingest", "indexer", "query", "capacity", "cluster")
SETTINGS: Final = GatewaySettings(recall_sample_share=0, recall_samples_min=1)
"""Only the first search is measured, which searches again in the background."""
N: Final = 60
D: Final = 8
SUBMIT: Final = "Searcher.submit"
Names = tuple[str, ...]


class Recorder:
    """Records the deepest stack of project functions at `Searcher.submit`, and at calls of FAISS.

    `profile` is a profile function of `sys.setprofile`; it does nothing until `enabled`.
    """

    def __init__(self) -> None:
        self.enabled = False
        self.gateway: Names = ()
        self.searcher: Names = ()

    def profile(self, frame: FrameType, event: str, _arg: object) -> None:
        """Inspects the stack at each call."""
        if not self.enabled or event != "call":
            return
        if "/faiss/" in frame.f_code.co_filename:
            self.searcher = max(self.searcher, self._searcher_path(frame), key=len)
        elif frame.f_code.co_qualname == SUBMIT:
            self.gateway = max(self.gateway, _path(frame), key=len)

    @staticmethod
    def _searcher_path(frame: FrameType) -> Names:
        path = _path(frame)
        return path if any("query.searcher" in name for name in path) else ()


def _path(frame: FrameType | None) -> Names:
    """Returns the distinct project functions on the stack, the outermost first."""
    names = dict.fromkeys(_names(frame))
    return tuple(reversed(names))


def _names(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PACKAGES:
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            yield f"{module}:{frame.f_code.co_qualname}"
        frame = frame.f_back


def record(spec: str) -> Recorder:
    """Returns the recorded paths of one search of a sealed collection of N documents."""
    recorder = Recorder()
    threading.setprofile(recorder.profile)
    with tempfile.TemporaryDirectory() as folder:
        base = resources_in(Path(folder), seal_passages=N, flat_max=1)
        with (
            running(base) as searcher,
            calling(base, searcher, build(base, [searcher], SETTINGS)) as call,
        ):
            _search(call, spec, recorder)
        base.close()
    return recorder


def _search(call: Caller, spec: str, recorder: Recorder) -> None:
    vectors = np.random.default_rng(0).standard_normal((N, D)).tolist()
    _, key = call.tenant()
    call.collection(key, index=spec, dimension=D)
    call.write(key, [{"id": f"d{i}", "vector": vector} for i, vector in enumerate(vectors)])
    eventually(lambda: _is_sealed(call("GET", "/v1/collections/c", key).json()), wait_s=60)
    call.search(key, vector=vectors[0], k=5)  # loads the shard
    call.portal.call(call.state.recall.settled)
    recorder.enabled = True
    call.search(key, vector=vectors[1], k=5)
    recorder.enabled = False


def _is_sealed(collection: dict[str, dict[str, int]]) -> bool:
    return collection["index"]["segments"] > 0 and collection["index"]["delta_passages"] == 0


def main() -> None:
    """Prints the functions of both parts, and their numbers."""
    recorder = record(sys.argv[1] if len(sys.argv) > 1 else "hnsw:M=8,efc=20")
    for part, path in (("gateway", recorder.gateway), ("searcher", recorder.searcher)):
        print(f"{part}: {len(path)} functions")
        for name in path:
            print(f"  {name}")
    print(f"total: {len(recorder.gateway) + len(recorder.searcher)} functions")


if __name__ == "__main__":
    main()
