"""What every store promises, over a local directory and a real S3 server."""

import os
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from pyarrow import fs

from vicinage.errors import Conflict, Corrupt, NotFound, Refused
from vicinage.store import LocalStore, Store, open_store


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    endpoint, bucket = request.getfixturevalue("s3_server"), f"b{uuid.uuid4().hex[:10]}"
    client = fs.S3FileSystem(
        access_key="test",
        secret_key="testtest",
        endpoint_override=endpoint,
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    client.create_dir(bucket)
    query = f"endpoint_override={quote(endpoint, safe='')}&scheme=http&region=us-east-1"
    return open_store(f"s3://test:testtest@{bucket}/prefix?{query}", cache=tmp_path / "cache")


def test_an_object_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(6 << 20))
    for path, source in (("a/b/small", b"hello"), ("a/large", file), ("a/empty", b"")):
        ref = store.put(path, source)
        wanted = source if isinstance(source, bytes) else source.read_bytes()
        assert store.get(ref) == wanted
        assert store.fetch(ref).read_bytes() == wanted
        assert (ref.path, ref.bytes) == (path, len(wanted))


def test_a_path_is_written_once(store: Store) -> None:
    ref = store.put("a", b"first")
    with pytest.raises(Conflict):
        store.put("a", b"second")
    assert store.get(ref) == b"first"


def test_bytes_that_are_not_what_was_written_are_never_served(store: Store) -> None:
    ref = store.put("a", b"hello")
    for wrong in (replace(ref, sha256="0" * 64), replace(ref, bytes=4)):
        with pytest.raises(Corrupt):
            store.get(wrong)
        with pytest.raises(Corrupt):
            store.fetch(wrong)


def test_what_is_not_there_is_not_found(store: Store) -> None:
    ref = store.put("a", b"hello")
    store.delete("a")
    store.delete("a")
    with pytest.raises(NotFound):
        store.get(ref)


def test_listing_and_sweeping_keep_what_is_named_or_young(store: Store) -> None:
    for path in ("s/1/a", "s/1/b", "s/2/a", "other/a"):
        store.put(path, b"x")
    assert sorted(o.path for o in store.list("s")) == ["s/1/a", "s/1/b", "s/2/a"]
    assert store.sweep("s", keep={"s/1/a"}, older_than_ms=0) == []
    assert sorted(store.sweep("s", keep={"s/1/a"}, older_than_ms=2**60)) == ["s/1/b", "s/2/a"]
    assert sorted(o.path for o in store.list()) == ["other/a", "s/1/a"]


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\0b", ".incoming/x", "a\\b"])
def test_paths_stay_inside(store: Store, path: str) -> None:
    with pytest.raises(Refused):
        store.put(path, b"x")


def test_a_flipped_byte_and_a_cut_are_seen(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    ref = store.put("a", b"hello world")
    file = tmp_path / "a"
    file.write_bytes(b"hellO world")
    with pytest.raises(Corrupt):
        LocalStore(tmp_path).fetch(ref)
    file.write_bytes(b"hello")
    with pytest.raises(Corrupt):
        store.get(ref)


PUT = "import sys; from pathlib import Path; from vicinage.store import LocalStore; LocalStore(Path(sys.argv[1])).put('a', b'x')"


def test_a_kill_before_the_link_leaves_nothing_to_be_seen(tmp_path: Path) -> None:
    environment = {**os.environ, "VICINAGE_CRASH": "store.before_link"}
    done = subprocess.run([sys.executable, "-c", PUT, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    store = LocalStore(tmp_path)
    assert list(store.list()) == []
    store.put("a", b"x")
