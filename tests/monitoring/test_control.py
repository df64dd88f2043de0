"""`maskpro monitor` and `maskpro stop`, on folders made by hand and processes that only hold a lock."""

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import typer

from maskpro.cli import app, main
from maskpro.errors import MaskproError
from maskpro.monitoring.control import ExperimentWatcher, newest_experiment, stop_search
from maskpro.schedule.folder import LOCK_FILE
from maskpro.schedule.history import History
from maskpro.schedule.lock import hold_lock, is_held, read_holder

ROOT = Path(__file__).parents[2]
# A search as far as its lock goes: holds it until SIGTERM, unless it is told to ignore that.
HOLDER = """
import signal, sys, time
from pathlib import Path
from maskpro.schedule.lock import hold_lock
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
# Looks far more often than a monitor.
LOOKER = """
import sys, time
from pathlib import Path
from maskpro.schedule.lock import is_held
print("looks", flush=True)
while True:
    is_held(Path(sys.argv[1]))
    time.sleep(0.002)
"""


# What is read of experiment.json.
DESCRIBED = {
    "scheduler": "asha",
    "is_replay": False,
    "options": {"promote_top_k": 1},
    "space": {"reduction_factor": 3, "promotion": "resume"},
    "trial": {"max_samples": 900, "report_samples": 100},
}


def report(history, number, samples, *, done=False, stopped=False, failure=""):
    metrics = {"num_samples_seen": samples, "val_error": 1 / samples, "fidelity": 0.5, "done": done, "failure": failure}
    history.report(number, metrics, stopped=stopped)
    history.checkpoint(number, "somewhere", samples)


@pytest.fixture
def folder(tmp_path):
    """A search of two trials, one of which has ended."""
    made = tmp_path / "results" / "first"
    made.mkdir(parents=True)
    (made / "experiment.json").write_text(json.dumps(DESCRIBED))
    history = History(made / "history.jsonl")
    history.session(2, time=datetime.datetime.now(datetime.UTC).isoformat())
    for lr in (1.0, 2.0):
        history.start({"lr": lr}, source="optuna", seed=0)
    report(history, 1, 900, done=True)
    report(history, 2, 100)
    return made


def finish(folder):
    report(History(folder / "history.jsonl"), 2, 300, stopped=True)
    (folder / "final_evaluation.json").write_text("{}")


@contextmanager
def held(folder, how="obedient"):
    command = [sys.executable, "-c", HOLDER, str(folder), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def run(*arguments):
    """The app's output comes through capsys; a mistake as the error that becomes one sentence and status 2."""
    typer.main.get_command(app).main(args=[str(argument) for argument in arguments], standalone_mode=False)


def test_monitor_once_on_a_finished_a_crashed_and_a_running_search(folder, capsys):
    run("monitor", folder, "--once")
    shown = capsys.readouterr().out
    assert shown.startswith(f"{folder}: was interrupted; resume with tune_main.py --resume {folder}\n")
    assert "  trials: 1 unfinished, 1 completed, 0 stopped, 0 failed, 0 to come; 2 in all\n" in shown
    assert "  best so far: trial 1, fidelity 0.500, val_error 0.00111 (lr 1)\n" in shown
    assert "  samples seen: 1,000, 56% of 1,800 (all trials to their full budget)\n" in shown
    assert "this machine" not in shown
    with hold_lock(folder):
        run("monitor", folder, "--once")
    shown = capsys.readouterr().out
    assert shown.startswith(f"{folder}: running\n")
    assert "  trials: 1 running, " in shown
    assert "  this machine: " in shown
    finish(folder)
    run("monitor", folder, "--once")
    assert capsys.readouterr().out.startswith(f"{folder}: has ended\n  trials: 0 unfinished, 1 completed, 1 stopped, ")
    with hold_lock(folder):
        run("monitor", folder, "--once")
    assert capsys.readouterr().out.startswith(f"{folder}: running; its trials have ended, the best are evaluated\n")


def test_a_search_whose_trials_all_failed_has_ended_and_one_that_was_extended_has_not(folder):
    now = datetime.datetime.now(datetime.UTC)
    finish(folder)
    History(folder / "history.jsonl").session(5, time="now")
    assert ExperimentWatcher(folder).look(now).standing == "interrupted"
    (folder / "history.jsonl").unlink()
    (folder / "final_evaluation.json").unlink()
    history = History(folder / "history.jsonl")
    history.session(1, time="now")
    assert ExperimentWatcher(folder).look(now).standing == "interrupted"
    history.start({"lr": 1.0}, source="optuna", seed=0)
    history.error(1, "no memory")
    sight = ExperimentWatcher(folder).look(now)
    assert sight.standing == "ended"
    assert ("failure", "trial 1: no memory") in sight.rows([])


def test_a_torn_last_line_is_not_seen(folder):
    path = folder / "history.jsonl"
    now = datetime.datetime.now(datetime.UTC)
    before = ExperimentWatcher(folder).look(now).snapshot
    with path.open("ab") as file:
        file.write(b'{"event": "report", "trial": 2, "metr')
    assert ExperimentWatcher(folder).look(now).snapshot.num_trials == before.num_trials


def test_the_time_left_counts_the_last_promotions(folder):
    """Both trials go to their full budget, as there are no more than two."""
    report(History(folder / "history.jsonl"), 2, 300, stopped=True)
    watcher = ExperimentWatcher(folder)
    with hold_lock(folder):
        watcher.look(datetime.datetime.now(datetime.UTC))
        begun = datetime.datetime.fromisoformat(watcher._reader.history.session_time)
        snapshot = watcher.look(begun + datetime.timedelta(seconds=60)).snapshot
    assert snapshot.samples == 1200
    assert snapshot.seconds_left == pytest.approx((2 * 900 - 1200) * 60 / 1200)


def test_a_search_killed_before_it_was_described_can_be_looked_at(folder):
    (folder / "experiment.json").unlink()
    sight = ExperimentWatcher(folder).look(datetime.datetime.now(datetime.UTC))
    assert ("samples seen", "1,000") in sight.rows([])


@pytest.mark.slow
def test_monitor_shows_changes_and_ends_with_the_search(folder):
    command = [sys.executable, "-c", "from maskpro.cli import main; main()", "monitor", str(folder)]
    with held(folder) as holder:
        watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        lines = [watching.stdout.readline()]
        finish(folder)
        while "evaluated" not in lines[-1]:
            lines.append(watching.stdout.readline())
        holder.terminate()
        rest, _ = watching.communicate(timeout=20)
    assert lines[0] == f"{folder}: running\n"
    assert rest.count(f"{folder}: has ended\n") == 1
    assert watching.returncode == 0


def test_ctrl_c_leaves_the_monitor_quietly_and_the_search_running(folder):
    command = [sys.executable, "-c", "from maskpro.cli import main; main()", "monitor", str(folder)]
    with held(folder) as holder:
        # A shell without job control lets what it starts in the background ignore Ctrl-C, children included.
        hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        watching = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=hear
        )
        assert watching.stdout.readline() == f"{folder}: running\n"
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=20)
        assert (watching.returncode, errors) == (0, "")
        assert holder.poll() is None


def test_the_newest_experiment_is_the_one_written_to_last(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parents[1])
    other = folder.parent / "second"
    other.mkdir()
    History(other / "history.jsonl").session(2, time="now")
    os.utime(folder / "history.jsonl", (1, 1))
    assert newest_experiment(Path("results")).name == "second"
    os.utime(other / "history.jsonl", (0, 0))
    run("monitor", "--once")
    assert capsys.readouterr().out.startswith(f"{Path('results/first')}: was interrupted")


def test_mistakes_end_in_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        (["monitor", tmp_path / "nowhere"], r"experiment is .*nowhere; no folder there \(allowed"),
        (["monitor", empty], r"experiment is .*empty, which has no history\.jsonl; allowed"),
        (["stop", tmp_path / "nowhere"], r"experiment is .*nowhere; no folder there \(allowed"),
        (["stop", empty], r"experiment .*empty is not running; allowed"),
        (["stop", folder, "--timeout", "nan"], r"timeout is nan; allowed: a number of seconds above 0"),
    ):
        with pytest.raises(MaskproError, match=message) as caught:
            run(*arguments)
        assert "\n" not in str(caught.value)
    for record in ({}, {"trial": {"max_samples": "many"}}):
        (folder / "experiment.json").write_text(json.dumps(record))
        with pytest.raises(MaskproError, match="does not say how long its trials are; allowed"):
            run("monitor", folder)
    (folder / "experiment.json").unlink()
    with (folder / "history.jsonl").open("ab") as file:
        file.write(b"nonsense\n")
    with pytest.raises(MaskproError, match="is broken in line 8"):
        run("monitor", folder)
    monkeypatch.chdir(empty)
    with pytest.raises(MaskproError, match="experiment is missing and none is in results/; allowed"):
        run("monitor")


def test_the_commands_exit_with_two_and_need_no_torch(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["maskpro", "stop", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: experiment {folder} is not running; allowed: one that is\n"
    code = (
        "import sys; from maskpro.cli import app; from maskpro.commands.running import run_app\n"
        "try: run_app(app)\n"
        "except SystemExit: print([name for name in ('torch', 'torchvision', 'ray', 'optuna') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "monitor", str(folder), "--once"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_a_running_search_is_stopped_and_can_go_on(folder, capsys):
    with held(folder) as process:
        assert read_holder(folder).pid == process.pid
        run("stop", folder)
        assert process.wait(timeout=5) == 143
    assert capsys.readouterr().out == f"{folder}: was interrupted; resume with tune_main.py --resume {folder}\n"
    assert not is_held(folder)
    with pytest.raises(MaskproError, match="is not running"):
        stop_search(folder, timeout=1)


def test_a_search_that_does_not_end_in_time_is_told_of(folder):
    with (
        held(folder, "deaf"),
        pytest.raises(MaskproError, match=r"was asked to end, but has not within 0\.2 seconds \(timeout\); allowed"),
    ):
        stop_search(folder, timeout=0.2)


def test_the_lock_of_a_dead_process_stops_nobody(folder):
    """Its number may be another process's by now: here, one that must live."""
    with held(folder) as process:
        process.kill()
        process.wait()
    assert read_holder(folder).pid == process.pid, "what a kill leaves"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as innocent:
        (folder / LOCK_FILE).write_text(json.dumps({"host": socket.gethostname(), "pid": innocent.pid}))
        with pytest.raises(MaskproError, match="is not running"):
            stop_search(folder, timeout=1)
        with held(folder):
            (folder / LOCK_FILE).write_text(json.dumps({"host": socket.gethostname(), "pid": innocent.pid}))
            with pytest.raises(MaskproError, match=rf"is locked, but not by process {innocent.pid} of this machine"):
                stop_search(folder, timeout=1)
        time.sleep(0.05)
        assert innocent.poll() is None
        innocent.kill()


def test_a_search_of_another_host_or_of_nobody_in_particular_is_left_alone(folder):
    with held(folder) as process:
        (folder / LOCK_FILE).write_text(json.dumps({"host": "node7", "pid": process.pid}))
        with pytest.raises(MaskproError, match=rf"runs on host node7, as process {process.pid}; allowed: maskpro stop on"):
            stop_search(folder, timeout=1)
        (folder / LOCK_FILE).write_text("")
        with pytest.raises(MaskproError, match="is run by a process that does not say which"):
            stop_search(folder, timeout=1)
        assert process.poll() is None


def test_a_lock_is_one_processs_and_a_refusal_does_not_forget_whose(folder):
    with held(folder) as process:
        assert is_held(folder)
        with pytest.raises(MaskproError, match=r"is running on host .*, as process \d+; allowed"), hold_lock(folder):
            pass
        assert read_holder(folder).pid == process.pid
    with hold_lock(folder):
        assert read_holder(folder).pid == os.getpid()
    assert read_holder(folder) is None


def test_a_look_at_the_lock_holds_no_search_up(folder):
    (folder / LOCK_FILE).touch()
    with subprocess.Popen([sys.executable, "-c", LOOKER, str(folder)], stdout=subprocess.PIPE, cwd=ROOT) as looking:
        looking.stdout.readline()
        for _ in range(50):
            with hold_lock(folder):
                time.sleep(0.001)
        looking.kill()
