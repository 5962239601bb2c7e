"""State files: complete, newest, and optional: a full disk delays them."""

import threading
from pathlib import Path

from disk import full, small_disk
from resources import eventually

from cluster.ray import RayRole, known_actors
from cluster.state_file import StateFile


def test_a_full_disk_delays_a_state_file_and_raises_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1) as folder:
        file = StateFile(folder / "state.json")
        assert file.settle(lambda: {"pid": 1})
        with full(folder):
            assert not file.settle(lambda: {"pid": 2})
            assert file.read() == {"pid": 1}
        eventually(lambda: file.settle(lambda: {"pid": 2}))
        assert file.read() == {"pid": 2}


def test_the_newest_state_stays_whichever_thread_writes_it(tmp_path: Path) -> None:
    file, known = StateFile(tmp_path / "actors.json"), {}

    def learn(name: str) -> None:
        known[name] = {"pid": 1}
        file.settle(lambda: dict(known))

    names = [f"searcher-{i}" for i in range(50)]
    threads = [threading.Thread(target=learn, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read().keys() == set(names)


def test_actors_that_have_not_answered_since_a_restart_keep_their_entries() -> None:
    heard, silent, new = (RayRole(name, None) for name in ("ingest", "searcher-0", "searcher-1"))
    heard.pid = 20
    before = {"ingest": {"pid": 10}, "searcher-0": {"pid": 11}, "gone": {"pid": 12}}
    assert known_actors(before, [heard, silent, new]) == {
        "ingest": {"pid": 20},
        "searcher-0": {"pid": 11},
    }


def test_a_file_that_is_absent_or_not_whole_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert StateFile(path).read() == {}
    for text in ("", '{"pid": ', "[]"):
        path.write_text(text)
        assert StateFile(path).read() == {}
