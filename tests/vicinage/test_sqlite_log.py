"""The SQLite log's file: one that an earlier version wrote is brought up to date on opening."""

import sqlite3
from pathlib import Path

from vicinage.log import Record, open_log


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
