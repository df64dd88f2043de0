"""Faults of the machine pause a search, and no trial is to blame for them."""

import errno
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest

from maskpro.files import says_no_room
from maskpro.machine.interruption import Interruption, interruptible
from maskpro.schedule.history import History
from maskpro.schedule.state import Plan, PlannedTrials
from maskpro.tuning import faults, main_job
from maskpro.tuning.adapters import HistoryCallback
from maskpro.tuning.faults import FaultWatch, SilenceWatch, needed_bytes, watched_ray


class Asked(Interruption):
    """Sends no signal."""

    def pause(self, reason, problem):
        self.note(reason, problem)


def failed_trial(tmp_path, text, number=1):
    path = tmp_path / "error.txt"
    path.write_text(text)
    return SimpleNamespace(
        config={"trial": number, "folder": f"trial_{number:05d}"},
        error_file=str(path),
        num_failures=9,
        get_error=lambda: None,
    )


def watch_of(history, storage, interruption):
    return FaultWatch(history, storage=str(storage), num_bytes=3_000_000, interruption=interruption)


@pytest.fixture
def source():
    source = PlannedTrials(History(), [Plan(params={"lr": 2.0}, source="seed point 1", seed=0)])
    source.next_trial()
    return source


@pytest.mark.parametrize(
    "text",
    [
        "OSError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device\n",
        "safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)",
        "OSError: [Errno 122] Disk quota exceeded",
        "RuntimeError: [enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0",
    ],
)
def test_a_trial_that_a_full_disk_ends_stays_unfinished_and_the_search_pauses(tmp_path, source, text):
    interruption = Asked()
    watch = watch_of(source.history, tmp_path / "storage", interruption)
    HistoryCallback(source, {}, storage=str(tmp_path), is_excused=watch.caused).on_trial_error(
        1, [], failed_trial(tmp_path, text)
    )
    assert source.history.trials[1].status == "unfinished"
    assert interruption.reason == "the trials' storage"
    assert str(tmp_path / "storage") in interruption.problem
    assert "it needs about 3.0 MB" in interruption.problem
    assert list((tmp_path / "storage").iterdir()) == [], "the probe is removed"


def test_a_storage_that_can_not_be_written_excuses_whatever_a_trial_says(tmp_path, source):
    interruption = Asked()
    watch = watch_of(source.history, "/proc/nowhere", interruption)
    watch.on_trial_recover(1, [], failed_trial(tmp_path, ""))
    assert "/proc/nowhere can't be written" in interruption.problem
    assert watch.caused(failed_trial(tmp_path, "anything else, once it has begun"))


def test_a_trial_that_fails_by_itself_is_told_as_failed_with_its_own_words(tmp_path, source):
    interruption = Asked()
    watch = watch_of(source.history, tmp_path / "storage", interruption)
    trial = failed_trial(tmp_path, "Failure # 1\nTraceback\nValueError: bad mask\n")
    HistoryCallback(source, {}, storage=str(tmp_path), is_excused=watch.caused).on_trial_error(1, [], trial)
    assert source.history.trials[1].failure == "ValueError: bad mask"
    assert interruption.problem == ""


def test_a_history_that_can_not_be_written_tells_nothing_more_and_pauses_the_search(tmp_path, source):
    history = source.history
    history._path = tmp_path / "history.jsonl"
    history._path.symlink_to("/dev/full")
    report = {"num_samples_seen": 10, "val_loss": 0.1, "done": False, "failure": ""}
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            history.report(1, report, stopped=False)
    history._path = tmp_path / "with_room.jsonl"  # room comes back, but lines are missing
    with pytest.raises(OSError, match="No space left"):
        history.checkpoint(1, "trial_00001/checkpoint_000000", 10)
    assert history.trials[1].reports == {}
    assert not (tmp_path / "with_room.jsonl").exists()
    for look in (
        lambda watch: watch.on_step_end(1, []),
        lambda watch: watch.caused(failed_trial(tmp_path, "")),
        lambda watch: watch.explain(RuntimeError("Traceback ...")),
    ):
        interruption = Asked()
        look(watch_of(history, tmp_path / "storage", interruption))
        assert interruption.reason == "the results folder"
        assert interruption.problem.startswith(f"{tmp_path} can't be written (No space left on device, ")


def test_a_silent_trial_is_not_started_again_and_its_silence_is_told(tmp_path, source):
    watch = SilenceWatch(0.2)
    trial = failed_trial(tmp_path, "The actor died\n")
    trial.trial_id, trial.num_failures, trial.max_failures = "a", 1, 3
    told = HistoryCallback(source, {}, storage=str(tmp_path / "storage"), cause=watch.cause)
    watch.on_trial_start(1, [], trial)
    time.sleep(0.15)
    watch.on_trial_result(1, [], trial, {})
    time.sleep(0.15)
    watch.on_step_end(1, [])
    assert (watch.cause(trial), trial.max_failures) == ("", 3)
    time.sleep(0.1)
    watch.on_step_end(1, [])
    assert trial.max_failures == 0
    told.on_trial_error(1, [], trial)
    watch.on_trial_error(1, [], trial)
    assert source.history.trials[1].failure == "no report for 0.2 s, and so it was ended; allowed: a longer --trial-timeout"
    assert watch.cause(trial) == ""


def test_an_end_of_tune_that_is_no_fault_of_the_machine_is_not_explained(tmp_path, source):
    interruption = Asked()
    watch = watch_of(source.history, tmp_path / "storage", interruption)
    watch.on_step_end(1, [])
    assert not watch.explain(TypeError("a fault of ours"))
    assert (interruption.reason, interruption.problem) == ("", "")
    assert watch.explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_the_room_that_is_needed_grows_with_the_network_and_the_trials(digits):
    def searched(estimator, *patterns):
        formats = [SimpleNamespace(pattern=pattern) for pattern in patterns]
        space = SimpleNamespace(choices=lambda name, default: (estimator,))
        return SimpleNamespace(workload=digits, space=space, context=SimpleNamespace(formats=formats))

    search = searched("straight_through", "2:4")
    weights = sum(value.numel() for value in digits.model.parameters())
    assert 5 * weights < needed_bytes(search, 1) <= 10 * weights
    assert needed_bytes(search, 3) == 3 * needed_bytes(search, 1)
    # A logit for each mask of a group: 6 for 4 weights, 70 for 8.
    relaxed = searched("gumbel_softmax", "2:4"), searched("gumbel_softmax", "2:4", "4:8")
    assert needed_bytes(relaxed[0], 1) == pytest.approx(1.5 * needed_bytes(search, 1))
    assert needed_bytes(relaxed[1], 1) == pytest.approx(70 / 8 * needed_bytes(search, 1))
    assert not says_no_room("ValueError: no room")


@pytest.fixture
def quick(monkeypatch):
    for name in ("_SILENT_SECONDS", "_LAST_SECONDS", "_LOOK_SECONDS"):
        monkeypatch.setattr(faults, name, 0.2)


def ray_at(monkeypatch, address):
    monkeypatch.setattr(faults.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))


@pytest.mark.slow
def test_a_head_that_has_died_pauses_the_search(monkeypatch, quick):
    with socket.create_server(("127.0.0.1", 0)) as server:
        ray_at(monkeypatch, "{}:{}".format(*server.getsockname()))
        interruption = Interruption()
        with interruptible(interruption, None), watched_ray(interruption, resume="--resume x"):
            time.sleep(1)  # it answers
            server.close()
            monkeypatch.setattr(faults, "_LAST_SECONDS", 60.0)
            with pytest.raises(KeyboardInterrupt):
                time.sleep(60)
    assert interruption.reason == "Ray"
    assert interruption.problem.startswith("Ray's head at 127.0.0.1:")


def test_a_pause_that_does_not_come_to_its_end_ends_the_process_with_a_word(monkeypatch, quick, capsys):
    """Ray would end it without one."""
    ray_at(monkeypatch, "127.0.0.1:1")
    ended = threading.Event()
    monkeypatch.setattr(faults.os, "_exit", lambda status: ended.set() if status == 1 else None)
    with watched_ray(Asked(), resume="--resume x"):
        assert ended.wait(60)
    assert capsys.readouterr().out == "paused: Ray's head at 127.0.0.1:1 has died; resume with --resume x\n"


# A search on a model without notes.
SEARCH = SimpleNamespace(workload=SimpleNamespace(notes=()), dense_layers=SimpleNamespace(layers=()))


@pytest.fixture
def experiment(tmp_path):
    history = History()
    history.session(2, time="now")
    history.start({"lr": 2.0}, source="seed point 1", seed=0)
    return SimpleNamespace(folder=tmp_path, history=history)


def test_a_paused_search_says_what_to_do_and_ends_with_status_1(monkeypatch, experiment, capsys):
    """Also where its own tables can't be written."""

    def full(experiment):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(main_job, "write_trials", full)
    interruption = Interruption()
    interruption.note("the trials' storage", "/full can't be written (No space left on device); it needs about 3 MB")
    assert main_job._leave(experiment, interruption) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "paused: /full can't be written (No space left on device); it needs about 3 MB; 0 of 2 trials ended; "
        f"resume with --resume {experiment.folder}"
    )
    interruption = Interruption()
    interruption.reason = signal.Signals.SIGHUP.name
    assert main_job._leave(experiment, interruption) == 129
    assert "stopped by SIGHUP with 0 of 2 trials ended; resume with --resume" in capsys.readouterr().out


class SafetensorError(Exception):
    """As that of safetensors, which is no OSError."""


@pytest.mark.parametrize("phase", ["write_trials", "promote", "_summarise", "write_report"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "trials.csv"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_results_disk_that_fills_up_after_the_trials_pauses_the_job(monkeypatch, experiment, capsys, phase, error):
    @contextmanager
    def opened(search, *, resume, extend):
        yield experiment

    def full(*arguments, **named):
        raise error

    monkeypatch.setattr(main_job, "open_experiment", opened)
    monkeypatch.setattr(main_job, "_run_trials", lambda experiment: Interruption())
    for name in ("write_trials", "promote", "_summarise"):
        monkeypatch.setattr(main_job, name, full if name == phase else lambda *arguments, **named: {})
    write_report = full if phase == "write_report" else lambda folder: folder
    assert main_job.run_main_job(SEARCH, write_report, resume=False) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"paused: {experiment.folder} has no room left (")
    assert last.endswith(f"; make room and resume with --resume {experiment.folder}")


def test_a_fault_of_ours_after_the_trials_is_not_taken_for_the_machines(monkeypatch, experiment):
    @contextmanager
    def opened(search, *, resume, extend):
        yield experiment

    def broken(experiment):
        raise TypeError("a fault of ours")

    monkeypatch.setattr(main_job, "open_experiment", opened)
    monkeypatch.setattr(main_job, "_run_trials", lambda experiment: Interruption())
    monkeypatch.setattr(main_job, "write_trials", broken)
    with pytest.raises(TypeError, match="a fault of ours"):
        main_job.run_main_job(SEARCH, lambda folder: folder, resume=False)


@pytest.mark.parametrize("phase", ["write_trials", "promote", "_summarise", "write_report"])
@pytest.mark.parametrize(
    ("number", "reason", "status"),
    [(signal.SIGHUP, "SIGHUP", 129), (signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)],
)
def test_a_signal_after_the_trials_ends_the_job_in_words(
    monkeypatch, request, experiment, capsys, phase, number, reason, status
):
    @contextmanager
    def opened(search, *, resume, extend):
        yield experiment

    def interrupted(*arguments, **named):
        os.kill(os.getpid(), number)
        time.sleep(5)

    # A process that was started in the background may have been told to ignore it.
    for ignored, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        request.addfinalizer(partial(signal.signal, ignored, signal.signal(ignored, handler)))
    monkeypatch.setattr(main_job, "open_experiment", opened)
    monkeypatch.setattr(main_job, "_run_trials", lambda experiment: Interruption())
    for name in ("write_trials", "promote", "_summarise"):
        monkeypatch.setattr(main_job, name, interrupted if name == phase else lambda *arguments, **named: {})
    write_report = interrupted if phase == "write_report" else lambda folder: folder
    assert main_job.run_main_job(SEARCH, write_report, resume=False) == status
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"stopped by {reason} after the trials; resume with --resume {experiment.folder}"
