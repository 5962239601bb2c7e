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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from vicinage.errors import Conflict, Corrupt, NotFound, Refused, Unavailable
from vicinage.faults import crash_point
from vicinage.records import ObjectRef

CHUNK: Final = 4 << 20
CACHE_BYTES_MAX: Final = 64 << 30
"""Bytes of copies that a remote store keeps on this node unless told otherwise."""
PART_AGE_S: Final = 86_400
"""Age at which a half-made copy in the cache belongs to nobody any more."""


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
        self._verified: set[tuple[str, int, str]] = set()
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
        if not file.is_file():
            raise NotFound(f"object {ref.path} is not in the store")
        seen = (str(file), ref.bytes, ref.sha256)
        if seen in self._verified:
            return
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
            _link(part, target)
            _sync_folders(target.parent, self._root)
        except (FileExistsError, NotADirectoryError):
            raise Conflict(f"object {path} exists already; objects are never overwritten") from None
        except OSError as error:
            raise Unavailable(f"the store cannot write {path}: {error}", dependency="store") from error
        finally:
            part.unlink(missing_ok=True)
        return ObjectRef(path, size, sha256)

    def get(self, ref: ObjectRef) -> bytes:
        """Read and verify."""
        file = self._root / checked(ref.path)
        with _Away(ref.path):
            data = file.read_bytes()
        check(ref, len(data), hashlib.sha256(data).hexdigest())
        return data

    def fetch(self, ref: ObjectRef) -> Path:
        """The file itself."""
        file = self._root / checked(ref.path)
        with _Away(ref.path):
            self._verify_once(ref, file)
        return file

    def sweep(self, prefix: str, *, keep: Container[str], older_than_ms: int) -> Sequence[str]:
        """Delete what nobody names and nobody is still writing; also what a killed writer left half written."""
        for part in self._incoming.iterdir():
            with suppress(FileNotFoundError):  # its writer has just finished
                if part.stat().st_mtime_ns // 1_000_000 < older_than_ms:
                    part.unlink()
        return super().sweep(prefix, keep=keep, older_than_ms=older_than_ms)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Walk the folder. What another deletes meanwhile is left out."""
        base = self._root / checked(prefix) if prefix else self._root
        for folder, folders, files in os.walk(base):
            folders[:] = [f for f in folders if f != ".incoming"]
            for name in files:
                file = Path(folder) / name
                try:
                    stat = file.stat()
                except FileNotFoundError:
                    continue
                yield StoredObject(file.relative_to(self._root).as_posix(), stat.st_size, stat.st_mtime_ns // 1_000_000)

    def delete(self, path: str) -> None:
        """Unlink, and remove folders that became empty."""
        file = self._root / checked(path)
        with _Away(path):
            file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == self._root:
                return
            try:
                folder.rmdir()
            except OSError:  # not empty: others live there, or have just come
                return


class RemoteStore(_Base):
    """Objects on any pyarrow filesystem, copied into `cache` to be read.

    Object stores offer no put-if-absent through pyarrow, so `put` looks first; the platform's paths carry a random part,
    so no two writers ever have the same one. The cache holds at most `cache_bytes_max`, least recently used out first.
    """

    def __init__(self, remote: fs.FileSystem, base: str, cache: Path, cache_bytes_max: int = CACHE_BYTES_MAX) -> None:
        super().__init__()
        self._remote = fs.SubTreeFileSystem(base, remote)
        self._cache = cache.absolute()
        self._cache.mkdir(parents=True, exist_ok=True)
        self._cache_bytes_max = cache_bytes_max

    def put(self, path: str, source: bytes | Path) -> ObjectRef:
        """Stream the object up; it becomes visible when the upload completes."""
        checked(path)
        with _Away(path):
            if self._remote.get_file_info(path).type != fs.FileType.NotFound:
                raise Conflict(f"object {path} exists already; objects are never overwritten")
            try:
                size, sha256 = self._upload(path, source)
            except (OSError, pa.ArrowException):
                # Leaving the stream closes it, and closing completes the object with what it has so far.
                with suppress(OSError, pa.ArrowException):
                    self._remote.delete_file(path)
                raise
        return ObjectRef(path, size, sha256)

    def _upload(self, path: str, source: bytes | Path) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self._remote.open_output_stream(path) as out:
            for chunk in _chunks(source):
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
        return size, digest.hexdigest()

    def get(self, ref: ObjectRef) -> bytes:
        """Read and verify."""
        with _Away(ref.path), self._remote.open_input_stream(checked(ref.path)) as stream:
            data = stream.read()
        check(ref, len(data), hashlib.sha256(data).hexdigest())
        return bytes(data)

    def fetch(self, ref: ObjectRef) -> Path:
        """A verified copy in the cache; open it at once, since later fetches may make room by removing it."""
        file = self._cache / ref.sha256
        if not self._held(ref, file):
            self._download(ref, file)
            self._make_room(file)
        return file

    def _held(self, ref: ObjectRef, file: Path) -> bool:
        """True when the cache has a good copy. A bad one is thrown away: the store has the object still."""
        try:
            self._verify_once(ref, file)
            os.utime(file)
        except Corrupt:
            file.unlink(missing_ok=True)
            return False
        except (NotFound, FileNotFoundError):
            return False
        return True

    def _download(self, ref: ObjectRef, file: Path) -> None:
        part = self._cache / f".{uuid.uuid4().hex}"
        try:
            with (
                _Away(ref.path),
                self._remote.open_input_stream(checked(ref.path)) as stream,
                part.open("wb") as out,
            ):
                shutil.copyfileobj(stream, out, CHUNK)
            check(ref, part.stat().st_size, digest_file(part))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        with self._lock:
            self._verified.add((str(file), ref.bytes, ref.sha256))

    def _make_room(self, newest: Path) -> None:
        """Remove the copies used longest ago until the cache is within its bound; what is mapped stays readable."""
        copies = sorted(_by_use(self._cache))
        held = sum(size for _, size, _ in copies)
        for used_s, size, file in copies:
            abandoned = file.name.startswith(".") and used_s < time.time() - PART_AGE_S
            crowded = not file.name.startswith(".") and file != newest and held > self._cache_bytes_max
            if abandoned or crowded:
                file.unlink(missing_ok=True)
                held -= size

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """List recursively."""
        folder = checked(prefix) if prefix else ""
        with _Away(prefix):
            infos = self._remote.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
        for info in infos:
            if info.type == fs.FileType.File:
                yield StoredObject(info.path, info.size, (info.mtime_ns or time.time_ns()) // 1_000_000)

    def delete(self, path: str) -> None:
        """Remove the object."""
        with _Away(path):
            if self._remote.get_file_info(checked(path)).type == fs.FileType.File:
                self._remote.delete_file(path)


class _Away:
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


def open_store(url: str, *, cache: Path | None = None, cache_bytes_max: int = CACHE_BYTES_MAX) -> Store:
    """The store at `url`: a directory, `file://`, or what pyarrow.fs knows (`s3://bucket/prefix?endpoint_override=…`).

    `cache` and its bound are for stores that are not this machine's own disk. Raises Refused for a URL that cannot be used.
    """
    if "://" not in url:
        return LocalStore(Path(url))
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise Refused(f"store_url names a file of another machine, {parts.netloc}", field="store_url")
        return LocalStore(Path(unquote(parts.path)))
    try:
        remote, base = fs.FileSystem.from_uri(url)
    except (pa.ArrowException, ValueError, OSError):  # their words repeat the URL, which may hold a secret
        raise Refused(f"store_url, {parts.scheme}://…, is not understood", field="store_url") from None
    return RemoteStore(remote, base, cache or Path.home() / ".cache" / "vicinage" / "store", cache_bytes_max)


def shown(url: str) -> str:
    """A store's URL without the secret it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"…@{parts.netloc.rpartition('@')[2]}").geturl() if "@" in parts.netloc else url


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


def _by_use(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each file was last used, its bytes, and itself."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just removed it
            stat = file.stat()
            yield stat.st_mtime, stat.st_size, file


def _link(part: Path, target: Path) -> None:
    """Give the file its name. A sweep may remove a folder that is empty just now: then it is made again."""
    for tries_left in (2, 1, 0):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(part, target)
        except FileNotFoundError:
            if not tries_left:
                raise
        else:
            return


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
