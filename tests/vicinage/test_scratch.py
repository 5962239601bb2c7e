"""Temporary folders: deleted with their block, or after their process."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from disk import full, small_disk

from vicinage.errors import Unavailable
from vicinage.scratch import own_folder, scratch, sweep_scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts temporary files into the test's own folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr("vicinage.scratch._own", {})
    return tmp_path


KILLED = """
import os, signal
from vicinage.scratch import scratch
with scratch("segment") as folder:
    (folder / "passages.arrow").write_bytes(b"x" * 100_000)
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_of_a_killed_process_goes_and_one_of_a_living_process_stays(
    temporary: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    left = Path(done.stdout.strip())
    assert (left / "passages.arrow").exists()
    with scratch("segment") as folder:
        assert sweep_scratch() == 1
        assert not left.parent.exists()
        assert folder.is_dir()
        assert sweep_scratch() == 0
    assert not folder.exists()
    assert [f.name for f in own_folder().iterdir()] == ["lock"]


def test_a_folder_that_others_deleted_is_made_again() -> None:
    shutil.rmtree(own_folder())
    with scratch("segment") as folder:
        assert folder.is_dir()


def test_without_any_folder_there_is_nothing_to_sweep() -> None:
    assert sweep_scratch() == 0


def test_a_full_disk_is_a_dependency_that_is_away(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(temporary / "small", 2) as small:
        monkeypatch.setenv("TMPDIR", str(small))
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        with scratch("segment") as folder:
            (folder / "a").write_bytes(b"x")
        with full(small):
            with pytest.raises(Unavailable, match="No space left"), scratch("segment") as folder:
                (folder / "a").write_bytes(b"x" * 100_000)
            with pytest.raises(Unavailable, match="by a library"), scratch("segment"):
                raise RuntimeError("by a library")
        with pytest.raises(RuntimeError), scratch("segment"):
            raise RuntimeError("for another reason")
