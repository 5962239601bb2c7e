"""The SQLite log's file: upgraded on opening, and without deleted text."""

import sqlite3
from pathlib import Path

import pytest
from resources import eventually

from vicinage.errors import NotFound
from vicinage.log import Record, open_log, sqlite_records, sqlite_tidy
from vicinage.log.sqlite import SqliteLog


def test_a_file_without_a_count_of_moves_gets_one_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with open_log(f"sqlite:///{path}") as log:
        log.ensure_topic("t")
        log.append("t", 0, [Record(b"a")])
        log.append("t", 0, [Record(b"b")])
    with sqlite3.connect(path) as earlier:
        earlier.execute("DROP TABLE moves")
    earlier.close()
    with open_log(f"sqlite:///{path}") as log:
        reader = log.reader({("t", 0): 2})
        assert reader.poll() == []
        log.append("t", 0, [Record(b"c")])
        assert [r.record.value for r in reader.poll()] == [b"c"]
        reader.close()


SECRET = b"this text was deleted " * 400


def on_disk(folder: Path) -> bytes:
    """Returns every byte of the log's files."""
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())


def test_deleted_text_leaves_the_file_and_the_write_ahead_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_tidy, "TIDY_S", 0.02)
    monkeypatch.setattr(sqlite_tidy, "CHECKPOINT_S", 0.0)
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topic("t")
        for _ in range(30):
            log.append("t", 0, [Record(SECRET) for _ in range(20)])
        log.append("t", 0, [Record(b"kept")])
        eventually(lambda: SECRET[:21] in on_disk(tmp_path))
        size = (tmp_path / "log.db").stat().st_size
        log.trim("t", 0, 600)
        log.commit("g", {("t", 0): 600})  # wakes the writer, which tidies between transactions
        eventually(lambda: SECRET[:21] not in on_disk(tmp_path), wait_s=20)
        eventually(lambda: (tmp_path / "log.db").stat().st_size < size / 2, wait_s=20)
        assert [s.record.value for s in log.read("t", 0, 600)] == [b"kept"]


def test_a_long_trim_lets_appends_go_on_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_records, "TRIM_BYTES", 1_000)
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topic("t")
        log.append("t", 0, [Record(b"x" * 100) for _ in range(100)])
        log.trim("t", 0, 95)
        assert (log.begin("t", 0), log.end("t", 0), len(log.read("t", 0, 95))) == (95, 100, 5)
        log.trim("t", 0, 1_000)
        assert (log.begin("t", 0), log.end("t", 0)) == (100, 100)


def test_what_fits_into_so_many_bytes_is_counted_from_the_end(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topic("t")
        log.append("t", 0, [Record(b"x" * 100, b"k") for _ in range(10)])
        kept = [log.keeping("t", 0, n) for n in (0, 100, 101, 505, 1_010, 10**9)]
        assert kept == [10, 10, 9, 5, 0, 0]
        log.trim("t", 0, 7)
        assert log.keeping("t", 0, 10**9) == 7


def test_a_large_transaction_leaves_no_large_write_ahead_log(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topic("t")
        log.append("t", 0, [Record(bytes(1 << 20)) for _ in range(24)])
        for _ in range(3):
            log.append("t", 0, [Record(b"x")])
        assert (tmp_path / "log.db-wal").stat().st_size <= sqlite_tidy.WAL_BYTES


def test_a_topic_that_is_deleted_while_it_grows_ends_its_own_call_alone(tmp_path: Path) -> None:
    class Deleting(SqliteLog):
        """A log whose topic another thread deletes right after it was looked up."""

        def partitions(self, topic: str) -> int:
            found = super().partitions(topic)
            self.delete_topic(topic)
            return found

    with Deleting(tmp_path / "log.db") as log:
        log.ensure_topic("gone")
        log.ensure_topic("here")
        with pytest.raises(NotFound):
            log.add_partitions("gone", 4)
        assert log.append("here", 0, [Record(b"x")]) == [0]
