"""Ending the main job before its trials have begun."""

import os
import signal
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from maskpro.tuning import main_job


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_before_ray_is_up_ends_the_search_in_words(monkeypatch, request, number, reason):
    @contextmanager
    def starting(experiment, interruption):
        os.kill(os.getpid(), number)
        time.sleep(5)
        yield

    monkeypatch.setattr(main_job, "running_session", starting)
    monkeypatch.setattr(main_job, "confirmation_plans", lambda experiment: ())
    # A process that was started in the background may have been told to ignore it.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, interrupt))
    handlers = [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)]
    experiment = SimpleNamespace(search_state=lambda: SimpleNamespace(is_over=False))
    assert main_job._run_trials(experiment) == reason
    assert [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)] == handlers
