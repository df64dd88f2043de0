"""A disk that is full, read-only or away for a while: the search pauses in words, and goes on once it can be written.

The short forms are in tests/tuning/test_faults.py, tests/test_files.py and tests/schedule/test_history.py.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from searches import SPACE, Driver, check_files, check_runs, compared, ended_trials, new_search, to_go_on

pytestmark = [pytest.mark.full, pytest.mark.slow]


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this user may not mount a disk ({made.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    return path


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def started(folder: Path, *more: object) -> Driver:
    """A driver whose second trial has reported."""
    (folder / "space.py").write_text(SPACE)
    driver = Driver(new_search(folder, *more), folder.parent / "output.txt")
    history = folder / "search" / "history.jsonl"

    def has_reported() -> bool:
        return history.is_file() and b'"event": "checkpoint", "trial": 2' in history.read_bytes()

    assert driver.wait_for(has_reported), driver.log.read_text()
    return driver


def resumed(folder: Path, log: Path, undisturbed: pd.DataFrame) -> None:
    search = folder / "search"
    ended = ended_trials(search)
    assert ended, "the first trial"
    driver = Driver(to_go_on(folder), log)
    assert driver.complete() == 0, log.read_text()
    driver.seconds_left_over()
    assert ended_trials(search).keys() >= ended.keys()
    assert "Traceback" not in log.read_text()
    check_files(search)
    check_runs(search)
    pd.testing.assert_frame_equal(compared(search), undisturbed, check_exact=True)


def test_the_disk_of_the_results_is_full(undisturbed, tmp_path):
    with mounted(tmp_path / "disk") as disk:
        driver = started(disk)
        filler = fill(disk)
        assert driver.end() == 1, driver.log.read_text()
        last = driver.log.read_text().splitlines()[-1]
        assert last.startswith("paused: "), last
        assert "No space left on device" in last
        assert "resume with --resume" in last
        filler.unlink()
        resumed(disk, driver.log, undisturbed)


@pytest.mark.parametrize("seconds", [3, None])
def test_the_storage_of_the_trials_is_read_only(undisturbed, tmp_path, seconds):
    """For some seconds, or until the search has paused."""
    place = tmp_path / "results"
    place.mkdir()
    with mounted(tmp_path / "disk") as disk:
        driver = started(place, "--storage-path", disk)
        remount(disk, "ro")
        if seconds is not None:
            time.sleep(seconds)
            remount(disk, "rw")
        status = driver.end()
        last = driver.log.read_text().splitlines()[-1]
        if status or seconds is None:
            assert status == 1, driver.log.read_text()
            assert last.startswith(f"paused: {disk}"), last
            assert "resume with --resume" in last
        if seconds is None:
            remount(disk, "rw")
        resumed(place, driver.log, undisturbed)
