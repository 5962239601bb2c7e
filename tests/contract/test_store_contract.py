"""The contract of stores, over a local directory and a real S3 server."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from pyarrow import fs

from vicinage.errors import Conflict, Corrupt, NotFound, Refused, Unavailable
from vicinage.store import LocalStore, RemoteStore, Store, objects, open_store, shown

pytestmark = pytest.mark.timeout(600)
"""Time for the S3 server, which is built from its source if absent."""


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3_url"), cache=tmp_path / "cache")


@pytest.fixture
def s3_url(s3_server: str) -> str:
    """Returns the URL of a new empty bucket."""
    endpoint, bucket = s3_server, f"b{uuid.uuid4().hex[:10]}"
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
    return f"s3://test:testtest@{bucket}/prefix?{query}"


def spoil(store: Store, path: str, data: bytes) -> None:
    """Replaces an object's bytes, as a bad disk would."""
    if isinstance(store, LocalStore):
        (store._root / path).write_bytes(data)
        return
    with store._remote.open_output_stream(path) as out:
        out.write(data)


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


def test_of_many_files_the_last_ones_are_known_to_be_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "VERIFIED_MAX", 2)
    store = LocalStore(tmp_path / "store")
    refs = [store.put(f"a/{i}", bytes([i])) for i in range(4)]
    assert [store.fetch(ref).read_bytes() for ref in refs] == [bytes([i]) for i in range(4)]
    assert len(store._verified) == 2
    spoil(store, "a/0", b"\x09")
    with pytest.raises(Corrupt):
        store.fetch(refs[0])


def test_what_is_not_there_is_not_found(store: Store) -> None:
    ref = store.put("a", b"hello")
    store.delete("a")
    store.delete("a")
    for read in (store.get, store.fetch):
        with pytest.raises(NotFound):
            read(ref)


def test_what_was_fetched_and_then_deleted_is_not_found_in_the_store(store: Store) -> None:
    ref = store.put("a/b", b"hello")
    store.fetch(ref)
    store.delete("a/b")
    with pytest.raises(NotFound):
        store.get(ref)
    if isinstance(store, LocalStore):
        with pytest.raises(NotFound):
            store.fetch(ref)
    with pytest.raises(NotFound):
        store.get(replace(ref, path="a/b/c"))


def test_a_sweep_takes_the_time_before_it_asks_what_to_keep(store: Store) -> None:
    """A sweep may be suspended: objects named and written meanwhile do not count as old."""

    def named_before() -> set[str]:
        store.put("s/1/a", b"x")
        time.sleep(2.1)  # S3 counts whole seconds
        return set()

    assert store.sweep("s", keep=named_before, age_s=1) == []
    assert [o.path for o in store.list("s")] == ["s/1/a"]


def test_listing_and_sweeping_keep_what_is_named_or_young(store: Store) -> None:
    for path in ("s/1/a", "s/1/b", "s/2/a", "other/a"):
        store.put(path, b"x")
    assert sorted(o.path for o in store.list("s")) == ["s/1/a", "s/1/b", "s/2/a"]
    assert store.sweep("s", keep={"s/1/a"}, age_s=60) == []
    time.sleep(2.1)  # S3 counts whole seconds
    assert sorted(store.sweep("s", keep={"s/1/a"}, age_s=1)) == ["s/1/b", "s/2/a"]
    assert sorted(o.path for o in store.list()) == ["other/a", "s/1/a"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a\0b",
        ".incoming/x",
        "a\\b",
        "a//b",
        "./a",
        "a/./b",
        "a/",
    ],
)
def test_paths_stay_inside_and_are_written_one_way(store: Store, path: str) -> None:
    with pytest.raises(Refused):
        store.put(path, b"x")
    with pytest.raises(Refused):
        list(store.list(path or ".."))


@pytest.mark.parametrize("data", [b"hellO world", b"hello", b"", b"hello world "])
def test_bytes_that_changed_in_the_store_are_never_served(store: Store, data: bytes) -> None:
    ref = store.put("a", b"hello world")
    spoil(store, "a", data)
    for read in (store.get, store.fetch):
        with pytest.raises(Corrupt) as found:
            read(ref)
        assert found.value.path == "a"


@pytest.mark.parametrize("data", [b"hellO world", b"hello", b"", b"hello world "])
def test_verifying_reads_the_store_itself_whatever_was_fetched_before(
    store: Store, data: bytes
) -> None:
    ref = store.put("a", b"hello world")
    store.fetch(ref)
    store.verify(ref)
    spoil(store, "a", data)
    with pytest.raises(Corrupt):
        store.verify(ref)
    if isinstance(store, LocalStore):  # elsewhere a copy in the cache is what was written
        with pytest.raises(Corrupt):
            store.fetch(ref)
    spoil(store, "a", b"hello world")
    store.verify(ref)
    assert store.fetch(ref).read_bytes() == b"hello world"
    store.delete("a")
    with pytest.raises(NotFound):
        store.verify(ref)


def test_writers_of_one_path_at_once_leave_one_whole_object(tmp_path: Path) -> None:
    store, outcomes = LocalStore(tmp_path), []
    start = threading.Barrier(6)

    def write(i: int) -> None:
        start.wait(10)
        try:
            outcomes.append(store.put("a/b", bytes([i]) * 1_000_000))
        except Conflict:
            outcomes.append(None)

    writers = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for w in writers:
        w.start()
    for w in writers:
        w.join(30)
    [won] = [o for o in outcomes if o]
    assert len(outcomes) == 6
    assert len(set(store.get(won))) == 1


def test_deleting_beside_a_writer_neither_fails_nor_takes_the_folder_from_under_it(
    tmp_path: Path,
) -> None:
    """An empty folder is deleted; a writer that is about to use it creates it again."""
    store, written = LocalStore(tmp_path), queue.SimpleQueue()
    outcomes: list[object] = []

    def delete() -> None:
        while ref := written.get(timeout=30):
            store.delete(ref.path)
            outcomes.append(sum(1 for _ in store.list("s")))  # walks while others come and go

    deleters = [threading.Thread(target=delete) for _ in range(2)]
    for each in deleters:
        each.start()
    try:
        kept = []
        for i in range(150):
            ref = store.put(f"s/{i % 2}/x/{i}", b"y")
            kept.append(ref) if i % 50 == 0 else written.put(ref)
    finally:
        for _ in deleters:
            written.put(None)
        for each in deleters:
            each.join(30)
    assert len(outcomes) == 147
    assert sorted(o.path for o in store.list()) == sorted(ref.path for ref in kept)


def test_a_folder_that_a_sweep_takes_from_under_a_writer_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, taken = os.link, []

    def link_late(part: Path, target: Path) -> None:
        if not taken:
            taken.append(target.parent)
            target.parent.rmdir()
        link(part, target)

    monkeypatch.setattr(os, "link", link_late)
    store = LocalStore(tmp_path)
    assert store.get(store.put("a/b/c", b"x")) == b"x"
    assert taken


def test_what_a_killed_writer_left_half_written_is_swept_when_it_is_old(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    part = tmp_path / ".incoming" / "half"
    part.write_bytes(b"half")
    store.sweep("s", keep=(), age_s=60)
    assert part.exists()
    os.utime(part, (time.time() - 61, time.time() - 61))
    store.sweep("s", keep=(), age_s=60)
    assert list((tmp_path / ".incoming").iterdir()) == []


def test_what_is_old_is_decided_by_the_stores_clock_and_not_by_the_hosts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("s/just/written", b"x")
    day_s = 86_400
    for ahead_s in (day_s, -day_s):
        now_ns = time.time_ns() + ahead_s * 10**9
        monkeypatch.setattr(time, "time", lambda now_ns=now_ns: now_ns / 1e9)
        monkeypatch.setattr(time, "time_ns", lambda now_ns=now_ns: now_ns)
        assert store.sweep("s", keep=(), age_s=3_600) == []
        monkeypatch.undo()
    assert [o.path for o in store.list()] == ["s/just/written"]


def test_a_store_that_cannot_write_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(Unavailable):
        store.put("a", Path("/proc/self/mem"))  # opens, and fails when it is read
    assert list(store.list()) == []
    assert list((tmp_path / ".incoming").iterdir()) == []


@pytest.mark.s3
def test_an_upload_that_breaks_off_leaves_no_object(s3_url: str, tmp_path: Path) -> None:
    store = open_store(s3_url, cache=tmp_path / "cache")
    with pytest.raises(Unavailable):
        store.put("a", Path("/proc/self/mem"))
    assert list(store.list()) == []


@pytest.mark.s3
def test_a_copy_that_went_bad_in_the_cache_is_fetched_again(s3_url: str, tmp_path: Path) -> None:
    ref = open_store(s3_url, cache=tmp_path / "cache").put("a", b"hello")
    copy = open_store(s3_url, cache=tmp_path / "cache").fetch(ref)
    copy.write_bytes(b"hellO")
    assert open_store(s3_url, cache=tmp_path / "cache").fetch(ref).read_bytes() == b"hello"


@pytest.mark.s3
def test_the_cache_evicts_the_least_recently_used_objects_beyond_its_bound(
    s3_url: str, tmp_path: Path
) -> None:
    store = open_store(s3_url, cache=tmp_path / "cache", cache_bytes_max=2_500)
    refs = [store.put(f"o/{i}", bytes([i]) * 1_000) for i in range(3)]
    leftover = tmp_path / "cache" / ".part"
    leftover.write_bytes(b"x")
    os.utime(leftover, (0, 0))
    for i, ref in enumerate(refs):
        used = store.fetch(ref)
        os.utime(used, (i, i))
    assert sorted(f.name for f in (tmp_path / "cache").iterdir()) == sorted(
        r.sha256 for r in refs[1:]
    )
    assert store.fetch(refs[0]).read_bytes() == b"\0" * 1_000


@pytest.mark.s3
def test_an_unreachable_store_is_unavailable_and_intact_copies_are_still_served(
    s3_url: str, tmp_path: Path
) -> None:
    near = open_store(s3_url, cache=tmp_path / "cache")
    ref = near.put("a", b"hello")
    near.fetch(ref)
    unreachable = RemoteStore(
        fs.S3FileSystem(
            access_key="x",
            secret_key="y",
            endpoint_override="127.0.0.1:9",
            scheme="http",
            region="us-east-1",
        ),
        "bucket/prefix",
        tmp_path / "cache",
    )
    assert unreachable.fetch(ref).read_bytes() == b"hello"
    for act in (
        lambda: unreachable.get(ref),
        lambda: unreachable.put("b", b"x"),
        lambda: list(unreachable.list()),
    ):
        with pytest.raises(Unavailable) as found:
            act()
        assert found.value.dependency == "store"


def test_urls_are_understood_or_refused_and_never_repeat_a_secret(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    assert open_store(f"file://{quote(str(folder))}")._root == folder
    for url in ("nope://user:secret@host/x", "file://elsewhere/x", "s3://key:secret@/?bad=1"):
        with pytest.raises(Refused) as found:
            open_store(url)
        assert "secret" not in found.value.detail
    assert shown("s3://key:secret@bucket/p?region=r") == "s3://…@bucket/p?region=r"
    assert shown("/data/store") == "/data/store"


PUT = (
    "import sys; from pathlib import Path; from vicinage.store import LocalStore; "
    "LocalStore(Path(sys.argv[1])).put('a', b'x')"
)


def test_a_kill_before_the_link_leaves_nothing_to_be_seen(tmp_path: Path) -> None:
    environment = {**os.environ, "VICINAGE_CRASH": "store.before_link"}
    done = subprocess.run([sys.executable, "-c", PUT, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    store = LocalStore(tmp_path)
    assert list(store.list()) == []
    store.put("a", b"x")
