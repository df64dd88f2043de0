"""What the driver says beside the search goes into a file."""

import errno
import io
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from maskpro.monitoring.driver_log import driver_log, kept_output
from maskpro.schedule.folder import DRIVER_LOG


def test_rays_log_and_warnings_go_into_the_file_and_nowhere_else(tmp_path, capsys):
    ray_logger = logging.getLogger("ray")
    handlers, show = ray_logger.handlers, warnings.showwarning
    with warnings.catch_warnings(), driver_log(tmp_path):
        warnings.simplefilter("always")
        assert not (tmp_path / DRIVER_LOG).exists()
        logging.getLogger("ray.tune").error("Trial task failed")
        warnings.warn("old API", stacklevel=1)
    content = (tmp_path / DRIVER_LOG).read_text()
    assert "ERROR ray.tune: Trial task failed\n" in content
    assert "WARNING py.warnings: " in content
    assert "old API" in content
    assert capsys.readouterr() == ("", "")
    assert (ray_logger.handlers, warnings.showwarning) == (handlers, show)


def test_all_is_as_before_after_an_error(tmp_path):
    ray_logger = logging.getLogger("ray")
    handlers = ray_logger.handlers
    with pytest.raises(KeyError), driver_log(tmp_path):
        raise KeyError
    assert ray_logger.handlers is handlers
    assert list(tmp_path.iterdir()) == []


class Full:
    """A device without room, or a pipe that nobody reads."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error, self.written = error, ""

    def write(self, text):
        self.written += text

    def flush(self):
        raise self.error

    def isatty(self):
        return True

    def fileno(self):
        raise io.UnsupportedOperation


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EIO])
def test_lines_that_the_screen_can_not_take_are_in_the_log_and_end_nothing(tmp_path, monkeypatch, number):
    monkeypatch.setattr(sys, "stdout", Full(OSError(number, os.strerror(number))))
    outer = sys.stdout
    with kept_output():
        assert sys.stdout.isatty()
        print("before there is a folder", flush=True)
        assert not sys.stdout.isatty()
        with driver_log(tmp_path):
            print("trial 1", "ended", flush=True)
            print("half a ", end="")
            print("line")
        print("after", flush=True)
    assert sys.stdout is outer
    lines = [line.split("maskpro.screen: ")[1] for line in (tmp_path / DRIVER_LOG).read_text().splitlines()]
    assert os.strerror(number) in lines[0]
    assert lines[1:] == ["before there is a folder", "trial 1 ended", "half a line"]


def test_a_screen_that_takes_everything_leaves_no_log(tmp_path, capsys):
    with kept_output(), driver_log(tmp_path):
        print("trial 1 ended", flush=True)
    assert capsys.readouterr().out == "trial 1 ended\n"
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_room_ends_nothing(tmp_path, capsys):
    (tmp_path / DRIVER_LOG).symlink_to("/dev/full")
    with driver_log(tmp_path):
        logging.getLogger("ray.tune").error("Trial task failed")
    with driver_log(tmp_path / "nowhere"):
        logging.getLogger("ray.tune").error("Trial task failed")
    assert capsys.readouterr() == ("", "")


SCRIPT = """
import sys
from pathlib import Path
from maskpro.monitoring.driver_log import driver_log, kept_output
with kept_output(), driver_log(Path(sys.argv[1])):
    for number in range(20_000):
        print("a line with an \\u00e4 and a box \\u2500", number, flush=number % 7 == 0)
sys.exit(3)
"""


def run_script(tmp_path, output):
    command = f'"{sys.executable}" -c "$SCRIPT" "{tmp_path}" {output}'
    environment = os.environ | {"SCRIPT": SCRIPT, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("output", ["> /dev/full", "| head -1", ">&-"])
def test_a_process_keeps_its_own_exit_status_whatever_becomes_of_its_output(tmp_path, output):
    run = run_script(tmp_path, output)
    assert (run.returncode, run.stderr) == (3, "")
    last = (tmp_path / DRIVER_LOG).read_text().splitlines()[-1]
    assert last.endswith("a line with an ä and a box ─ 19999")


def test_characters_that_the_screen_lacks_are_shown_by_their_numbers(tmp_path):
    run = run_script(tmp_path, "| tail -1")
    assert run.stdout == "a line with an \\xe4 and a box \\u2500 19999\n"
