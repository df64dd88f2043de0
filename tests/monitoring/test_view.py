"""What a search looks like at one moment, and a history that is read while it is written."""

import datetime
import io
import os
from types import SimpleNamespace

import pytest
from rich.console import Console

from maskpro.errors import MaskproError
from maskpro.monitoring.devices import DeviceMeter
from maskpro.monitoring.view import format_seconds, live_view, plain_summary, summary_rows, take_snapshot
from maskpro.schedule.folder import HISTORY_FILE
from maskpro.schedule.history import History, HistoryReader
from maskpro.schedule.rungs import Ladder
from maskpro.tuning import monitor as monitor_module
from maskpro.tuning.monitor import SearchMonitor

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
PARAMS = {"lr": 1 / 3, "batch_size": 16}


def metrics(samples, val_error=0.09, *, fidelity=0.5, done=False, failure=""):
    return {"num_samples_seen": samples, "val_error": val_error, "fidelity": fidelity, "done": done, "failure": failure}


def report(history, number, samples, val_error=0.09, *, stopped=False, **rest):
    history.report(number, metrics(samples, val_error, **rest), stopped=stopped)
    history.checkpoint(number, "somewhere", samples)


def fill(history, num_trials, *, max_samples=900):
    """A third completed, a third stopped at a rung, of the rest every second one failed; the last one runs."""
    history.session(num_trials + 5, time=START.isoformat())
    for number in range(1, num_trials + 1):
        history.start(PARAMS, source="optuna", seed=0)
        report(history, number, 100, 1 / number, stopped=number % 3 == 1 and number < num_trials)
        if number == num_trials:
            break
        if number % 3 == 0:
            report(history, number, max_samples, 0.5 / number, done=True)
        elif number % 3 == 2:
            history.report(number, metrics(200, None, failure=f"training loss\nis not finite ({number})"), stopped=False)


def snapshot_of(history, *, seconds=60, num_trials=None, max_samples=900):
    now = START + datetime.timedelta(seconds=seconds)
    return take_snapshot(history, num_trials=num_trials or history.num_trials, max_samples=max_samples, now=now)


@pytest.mark.parametrize("num_trials", [4, 1000])
def test_every_trial_is_counted_once(num_trials):
    history = History()
    fill(history, num_trials)
    snapshot = snapshot_of(history)
    parts = (snapshot.unfinished, snapshot.completed, snapshot.stopped, snapshot.failed, snapshot.to_come)
    assert sum(parts) == snapshot.num_trials == num_trials + 5
    assert snapshot.unfinished == 1
    assert snapshot.to_come == 5
    assert snapshot.ended == num_trials - 1
    statuses = [record.status for record in history.trials.values()]
    assert snapshot.completed == statuses.count("completed")
    assert snapshot.failed == statuses.count("failed")
    assert snapshot.samples == sum(record.samples for record in history.trials.values())
    assert snapshot.full_samples == 900 * (num_trials + 5)
    best = min((record for record in history.trials.values() if not record.failure), key=lambda r: r.last["val_error"])
    assert (snapshot.best.number, snapshot.best.params) == (best.number, PARAMS)
    assert all("\n" not in line for line in snapshot.errors)


def test_a_thousand_trials_fit_a_terminal():
    history = History()
    fill(history, 1000)
    snapshot = snapshot_of(history)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    console.print(live_view("results/x: running", snapshot, summary_rows(snapshot, [("GPU 0", "[bold] busy")])))
    shown = console.file.getvalue()
    assert shown.count("\n") < 15
    assert "333 completed" in shown
    assert "[bold] busy" in shown, "no text is markup"
    assert "(998)" in shown
    plain = plain_summary("results/x", summary_rows(snapshot))
    assert "  trials: 1 running, 333 completed, 333 stopped, 333 failed, 5 to come; 1,005 in all\n" in plain
    assert "\x1b" not in plain


def test_a_search_without_trials_has_a_view():
    rows = dict(summary_rows(snapshot_of(History(), num_trials=3)))
    assert rows["trials"].endswith("3 to come; 3 in all")
    assert rows["best so far"] == "no trial has reported yet"
    assert rows["time"] == "unknown"


def test_the_best_leaves_as_much_sparse_as_was_asked_for():
    history = History()
    history.session(2, time=START.isoformat(), min_sparse_share=0.5)
    for number, share in ((1, 0.4), (2, 0.5)):
        assert snapshot_of(history).best is None
        history.start({"num_dense": number}, source="optuna", seed=0)
        metrics = {"num_samples_seen": 100, "val_error": number / 10, "fidelity": 0.5, "done": True}
        history.report(number, metrics | {"sparse_multiply_adds_share": share}, stopped=False)
        if number == 1:
            rows = dict(summary_rows(snapshot_of(history)))
            assert rows["best so far"] == "no trial that may be promoted has reported yet"
    assert snapshot_of(history).best.number == 2


def test_confirmations_and_failures_are_never_the_best():
    history = History()
    history.session(2, time=START.isoformat())
    for source in ("seed point 1", "optuna", "confirmation of trial 1"):
        history.start(PARAMS, source=source, seed=0)
    report(history, 1, 900, 0.5, fidelity=None, done=True)
    report(history, 2, 900, 0.1, failure="no memory")
    report(history, 3, 900, 0.2, done=True)
    snapshot = snapshot_of(history, num_trials=3)
    assert snapshot.best.number == 1
    assert "trial 1, fidelity undefined, val_error 0.5 (lr 0.3333, batch_size 16)" in dict(summary_rows(snapshot)).values()


def test_time_left_is_what_the_trials_that_are_left_take_at_this_sessions_pace():
    history = History()
    history.session(4, time=(START - datetime.timedelta(days=1)).isoformat())
    history.start(PARAMS, source="optuna", seed=0)
    report(history, 1, 900, done=True)
    history.session(4, time=START.isoformat())
    assert snapshot_of(history).seconds_left is None, "nothing was seen in this session yet"
    history.start(PARAMS, source="optuna", seed=0)
    report(history, 2, 300)
    # 300 samples in 60 seconds; 600 are left of this trial, and 900 of each of two to come.
    assert snapshot_of(history, seconds=60).seconds_left == pytest.approx(480)
    report(history, 2, 500, stopped=True)
    # 500 in 100 seconds; trials take 700 in the mean.
    assert snapshot_of(history, seconds=100).seconds_left == pytest.approx(280)
    history.start(PARAMS, source="optuna", seed=0)
    report(history, 3, 800)
    # It has outlived the mean, and goes to its full budget.
    assert snapshot_of(history, seconds=130).seconds_left == pytest.approx((100 + 700) / 10)


def test_confirmations_are_left_to_their_full_budget_beside_the_search():
    """Of a search with a rung at 100 and two trials, which both climb; four confirmations are planned."""
    climbed = Ladder(ends=(100, 900), reduction_factor=3, restarts=False, min_completed=3)
    history = History()
    history.session(2, time=START.isoformat())
    now = START + datetime.timedelta(seconds=10)

    def left(num_trials):
        shown = take_snapshot(history, num_trials=num_trials, max_samples=900, now=now, ladder=climbed)
        return shown.seconds_left and shown.seconds_left * shown.samples / 10

    assert left(2) is None, "no pace yet"
    for source in ("seed point 1", "optuna"):
        history.start(PARAMS, source=source, seed=0)
    report(history, 1, 100)
    report(history, 2, 100, stopped=True)
    assert left(2) == pytest.approx(2 * 800)
    report(history, 1, 900, done=True)
    report(history, 2, 900, done=True)
    assert left(2) == 0
    assert left(2 + 4) == pytest.approx(4 * 900)
    for number in (3, 4):
        history.start(PARAMS, source="confirmation of trial 1", seed=number)
    report(history, 3, 300)
    history.error(4, "no memory")
    assert left(2 + 4) == pytest.approx(600 + 2 * 900)


def test_a_clock_that_is_behind_gives_no_negative_time():
    history = History()
    fill(history, 4)
    assert snapshot_of(history, seconds=-5).elapsed == 0
    assert snapshot_of(history, seconds=-5).seconds_left is None


def test_a_clock_that_has_been_set_back_gives_no_time_instead_of_a_wrong_one():
    history = History()
    fill(history, 4)
    snapshot = snapshot_of(history, seconds=-3600)
    assert (snapshot.elapsed, snapshot.seconds_left) == (None, None)
    assert dict(summary_rows(snapshot))["time"] == "unknown"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (725, "12 min 05 s"), (3 * 3600 + 1259, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations_have_two_units(seconds, text):
    assert format_seconds(seconds) == text


def test_a_reader_takes_in_whole_lines_whenever_they_come(tmp_path):
    whole = tmp_path / "whole.jsonl"
    fill(History(whole), 6)
    content, path = whole.read_bytes(), tmp_path / HISTORY_FILE
    path.touch()
    reader = HistoryReader(path)
    with path.open("ab") as file:
        for start in range(0, len(content), 37):
            file.write(content[start : start + 37])
            file.flush()
            num_lines = content[: start + 37].count(b"\n")
            assert reader.read() == (num_lines > content[:start].count(b"\n"))
            assert not reader.read()
    assert reader.history.trials == History(whole).trials
    assert vars(reader.history) | {"_path": whole} == vars(History(whole))


def test_a_reader_names_a_broken_line_by_its_place_in_the_file(tmp_path):
    path = tmp_path / HISTORY_FILE
    fill(History(path), 2)
    reader = HistoryReader(path)
    reader.read()
    num_lines = path.read_bytes().count(b"\n")
    with path.open("ab") as file:
        file.write(b"{nonsense}\n")
    with pytest.raises(MaskproError, match=rf"is broken in line {num_lines + 1} \("):
        reader.read()


def test_a_history_that_was_begun_anew_is_read_from_its_start(tmp_path):
    path, new = tmp_path / HISTORY_FILE, tmp_path / "new"
    fill(History(path), 2)
    reader = HistoryReader(path)
    reader.read()
    fill(History(new), 9)
    os.replace(new, path)
    assert reader.read()
    assert len(reader.history.trials) == 9
    path.unlink()
    with pytest.raises(MaskproError, match="no file"):
        reader.read()


def test_the_machine_is_described_and_gpus_as_nvidia_smi_says(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 0, NVIDIA H100, 37, 2048, 81559\necho 1, NVIDIA H100, [N/A], 0, 81559\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    machine, *gpus = DeviceMeter().complete_rows()
    assert "cores" in machine[1] or "GiB" in machine[1]
    assert gpus == [
        ("GPU 0", "NVIDIA H100, 37% busy, 2048 of 81559 MiB of memory"),
        ("GPU 1", "NVIDIA H100, [N/A]% busy, 0 of 81559 MiB of memory"),
    ]
    smi.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    assert len(DeviceMeter().complete_rows()) == 1


class FakeTrial:
    def __init__(self, number):
        self.config, self.path = {"trial": number}, f"/trials/{number}"


def test_a_running_search_prints_plain_lines_where_there_is_no_terminal(capsys):
    history = History()
    history.session(3, time=START.isoformat())
    monitor = SearchMonitor(history, num_trials=3, max_samples=900)
    monitor.setup()
    for _ in range(2):
        history.start(PARAMS, source="optuna", seed=0)
        monitor.on_step_end(0, [])
    report(history, 1, 900, 0.2, done=True)
    monitor.on_trial_result(0, [], FakeTrial(1), {})
    monitor.on_trial_complete(0, [], FakeTrial(1))
    history.error(2, "out of memory")
    monitor.on_trial_error(0, [], FakeTrial(2))
    monitor.on_experiment_end([])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("trial 1 of 3 ended at 900 samples: fidelity 0.500; best fidelity 0.500 (trial 1); 0 s, about ")
    assert second == "trial 2 of 3 failed; its error is in /trials/2"


def test_a_running_search_has_one_view_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    history = History()
    fill(history, 30)
    monitor = SearchMonitor(history, num_trials=35, max_samples=900)
    monitor.setup()
    monitor.on_trial_result(0, [], FakeTrial(30), {})
    monitor.on_trial_complete(0, [], FakeTrial(29))
    for _ in range(5):
        monitor.on_step_end(0, [])
    monitor.on_experiment_end([])
    shown = capsys.readouterr().out
    assert shown.count("searching") <= 2, "drawn at most twice a second"
    assert "best so far" in shown
    assert "trial 29 of 35" not in shown
    assert shown.endswith("\x1b[2K"), "and taken away again"


def test_forty_columns_are_enough():
    history = History()
    fill(history, 9)
    rows = summary_rows(snapshot_of(history))
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    console.print(live_view("searching", snapshot_of(history), rows))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    shown = "".join("".join(lines).split())
    for name, text in rows:
        assert name.split()[0] in shown
        assert all(word[:5] in shown for word in text.split()), text


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_running_search_estimates_the_time_left_whatever_becomes_of_the_clock(monkeypatch, capsys, hours):
    """500 samples in 50 seconds, and 500 are left."""
    clock, seconds = iter([START, START + datetime.timedelta(hours=hours)]), 1000.0
    fake = SimpleNamespace(datetime=SimpleNamespace(now=lambda zone: next(clock)), timedelta=datetime.timedelta, UTC=None)
    monkeypatch.setattr(monitor_module, "datetime", fake)
    monkeypatch.setattr(monitor_module, "time", SimpleNamespace(monotonic=lambda: seconds))
    history = History()
    history.session(2, time=START.isoformat())
    monitor = SearchMonitor(history, num_trials=2, max_samples=900)
    monitor.setup()
    seconds += 50
    for _ in range(2):
        history.start(PARAMS, source="optuna", seed=0)
    report(history, 1, 100, done=True)
    report(history, 2, 400)
    monitor.on_trial_complete(0, [], FakeTrial(1))
    assert capsys.readouterr().out.endswith("; 50 s, about 50 s left\n")


def test_a_run_that_begins_anew_is_where_its_own_report_says_and_the_best_is_who_is_best_now(monkeypatch, capsys):
    seconds = 1000.0
    monkeypatch.setattr(monitor_module, "time", SimpleNamespace(monotonic=lambda: seconds))
    history = History()
    history.session(2, time=START.isoformat())
    monitor = SearchMonitor(history, num_trials=2, max_samples=900)
    monitor.setup()
    for number, error in ((1, 0.1), (2, 0.2)):
        history.start(PARAMS, source="optuna", seed=0)
        report(history, number, 300, error, fidelity=1 - error, stopped=True)
        monitor.on_trial_result(0, [], FakeTrial(number), history.trials[number].last)
    history.go_on(1, promoted=True)
    seconds += 60
    monitor.on_trial_result(0, [], FakeTrial(1), metrics(100, 0.7, fidelity=0.3))
    report(history, 1, 400, 0.6, fidelity=0.4)
    seconds += 60
    monitor.on_trial_result(0, [], FakeTrial(1), history.trials[1].last)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("trial 1 at 100 samples; best fidelity 0.900 (trial 1)")
    assert second.startswith("trial 1 at 400 samples; best fidelity 0.800 (trial 2)")
