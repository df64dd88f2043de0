"""What is left of a Ray whose driver was killed; processes that sleep stand for Ray's."""

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")

DRIVER = """
import os, subprocess, sys, time
from maskpro.machine import ray_leftovers
folder = f"{sys.argv[1]}/session_2026-01-01_00-00-00_000000_{os.getpid()}/logs"
os.makedirs(folder)
kept = ray_leftovers.end_with_this_process()
logs = [open(f"{folder}/{name}", "w") for name in "ab"]
agents = [
    subprocess.Popen(["sleep", "600"], stdout=logs[0], stdin=subprocess.DEVNULL),
    # As Ray's agents: the log is kept, and what is written goes through a pipe.
    subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, pass_fds=[logs[1].fileno()]),
]
reader = open(logs[0].name)
other = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, pass_fds=[reader.fileno()])
print(kept.pid, *(process.pid for process in (*agents, other)), flush=True)
if sys.argv[2] == "shut down":
    kept.stdin.close()
time.sleep(600)
"""


def lives(pid):
    """Whether the process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
def test_what_a_killed_driver_leaves_of_its_ray_is_ended_and_nothing_else(tmp_path):
    with ExitStack() as stack:
        drivers = []
        for _ in range(2):
            command = [sys.executable, "-c", DRIVER, str(tmp_path), "killed"]
            driver = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
            )
            stack.callback(driver.kill)
            pids = list(map(int, driver.stdout.readline().split()))
            drivers.append((driver, pids))
            for pid in pids[1:]:
                stack.callback(subprocess.run, ["kill", "-9", str(pid)], capture_output=True)
        (first, pids), (_, others) = drivers
        assert all(map(lives, pids + others))
        first.kill()
        first.wait()
        watcher, *agents, other = pids
        assert wait_for(lambda: not any(map(lives, (watcher, *agents))))
        assert lives(other), "it only reads a log"
        assert all(map(lives, others)), "another Ray on the machine is let alone"


@pytest.mark.slow
def test_a_driver_that_has_shut_ray_down_lives_on(tmp_path):
    """It still holds a log of the Ray that it started."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path), "shut down"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as driver:
        watcher, *agents, other = map(int, driver.stdout.readline().split())
        try:
            assert wait_for(lambda: not any(map(lives, (watcher, *agents))))
            assert lives(driver.pid)
        finally:
            driver.kill()
            subprocess.run(["kill", "-9", str(other)], capture_output=True)
