import sys
from types import SimpleNamespace
from typing import get_args

import pytest

from maskpro.errors import MaskproError
from maskpro.trackers import Tracker, check_tracker, swanlab_log


@pytest.fixture
def fake_swanlab(monkeypatch):
    """Stands in for the extra, which the tests do not install: keeps the calls."""
    calls = []
    run = SimpleNamespace(log=lambda values, step: calls.append(("log", values, step)))

    def init(**settings):
        calls.append(("init", settings))
        return run

    module = SimpleNamespace(init=init, finish=lambda: calls.append(("finish",)))
    monkeypatch.setitem(sys.modules, "swanlab", module)
    monkeypatch.setattr("maskpro.trackers.find_spec", lambda name: module)
    return calls


def test_values_go_to_the_swanlab_run_which_is_finished_whatever_happens(fake_swanlab):
    def fail_after_one_value():
        with swanlab_log("project", name="run", config={"lr": 1.0}) as log:
            log({"val_loss": 0.1}, 640)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_one_value()
    init = ("init", {"project": "project", "name": "run", "config": {"lr": 1.0}})
    assert fake_swanlab == [init, ("log", {"val_loss": 0.1}, 640), ("finish",)]


def test_without_a_project_nothing_is_logged(fake_swanlab):
    with swanlab_log(None, name=None, config={}) as log:
        log({"val_loss": 0.1}, 640)
    assert fake_swanlab == []


@pytest.mark.parametrize("tracker", get_args(Tracker))
def test_a_project_without_the_extra_is_refused(monkeypatch, tracker):
    monkeypatch.setattr("maskpro.trackers.find_spec", lambda name: None)
    check_tracker(tracker, None)
    with pytest.raises(MaskproError, match=rf"{tracker} is 'project'; allowed: with the extra installed"):
        check_tracker(tracker, "project")
