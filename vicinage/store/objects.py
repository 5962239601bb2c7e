"""What a store promises, and what all stores share: paths, checksums, and words for a store that is away."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

import pyarrow as pa

from vicinage.errors import Corrupt, NotFound, Refused, Unavailable
from vicinage.records import ObjectRef

CHUNK: Final = 4 << 20
VERIFIED_MAX: Final = 100_000
"""Files that are known to be whole: about 50 MB."""
_Verified = tuple[str, int, str]
"""A file, its bytes, and its checksum."""
Keep = Callable[[], Container[str]]
"""Says which objects a sweep keeps."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What `list` knows of an object."""

    path: str
    bytes: int
    modified_ms: int


class Store(Protocol):
    """Objects by path. Safe for many threads and processes."""

    def put(self, path: str, source: bytes | Path) -> ObjectRef:
        """Write an object; durable and visible as a whole on return. Raises Conflict if the path is taken."""
        ...

    def get(self, ref: ObjectRef) -> bytes:
        """The object's bytes, verified. Raises Corrupt, NotFound, Unavailable."""
        ...

    def fetch(self, ref: ObjectRef) -> Path:
        """A local file with the object's bytes, verified once per process; it may be memory-mapped."""
        ...

    def verify(self, ref: ObjectRef) -> None:
        """Read the object as it lies in the store now, whatever was verified before. Raises Corrupt, NotFound, Unavailable."""
        ...

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """All objects whose path lies under the folder `prefix`."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object. Idempotent."""
        ...

    def sweep(self, prefix: str, *, keep: Container[str] | Keep, age_s: float) -> Sequence[str]:
        """Deletes what is not in `keep` and was last written more than `age_s` ago by the store's own clock.

        Returns the paths deleted. `keep` may be a function: it is called once the store's time was taken, so that an
        object that was named before it was written is kept, however long the caller stands still.
        """
        ...


class VerifiedStore:
    """What both stores share: sweeping, and verifying a file once."""

    def __init__(self) -> None:
        self._verified: OrderedDict[_Verified, None] = OrderedDict()
        """Files that were verified, the one fetched last at the end."""
        self._lock = threading.Lock()

    def sweep(self, prefix: str, *, keep: Container[str] | Keep, age_s: float) -> Sequence[str]:
        """See Store."""
        before = self.now_ms() - age_s * 1000
        named = keep() if callable(keep) else keep
        gone = [o.path for o in self.list(prefix) if o.path not in named and o.modified_ms < before]
        for path in gone:
            self.delete(path)
        return gone

    def now_ms(self) -> int:
        """What the store would give as the time of an object written now: this host's clock may be wrong, the store's ages cannot."""
        raise NotImplementedError

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """See Store."""
        raise NotImplementedError

    def delete(self, path: str) -> None:
        """See Store."""
        raise NotImplementedError

    def _verify_once(self, ref: ObjectRef, file: Path) -> None:
        if not file.is_file():
            raise NotFound(f"object {ref.path} is not in the store")
        with self._lock:
            seen = (str(file), ref.bytes, ref.sha256)
            if seen in self._verified:
                self._verified.move_to_end(seen)
                return
        check(ref, file.stat().st_size, digest_file(file))
        self._note_verified(ref, file)

    def _note_verified(self, ref: ObjectRef, file: Path) -> None:
        """Has the file not verified again while it is one of the VERIFIED_MAX fetched last."""
        with self._lock:
            self._verified[str(file), ref.bytes, ref.sha256] = None
            if len(self._verified) > VERIFIED_MAX:
                self._verified.popitem(last=False)

    def _forget_verified(self, ref: ObjectRef, file: Path) -> None:
        with self._lock:
            self._verified.pop((str(file), ref.bytes, ref.sha256), None)


class Away:
    """Turns the file system's errors into ours."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise NotFound(f"object {self._path} is not in the store") from error
        if isinstance(error, OSError | pa.ArrowException):
            raise Unavailable(f"the store does not answer for {self._path}: {error}", dependency="store") from error


def checked(path: str) -> str:
    """`path` itself if it stays inside the store and is written the one way that listings write it. Raises Refused."""
    pure = PurePosixPath(path)
    plain = path == str(pure) != "." and not pure.is_absolute() and not {"\0", "\\"} & set(path)
    if not plain or ".." in pure.parts or pure.parts[0] == ".incoming":
        raise Refused(f"{path!r} is no path of an object", field="path")
    return path


def check(ref: ObjectRef, size: int, sha256: str) -> None:
    """Raise Corrupt unless size and digest are those that were written."""
    if (size, sha256) != (ref.bytes, ref.sha256):
        raise Corrupt(
            f"object {ref.path} is not what was written: {size} bytes, sha256 {sha256[:12]}…; "
            f"expected {ref.bytes} bytes, {ref.sha256[:12]}…",
            path=ref.path,
        )


def digest_file(file: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def chunks(source: bytes | Path) -> Iterator[bytes]:
    """The source in pieces of at most CHUNK bytes if it is a file, so that no file is held in memory whole."""
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk
