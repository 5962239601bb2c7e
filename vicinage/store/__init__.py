"""The object store: immutable objects over pyarrow.fs, verified against their SHA-256 when read.

Guarantee 8: an object is never overwritten, and never served if its bytes differ from the
manifest's hash.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from vicinage.errors import Refused
from vicinage.store.local import LocalStore
from vicinage.store.objects import Store, StoredObject
from vicinage.store.remote import CACHE_BYTES_MAX, RemoteStore

__all__ = ["LocalStore", "RemoteStore", "Store", "StoredObject", "open_store", "shown"]


def open_store(
    url: str, *, cache: Path | None = None, cache_bytes_max: int = CACHE_BYTES_MAX
) -> Store:
    """Opens the store at `url`: a directory, `file://`, or a URL of pyarrow.fs.

    An example is `s3://bucket/prefix?endpoint_override=…`. `cache` and its bound apply to remote
    stores. Raises Refused for an invalid URL.
    """
    if "://" not in url:
        return LocalStore(Path(url))
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise Refused(
                f"store_url names a file of another machine, {parts.netloc}", field="store_url"
            )
        return LocalStore(Path(unquote(parts.path)))
    try:
        remote, base = fs.FileSystem.from_uri(url)
    except (
        pa.ArrowException,
        ValueError,
        OSError,
    ):  # their messages repeat the URL, which may contain a secret
        raise Refused(
            f"store_url, {parts.scheme}://…, is not a valid store URL", field="store_url"
        ) from None
    return RemoteStore(
        remote, base, cache or Path.home() / ".cache" / "vicinage" / "store", cache_bytes_max
    )


def shown(url: str) -> str:
    """Returns a store's URL without credentials."""
    parts = urlsplit(url)
    return (
        parts._replace(netloc=f"…@{parts.netloc.rpartition('@')[2]}").geturl()
        if "@" in parts.netloc
        else url
    )
