"""Ray's start beside what takes as long."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from maskpro.errors import MaskproError
from maskpro.tuning import resources


def test_an_address_where_nothing_answers_is_told_of_to_whoever_waits():
    refused = pytest.raises(MaskproError, match=r"address is '127.0.0.1:1'; nothing answers there")
    with refused, resources.ray_starting("127.0.0.1:1") as wait:
        wait()
    with resources.ray_starting("127.0.0.1:1"):
        pass


@pytest.mark.parametrize(
    ("address", "variable", "message"),
    [
        ("auto", "127.0.0.1:1", "address is 'auto' with RAY_ADDRESS=127.0.0.1:1; nothing answers there ("),
        ("auto", "[::1]:1", "address is 'auto' with RAY_ADDRESS=[::1]:1; nothing answers there ("),
        ("auto", "ray://127.0.0.1:1", "address is 'auto' with RAY_ADDRESS=ray://127.0.0.1:1; allowed: host:port on a node"),
        ("127.0.0.1:99999", "", "address is '127.0.0.1:99999'; nothing answers there ("),
    ],
)
def test_an_address_of_a_dead_cluster_is_told_of_before_ray_waits_for_it(address, variable, message):
    with pytest.raises(MaskproError) as caught:
        resources._check_address(address, {"RAY_ADDRESS": variable})
    assert str(caught.value).startswith(message)


def test_a_local_ray_does_not_ask_for_a_cluster(monkeypatch):
    """Whatever RAY_ADDRESS says: that is for `auto`."""
    resources._check_address(None, {"RAY_ADDRESS": "127.0.0.1:1"})
    asked = []
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(resources, "_local_settings", dict)
    monkeypatch.setattr(resources.ray, "init", lambda **settings: asked.append(settings["address"]))
    resources._connect(None)
    assert asked == ["local"]


def test_ray_is_shut_down_after_its_start_and_its_thread_outlives_it(monkeypatch, capsys):
    """The kernel would end Ray with the thread that started it."""
    events = []
    thread = None

    def connect(address):
        nonlocal thread
        thread = threading.current_thread()
        time.sleep(0.2)
        events.append(f"joined {address}")
        return "127.0.0.1:8265"

    monkeypatch.setattr(resources, "_connect", connect)
    monkeypatch.setattr(resources.ray, "shutdown", lambda: events.append(f"shut down, thread alive: {thread.is_alive()}"))

    def fail_once(ray_is_up):
        ray_is_up()
        raise MaskproError("a mistake")

    with pytest.raises(MaskproError, match="a mistake"), resources.ray_starting("auto") as wait:
        fail_once(wait)
    assert events == ["joined auto", "shut down, thread alive: True"]
    thread.join(10)
    assert not thread.is_alive()
    assert capsys.readouterr().out == "Ray dashboard: http://127.0.0.1:8265\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MaskproError("a mistake")])
def test_neither_ctrl_c_nor_a_mistake_waits_for_ray(monkeypatch, capsys, error):
    begun, never = threading.Event(), threading.Event()

    def connect(address):
        begun.set()
        never.wait(60)

    def fail():
        assert begun.wait(60)
        raise error

    monkeypatch.setattr(resources, "_connect", connect)
    monkeypatch.setattr(resources.ray, "shutdown", lambda: pytest.fail("Ray is not up"))
    started = time.monotonic()
    with pytest.raises(type(error)), resources.ray_starting(None):
        fail()
    assert time.monotonic() - started < 30
    assert capsys.readouterr().out == "", "nothing beside a mistake is told"
    never.set()


class BusyMachine(Exception):
    """As Ray's own, which is of no other class."""


def test_a_start_that_takes_too_long_is_tried_again_with_a_word(monkeypatch, capsys):
    """The thread of a failed try has ended by the next one: the kernel ends what that try has left with it."""
    threads = []

    def init(**settings):
        assert [thread for thread in threads if thread.is_alive()] == []
        threads.append(threading.current_thread())
        if len(threads) < 3:
            raise BusyMachine("The current node timed out during startup.")
        return SimpleNamespace(dashboard_url="127.0.0.1:8265")

    monkeypatch.setattr(resources, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(resources.ray, "init", init)
    monkeypatch.setattr(resources.ray, "shutdown", lambda: None)
    with resources.ray_starting(None) as wait:
        wait()
        assert threads[2].is_alive()
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("Ray is not up yet (load ")
    assert second.endswith("trying again, 3 of 3")
    assert last == "Ray dashboard: http://127.0.0.1:8265"


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [BusyMachine("timed out"), RuntimeError("Failed to connect to GCS"), TimeoutError("GCS timed out")]
)
def test_a_machine_that_stays_busy_is_told_of_in_one_sentence(monkeypatch, error):
    tries = []

    def init(**settings):
        tries.append(settings)
        raise error

    monkeypatch.setattr(resources, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(resources.ray, "init", init)
    monkeypatch.setattr(resources.ray, "is_initialized", lambda: False)
    with pytest.raises(MaskproError, match=r"Ray did not start on this machine in 3 tries \(.*; load .*\); allowed: a"):
        resources.start_ray(None, cpus=1, gpus=0)
    assert len(tries) == 3
    with pytest.raises(MaskproError, match="address is 'auto'; Ray could not be reached"):
        resources.start_ray("auto", cpus=1, gpus=0)
    assert len(tries) == 4, "a Ray that runs elsewhere does not come up by being asked again"


@pytest.mark.slow
def test_what_no_further_try_can_mend_is_told_at_once(monkeypatch):
    tries = []

    def init(**settings):
        tries.append(settings)
        raise ValueError("bad value")

    monkeypatch.setattr(resources.ray, "init", init)
    monkeypatch.setattr(resources.ray, "is_initialized", lambda: False)
    with pytest.raises(MaskproError, match=r"address is None; .*\(bad value\)"):
        resources.start_ray(None, cpus=1, gpus=0)
    assert len(tries) == 1


@pytest.mark.slow
def test_a_user_with_a_mistake_does_not_wait_for_further_tries(monkeypatch):
    tries = []

    tried, seen = threading.Event(), threading.Event()

    def init(**settings):
        tries.append(settings)
        tried.set()
        assert seen.wait(60)
        raise BusyMachine("timed out")

    monkeypatch.setattr(resources.ray, "init", init)
    starts = []

    class Start(resources._Start):
        def __init__(self, address):
            super().__init__(address)
            starts.append(self)

    def fail():
        assert tried.wait(60)
        raise MaskproError("a mistake")

    monkeypatch.setattr(resources, "_Start", Start)
    with pytest.raises(MaskproError, match="a mistake"), resources.ray_starting(None):
        fail()
    seen.set()
    assert "1 tries" in str(starts[0].connected.exception(60))
    assert len(tries) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone binds processes to cores")
def test_trials_get_the_cores_that_the_process_may_use():
    """As under `taskset` and in batch systems; in a process of its own, since cores are counted once."""
    command = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    command += "from maskpro.tuning.resources import _local_settings; print(_local_settings()['num_cpus'])"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    *lines, cores = run.stdout.splitlines()
    assert cores == "1"
    expected = f"trials have 1 of this machine's {os.cpu_count()} cores, as this process has"
    assert lines == ([expected] if os.cpu_count() > 1 else [])


def test_a_limit_of_open_files_at_which_ray_would_end_is_told_of_before_its_start(monkeypatch):
    monkeypatch.setattr(resources, "raise_file_limit", lambda: 64)
    with pytest.raises(MaskproError, match=r"the limit of open files is 64, .*; allowed: at least 256, such as by ulimit"):
        resources._local_settings()
