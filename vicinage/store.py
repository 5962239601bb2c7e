"""The object store: immutable objects over pyarrow.fs, each verified against its SHA-256 when it is read.

Law 8: an object is never overwritten and never served when its bytes are not what the manifest says.
"""

import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

import pyarrow as pa
from pyarrow import fs

from vicinage.errors import Conflict, Corrupt, NotFound, Refused, Unavailable
from vicinage.faults import crash_point
from vicinage.records import ObjectRef

CHUNK: Final = 4 << 20


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

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """All objects whose path lies under the folder `prefix`."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object. Idempotent."""
        ...

    def sweep(self, prefix: str, *, keep: Container[str], older_than_ms: int) -> Sequence[str]:
        """Delete what is not in `keep` and was last written before `older_than_ms`; the paths deleted."""
        ...


class _Base:
    """What both stores share: sweeping, and verifying a file once."""

    def __init__(self) -> None:
        self._verified: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def sweep(self, prefix: str, *, keep: Container[str], older_than_ms: int) -> Sequence[str]:
        """Delete what nobody names and nobody is still writing."""
        gone = [o.path for o in self.list(prefix) if o.path not in keep and o.modified_ms < older_than_ms]
        for path in gone:
            self.delete(path)
        return gone

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """See Store."""
        raise NotImplementedError

    def delete(self, path: str) -> None:
        """See Store."""
        raise NotImplementedError

    def _verify_once(self, ref: ObjectRef, file: Path) -> None:
        seen = (str(file), ref.sha256)
        if seen in self._verified:
            return
        if not file.exists():
            raise NotFound(f"object {ref.path} is not in the store")
        check(ref, file.stat().st_size, digest_file(file))
        with self._lock:
            self._verified.add(seen)


class LocalStore(_Base):
    """Objects as files under `root`."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root.absolute()
        self._incoming = self._root / ".incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def put(self, path: str, source: bytes | Path) -> ObjectRef:
        """Write beside, sync, then link into place: the link fails if the path is taken."""
        target = self._root / checked(path)
        part = self._incoming / uuid.uuid4().hex
        try:
            size, sha256 = _write_synced(part, source)
            crash_point("store.before_link")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(part, target)
            _sync_folders(target.parent, self._root)
        except FileExistsError:
            raise Conflict(f"object {path} exists already; objects are never overwritten") from None
        except OSError as error:
            raise Unavailable(f"the store cannot write {path}: {error}", dependency="store") from error
        finally:
            part.unlink(missing_ok=True)
        return ObjectRef(path, size, sha256)

    def get(self, ref: ObjectRef) -> bytes:
        """Read and verify."""
        file = self._root / checked(ref.path)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"object {ref.path} is not in the store") from None
        check(ref, len(data), hashlib.sha256(data).hexdigest())
        return data

    def fetch(self, ref: ObjectRef) -> Path:
        """The file itself."""
        file = self._root / checked(ref.path)
        self._verify_once(ref, file)
        return file

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Walk the folder."""
        base = self._root / checked(prefix) if prefix else self._root
        for folder, folders, files in os.walk(base):
            folders[:] = [f for f in folders if f != ".incoming"]
            for name in files:
                file = Path(folder) / name
                stat = file.stat()
                yield StoredObject(file.relative_to(self._root).as_posix(), stat.st_size, stat.st_mtime_ns // 1_000_000)

    def delete(self, path: str) -> None:
        """Unlink, and remove folders that became empty."""
        file = self._root / checked(path)
        file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == self._root or any(folder.iterdir()):
                return
            folder.rmdir()


class RemoteStore(_Base):
    """Objects on any pyarrow filesystem, copied into `cache` to be read.

    Object stores offer no put-if-absent through pyarrow, so `put` looks first; the platform's paths carry a random part,
    which makes two writers of one path impossible, not merely unlikely to be noticed.
    """

    def __init__(self, remote: fs.FileSystem, base: str, cache: Path) -> None:
        super().__init__()
        self._remote = fs.SubTreeFileSystem(base, remote)
        self._cache = cache.absolute()
        self._cache.mkdir(parents=True, exist_ok=True)

    def put(self, path: str, source: bytes | Path) -> ObjectRef:
        """Stream the object up; it becomes visible when the upload completes."""
        checked(path)
        with self._away(path):
            if self._remote.get_file_info(path).type != fs.FileType.NotFound:
                raise Conflict(f"object {path} exists already; objects are never overwritten")
            digest, size = hashlib.sha256(), 0
            with self._remote.open_output_stream(path) as out:
                for chunk in _chunks(source):
                    digest.update(chunk)
                    size += len(chunk)
                    out.write(chunk)
        return ObjectRef(path, size, digest.hexdigest())

    def get(self, ref: ObjectRef) -> bytes:
        """Read and verify."""
        with self._away(ref.path), self._remote.open_input_stream(checked(ref.path)) as stream:
            data = stream.read()
        check(ref, len(data), hashlib.sha256(data).hexdigest())
        return bytes(data)

    def fetch(self, ref: ObjectRef) -> Path:
        """A verified copy in the cache."""
        file = self._cache / ref.sha256
        if not file.exists():
            part = self._cache / f".{uuid.uuid4().hex}"
            try:
                with (
                    self._away(ref.path),
                    self._remote.open_input_stream(checked(ref.path)) as stream,
                    part.open("wb") as out,
                ):
                    shutil.copyfileobj(stream, out, CHUNK)
                check(ref, part.stat().st_size, digest_file(part))
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
        self._verify_once(ref, file)
        return file

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """List recursively."""
        with self._away(prefix):
            infos = self._remote.get_file_info(fs.FileSelector(prefix, recursive=True, allow_not_found=True))
        for info in infos:
            if info.type == fs.FileType.File:
                yield StoredObject(info.path, info.size, (info.mtime_ns or time.time_ns()) // 1_000_000)

    def delete(self, path: str) -> None:
        """Remove the object."""
        with self._away(path):
            if self._remote.get_file_info(checked(path)).type == fs.FileType.File:
                self._remote.delete_file(path)

    def _away(self, path: str) -> "_Away":
        return _Away(path)


class _Away:
    """Turns the file system's errors into ours."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise NotFound(f"object {self._path} is not in the store") from error
        if isinstance(error, OSError | pa.ArrowException):
            raise Unavailable(f"the store does not answer for {self._path}: {error}", dependency="store") from error


def open_store(url: str, *, cache: Path | None = None) -> Store:
    """The store at `url`: a directory, `file://`, or what pyarrow.fs knows (`s3://bucket/prefix?endpoint_override=…`)."""
    if "://" not in url:
        return LocalStore(Path(url))
    if url.startswith("file://"):
        return LocalStore(Path(url.removeprefix("file://")))
    try:
        remote, base = fs.FileSystem.from_uri(url)
    except (pa.ArrowException, ValueError) as error:
        raise Refused(f"store_url {url!r} is not understood: {error}", field="store_url") from error
    return RemoteStore(remote, base, cache or Path.home() / ".cache" / "vicinage" / "store")


def checked(path: str) -> str:
    """`path` itself if it stays inside the store. Raises Refused."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or "\\" in path or parts[0] == ".incoming":
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


def _chunks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def _write_synced(file: Path, source: bytes | Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with file.open("xb") as out:
        for chunk in _chunks(source):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return size, digest.hexdigest()


def _sync_folders(folder: Path, root: Path) -> None:
    """Make the new names durable, up to the root."""
    for each in (folder, *folder.parents):
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if each == root:
            return
