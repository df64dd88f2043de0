"""Ray's start beside what takes as long."""

import threading
import time

import pytest

from maskpro.errors import MaskproError
from maskpro.tuning import resources


def test_an_address_where_nothing_answers_is_told_of_to_whoever_waits():
    refused = pytest.raises(MaskproError, match=r"address is '127.0.0.1:1'; nothing answers there")
    with refused, resources.ray_starting("127.0.0.1:1") as wait:
        wait()
    with resources.ray_starting("127.0.0.1:1"):
        pass


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
    with pytest.raises(MaskproError, match="a mistake"), resources.ray_starting("auto"):
        raise MaskproError("a mistake")
    assert events == ["joined auto", "shut down, thread alive: True"]
    assert capsys.readouterr().out == "", "a mistake is all that is told"
    with resources.ray_starting("auto") as wait:
        wait()
    thread.join(10)
    assert not thread.is_alive()
    assert capsys.readouterr().out == "Ray dashboard: http://127.0.0.1:8265\n"


def test_ctrl_c_does_not_wait_for_ray(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(resources, "_connect", lambda address: never.wait(60))
    monkeypatch.setattr(resources.ray, "shutdown", lambda: pytest.fail("Ray is not up"))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), resources.ray_starting(None):
        raise KeyboardInterrupt
    assert time.monotonic() - started < 30
    never.set()
