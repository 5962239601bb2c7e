"""The store on any file system of pyarrow (S3, GCS, Azure), with a bounded cache on this node."""

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pyarrow as pa
from pyarrow import fs

from vicinage.errors import Conflict, Corrupt, NotFound
from vicinage.records import ObjectRef
from vicinage.store.objects import (
    CHUNK,
    StoredObject,
    TranslatedErrors,
    VerifiedStore,
    check,
    checked,
    chunks,
    digest_file,
)

CACHE_BYTES_MAX: Final = 64 << 30
"""Default size of a remote store's cache on this node."""
PROBES: Final = "probes"
"""Folder of probe objects that read the store's time; deleted at once.

A kill leaves three bytes.
"""
PART_AGE_S: Final = 86_400
"""Age at which an incomplete copy in the cache is abandoned and may be deleted."""


class RemoteStore(VerifiedStore):
    """Objects on any pyarrow filesystem, copied into `cache` to be read.

    Through pyarrow, object stores offer no put-if-absent, so `put` checks first. The platform's
    paths contain a random part, so no two writers use the same path. The cache is an LRU cache of
    at most `cache_bytes_max`.
    """

    def __init__(
        self, remote: fs.FileSystem, base: str, cache: Path, cache_bytes_max: int = CACHE_BYTES_MAX
    ) -> None:
        super().__init__()
        self._remote = fs.SubTreeFileSystem(base, remote)
        self._cache = cache.absolute()
        self._cache.mkdir(parents=True, exist_ok=True)
        self._cache_bytes_max = cache_bytes_max

    def put(self, path: str, source: bytes | Path) -> ObjectRef:
        """Uploads the object as a stream; it becomes visible when the upload completes."""
        checked(path)
        with TranslatedErrors(path):
            if self._remote.get_file_info(path).type != fs.FileType.NotFound:
                raise Conflict(f"object {path} exists already; objects are never overwritten")
            try:
                size, sha256 = self._upload(path, source)
            except (OSError, pa.ArrowException):
                # The end of the `with` block closed the stream, which completed a truncated object.
                with suppress(OSError, pa.ArrowException):
                    self._remote.delete_file(path)
                raise
        return ObjectRef(path, size, sha256)

    def _upload(self, path: str, source: bytes | Path) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self._remote.open_output_stream(path) as out:
            for chunk in chunks(source):
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
        return size, digest.hexdigest()

    def get(self, ref: ObjectRef) -> bytes:
        """Reads and verifies the object."""
        with (
            TranslatedErrors(ref.path),
            self._remote.open_input_stream(checked(ref.path)) as stream,
        ):
            data = stream.read()
        check(ref, len(data), hashlib.sha256(data).hexdigest())
        return bytes(data)

    def fetch(self, ref: ObjectRef) -> Path:
        """Returns a verified copy in the cache. Open it at once: later fetches may evict it."""
        file = self._cache / ref.sha256
        if not self._held(ref, file):
            self._download(ref, file)
            self._make_room(file)
        return file

    def verify(self, ref: ObjectRef) -> None:
        """Reads and verifies the stored object without caching it.

        A cached copy is intact and stays.
        """
        digest, size = hashlib.sha256(), 0
        with (
            TranslatedErrors(ref.path),
            self._remote.open_input_stream(checked(ref.path)) as stream,
        ):
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
        check(ref, size, digest.hexdigest())

    def _held(self, ref: ObjectRef, file: Path) -> bool:
        """Returns True if the cache has an intact copy.

        Deletes a damaged copy: the store has the object.
        """
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
                TranslatedErrors(ref.path),
                self._remote.open_input_stream(checked(ref.path)) as stream,
                part.open("wb") as out,
            ):
                shutil.copyfileobj(stream, out, CHUNK)
            check(ref, part.stat().st_size, digest_file(part))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        self._note_verified(ref, file)

    def _make_room(self, newest: Path) -> None:
        """Evicts least recently used copies until the cache is within its bound (LRU).

        Mapped files stay readable.
        """
        copies = sorted(_by_use(self._cache))
        held = sum(size for _, size, _ in copies)
        for used_s, size, file in copies:
            abandoned = file.name.startswith(".") and used_s < time.time() - PART_AGE_S
            crowded = (
                not file.name.startswith(".") and file != newest and held > self._cache_bytes_max
            )
            if abandoned or crowded:
                file.unlink(missing_ok=True)
                held -= size

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Lists the folder recursively."""
        folder = checked(prefix) if prefix else ""
        with TranslatedErrors(prefix):
            infos = self._remote.get_file_info(
                fs.FileSelector(folder, recursive=True, allow_not_found=True)
            )
        for info in infos:
            if info.type == fs.FileType.File:
                yield StoredObject(
                    info.path, info.size, (info.mtime_ns or time.time_ns()) // 1_000_000
                )

    def now_ms(self) -> int:
        """Returns the store's time for a new object; 0 if it gives none: then nothing is old."""
        probe = f"{PROBES}/{uuid.uuid4().hex}"
        with TranslatedErrors(probe):
            try:
                with self._remote.open_output_stream(probe) as out:
                    out.write(b"now")
                return (self._remote.get_file_info(probe).mtime_ns or 0) // 1_000_000
            finally:
                self.delete(probe)

    def delete(self, path: str) -> None:
        """Deletes the object."""
        with TranslatedErrors(path):
            if self._remote.get_file_info(checked(path)).type == fs.FileType.File:
                self._remote.delete_file(path)


def _by_use(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yields the time of last use, the size and the path of each file."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has deleted it
            stat = file.stat()
            yield stat.st_mtime, stat.st_size, file
