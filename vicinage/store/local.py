"""The store in a local directory: writes a temporary file, syncs it, and links it into place."""

import hashlib
import os
import uuid
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vicinage.errors import Conflict, Corrupt, NotFound, Unavailable
from vicinage.faults import crash_point
from vicinage.records import ObjectRef
from vicinage.store.objects import (
    Keep,
    StoredObject,
    TranslatedErrors,
    VerifiedStore,
    check,
    checked,
    chunks,
    digest_file,
)


class LocalStore(VerifiedStore):
    """Objects as files under `root`."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root.absolute()
        self._incoming = self._root / ".incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def put(self, path: str, source: bytes | Path) -> ObjectRef:
        """Writes a temporary file, syncs it, then links it: the link fails if the path is taken."""
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
            raise Unavailable(
                f"the store cannot write {path}: {error}", dependency="store"
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return ObjectRef(path, size, sha256)

    def get(self, ref: ObjectRef) -> bytes:
        """Reads and verifies the object."""
        file = self._root / checked(ref.path)
        with TranslatedErrors(ref.path):
            data = file.read_bytes()
        check(ref, len(data), hashlib.sha256(data).hexdigest())
        return data

    def fetch(self, ref: ObjectRef) -> Path:
        """Returns the stored file itself, verified once."""
        file = self._root / checked(ref.path)
        with TranslatedErrors(ref.path):
            self._verify_once(ref, file)
        return file

    def verify(self, ref: ObjectRef) -> None:
        """Reads and verifies the file; if it is damaged, `fetch` no longer returns it."""
        file = self._root / checked(ref.path)
        try:
            with TranslatedErrors(ref.path):
                check(ref, file.stat().st_size, digest_file(file))
        except (Corrupt, NotFound):
            self._forget_verified(ref, file)
            raise

    def sweep(self, prefix: str, *, keep: Container[str] | Keep, age_s: float) -> Sequence[str]:
        """Deletes old objects that are not kept, and temporary files that killed writers left."""
        if parts := list(self._incoming.iterdir()):
            before = self.now_ms() - age_s * 1000
            for part in parts:
                with suppress(FileNotFoundError):  # its writer has finished
                    if part.stat().st_mtime_ns // 1_000_000 < before:
                        part.unlink()
        return super().sweep(prefix, keep=keep, age_s=age_s)

    def now_ms(self) -> int:
        """Returns the file system's time for a new file; on a network file system, its server's."""
        probe = self._incoming / uuid.uuid4().hex
        with TranslatedErrors(probe.name):
            try:
                probe.touch(exist_ok=False)
                return probe.stat().st_mtime_ns // 1_000_000
            finally:
                probe.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Walks the folder. Skips files that are deleted meanwhile."""
        base = self._root / checked(prefix) if prefix else self._root
        for folder, folders, files in os.walk(base):
            folders[:] = [f for f in folders if f != ".incoming"]
            for name in files:
                file = Path(folder) / name
                try:
                    stat = file.stat()
                except FileNotFoundError:
                    continue
                yield StoredObject(
                    file.relative_to(self._root).as_posix(),
                    stat.st_size,
                    stat.st_mtime_ns // 1_000_000,
                )

    def delete(self, path: str) -> None:
        """Deletes the file, and folders that become empty."""
        file = self._root / checked(path)
        with TranslatedErrors(path):
            file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == self._root:
                return
            try:
                folder.rmdir()
            except OSError:  # not empty
                return


def _link(part: Path, target: Path) -> None:
    """Links the file to its path; retries if a sweep deletes the still empty folder."""
    for tries_left in (2, 1, 0):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(part, target)
        except FileNotFoundError:
            if not tries_left:
                raise
        else:
            return


def _write_synced(file: Path, source: bytes | Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with file.open("xb") as out:
        for chunk in chunks(source):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return size, digest.hexdigest()


def _sync_folders(folder: Path, root: Path) -> None:
    """Syncs the folders up to the root, so that the new name is durable."""
    for each in (folder, *folder.parents):
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if each == root:
            return
