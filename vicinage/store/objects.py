"""The interface of a store, and what all stores share: paths, checksums and errors."""

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
"""Largest number of files remembered as intact, in about 50 MB of memory."""
_Verified = tuple[str, int, str]
"""A file's path, its size in bytes, and its checksum."""
Keep = Callable[[], Container[str]]
"""Returns the objects that a sweep keeps."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as `list` returns it."""

    path: str
    bytes: int
    modified_ms: int


class Store(Protocol):
    """Objects by path. Safe for many threads and processes."""

    def put(self, path: str, source: bytes | Path) -> ObjectRef:
        """Writes an object atomically; durable on return. Raises Conflict if the path is taken."""
        ...

    def get(self, ref: ObjectRef) -> bytes:
        """Returns the object's verified bytes. Raises Corrupt, NotFound, Unavailable."""
        ...

    def fetch(self, ref: ObjectRef) -> Path:
        """Returns a local file with the object's bytes, verified once per process.

        The file may be memory-mapped.
        """
        ...

    def verify(self, ref: ObjectRef) -> None:
        """Reads and verifies the stored object now, even if it was verified before.

        Raises Corrupt, NotFound, Unavailable.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yields all objects whose path is under the folder `prefix`."""
        ...

    def delete(self, path: str) -> None:
        """Deletes an object. Idempotent."""
        ...

    def sweep(self, prefix: str, *, keep: Container[str] | Keep, age_s: float) -> Sequence[str]:
        """Deletes objects that are not in `keep` and older than `age_s` by the store's clock.

        Returns the deleted paths. `keep` may be a function, called after the store's time is read:
        an object that is named before it is written is kept, however long the caller is suspended.
        """
        ...


class VerifiedStore:
    """Implementation that both stores share: sweeping, and verifying each file once."""

    def __init__(self) -> None:
        self._verified: OrderedDict[_Verified, None] = OrderedDict()
        """Verified files, the most recently fetched last."""
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
        """Returns the time that the store would give an object written now.

        This host's clock may be wrong; ages by the store's clock are consistent.
        """
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
        """Remembers the file as verified while it is among the last VERIFIED_MAX fetched."""
        with self._lock:
            self._verified[str(file), ref.bytes, ref.sha256] = None
            if len(self._verified) > VERIFIED_MAX:
                self._verified.popitem(last=False)

    def _forget_verified(self, ref: ObjectRef, file: Path) -> None:
        with self._lock:
            self._verified.pop((str(file), ref.bytes, ref.sha256), None)


class TranslatedErrors:
    """Turns the file system's errors into NotFound and Unavailable."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise NotFound(f"object {self._path} is not in the store") from error
        if isinstance(error, OSError | pa.ArrowException):
            raise Unavailable(
                f"the store does not answer for {self._path}: {error}", dependency="store"
            ) from error


def checked(path: str) -> str:
    """Returns `path` if it is inside the store and in the normal form of listings.

    Raises Refused.
    """
    pure = PurePosixPath(path)
    plain = path == str(pure) != "." and not pure.is_absolute() and not {"\0", "\\"} & set(path)
    if not plain or ".." in pure.parts or pure.parts[0] == ".incoming":
        raise Refused(f"{path!r} is not a valid path of an object", field="path")
    return path


def check(ref: ObjectRef, size: int, sha256: str) -> None:
    """Raises Corrupt unless size and digest are those that were written."""
    if (size, sha256) != (ref.bytes, ref.sha256):
        raise Corrupt(
            f"object {ref.path} is not what was written: {size} bytes, sha256 {sha256[:12]}…; "
            f"expected {ref.bytes} bytes, {ref.sha256[:12]}…",
            path=ref.path,
        )


def digest_file(file: Path) -> str:
    """Returns the SHA-256 of a file, read in chunks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def chunks(source: bytes | Path) -> Iterator[bytes]:
    """Yields bytes as they are, and a file in chunks of at most CHUNK bytes to bound memory."""
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk
