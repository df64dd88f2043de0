"""Ending the main job before its trials have begun."""

import io
import os
import signal
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from maskpro.machine.interruption import Interruption, interruptible
from maskpro.tuning import main_job

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP"), (signal.SIGINT, "Ctrl-C")]
)
def test_a_signal_before_ray_is_up_ends_the_search_in_words(monkeypatch, request, number, reason):
    @contextmanager
    def starting(experiment, interruption):
        os.kill(os.getpid(), number)
        time.sleep(5)
        yield

    monkeypatch.setattr(main_job, "running_session", starting)
    monkeypatch.setattr(main_job, "confirmation_plans", lambda experiment: ())
    # A process that was started in the background may have been told to ignore it.
    for ignored, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        request.addfinalizer(partial(signal.signal, ignored, signal.signal(ignored, handler)))
    handlers = [signal.getsignal(name) for name in ENDING]
    experiment = SimpleNamespace(search_state=lambda: SimpleNamespace(is_over=False), remove_unneeded=lambda state: None)
    assert main_job._run_trials(experiment).reason == reason
    assert [signal.getsignal(name) for name in ENDING] == handlers


def test_a_terminal_may_close_under_nohup(request):
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, hangup))
    interruption = Interruption()
    with interruptible(interruption, None):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
    assert interruption.reason == ""


def test_the_end_says_how_many_failed_and_why_and_whether_all_did(capsys):
    lost = [SimpleNamespace(number=number, failure="not\nfinite" if number != 2 else "lost") for number in (1, 2, 3)]
    assert main_job._tell_failures(lost)
    assert capsys.readouterr().out.splitlines() == [
        "3 of 3 trials failed, see failure in trials.csv",
        "  2, trial 1 the first: not finite",
        "  1, trial 2 the first: lost",
        "all trials failed: there is no mask to promote",
    ]
    learned = SimpleNamespace(number=4, failure="")
    assert not main_job._tell_failures([*lost, learned])
    assert capsys.readouterr().out.startswith("3 of 4 trials failed")
    assert not main_job._tell_failures([learned])
    assert not main_job._tell_failures([])
    assert capsys.readouterr().out == ""


def test_a_table_shows_brackets_as_they_are():
    frame = pd.DataFrame([{"source": "seed point [bold]", "val_error": 0.25}])
    console = Console(file=io.StringIO(), width=80)
    console.print(main_job._table("trials", frame))
    assert "seed point [bold]" in console.file.getvalue()
