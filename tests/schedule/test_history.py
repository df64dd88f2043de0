"""The file that a search goes on from."""

import errno
import json
import math
import resource
import signal

import pytest

from benchmarks.simulated_search import SimulatedSearch
from maskpro.errors import MaskproError
from maskpro.schedule.event_file import drop_torn_line, read_events
from maskpro.schedule.folder import HISTORY_FILE
from maskpro.schedule.history import COMMON_FIDELITY, SHARE, History
from maskpro.schedule.state import METRICS, plain_metrics

SEARCH = SimulatedSearch(num_trials=4)
PARAMS = {"lr": 0.1 + 0.2, "batch_size": 16, "raw_step": False, "layout": "channel", "targets": "attn to_q"}


def fill(history):
    """Every kind of event."""
    history.session(3, time="2026-01-01T00:00:00+00:00")
    history.add_warm_start(PARAMS, 1 / 3, "warm start from other, trial_00002", [(100, 1 / 2), (200, 1 / 3)])
    for source in ("seed point 2", "optuna", "confirmation of trial 1"):
        history.start(PARAMS, source=source, seed=2**32 - 1)
    history.report(1, plain_metrics(SEARCH.metrics(1 / 3, 100)), stopped=False)
    history.checkpoint(1, "trial_00001/checkpoint_000000", 100)
    history.report(1, plain_metrics(SEARCH.metrics(1 / 7, 200)), stopped=True)
    history.report(2, plain_metrics(SEARCH.metrics(math.nan, 100)), stopped=False)
    history.removed(1, ("mask", "logits"))
    history.error(3, "ünknown\nin two lines")
    history.session(8, time="2026-01-02T00:00:00+00:00")


def test_a_warm_start_of_an_older_history_has_no_reports(tmp_path):
    (tmp_path / HISTORY_FILE).write_text('{"event": "warm_start", "params": {"lr": 1.0}, "value": 0.5, "source": "x"}\n')
    assert History(tmp_path / HISTORY_FILE).warm_start == [
        {"params": {"lr": 1.0}, "value": 0.5, "source": "x", "reports": []}
    ]


def test_every_event_survives_a_round_trip(tmp_path):
    path = tmp_path / HISTORY_FILE
    written = History(path)
    read = []
    for number, method in enumerate((fill, lambda history: history.error(2, ""))):
        method(written)
        read.append(History(path))
        assert vars(read[number]) == vars(written)
    in_memory = History()
    fill(in_memory)
    assert in_memory.trials == read[0].trials
    assert read[1].trials[2].error == "unknown error"
    assert (written.num_trials, written.num_sessions, list(written.trials)) == (8, 2, [1, 2, 3])
    warm = {"params": PARAMS, "value": 1 / 3, "source": "warm start from other, trial_00002"}
    assert written.warm_start == [warm | {"reports": [[100, 1 / 2], [200, 1 / 3]]}]
    assert [record.number for record in written.searched] == [1, 2]
    assert [record.seed_point for record in written.trials.values()] == [2, None, None]


def test_a_trial_has_ended_only_once_its_last_state_is_safe():
    history = History()
    history.start(PARAMS, source="optuna", seed=0)
    record = history.trials[1]
    statuses = []
    for samples in (100, 200, 900):
        history.report(1, plain_metrics(SEARCH.metrics(0.5, samples)), stopped=False)
        statuses.append(record.status)
        history.checkpoint(1, "somewhere", samples)
        statuses.append(record.status)
    assert statuses == ["unfinished"] * 5 + ["completed"]
    history.start(PARAMS, source="optuna", seed=0)
    assert history.trials[2].status == "unfinished"
    history.report(2, plain_metrics(SEARCH.metrics(0.5, 100)), stopped=True)
    assert history.trials[2].status == "unfinished"
    history.checkpoint(2, "somewhere", 100)
    assert history.trials[2].status == "stopped"
    history.start(PARAMS, source="optuna", seed=0)
    history.report(3, plain_metrics(SEARCH.metrics(math.nan, 100)), stopped=False)
    assert history.trials[3].status == "failed"
    assert history.trials[3].failure == "training loss is not finite after 100 samples"


def test_a_run_that_begins_anew_counts_from_its_checkpoints_until_it_reports_what_is_new():
    history, trained = History(), []

    def report(samples, *, earlier, stopped=False):
        metrics = {"num_samples_seen": samples, "num_samples_trained": earlier + samples, "val_error": 0.5, "done": False}
        history.report(1, metrics, stopped=stopped)

    history.start({"lr": 1.0}, source="optuna", seed=0)
    for event in (
        lambda: report(100, earlier=0, stopped=True),
        lambda: history.checkpoint(1, "first", 100),
        lambda: history.go_on(1, promoted=True),
        lambda: history.checkpoint(1, "second", 50),
        lambda: history.go_on(1, promoted=False),
        lambda: history.checkpoint(1, "third", 100),
        lambda: report(150, earlier=100),
        lambda: history.checkpoint(1, "fourth", 150),
        lambda: history.session(1, time="now"),
    ):
        event()
        trained.append(history.trials[1].trained)
    assert trained == [100, 100, 100, 150, 150, 200, 250, 250, 250]
    assert history.trained_before_session == 250
    for promoted in (True, False):  # a run that resumes where it stopped, until its next checkpoint
        history.start({"lr": 1.0}, source="optuna", seed=0)
        number = max(history.trials)
        history.report(number, {"num_samples_seen": 100, "val_error": 0.5, "done": False}, stopped=True)
        history.checkpoint(number, "first", 100)
        history.go_on(number, promoted=True)
        if not promoted:
            history.report(number, {"num_samples_seen": 150, "val_error": 0.5, "done": False}, stopped=False)
            history.checkpoint(number, "second", 150)
        assert history.trials[number].trained == history.trials[number].samples


def test_metrics_are_kept_as_json_can_hold_them(tmp_path):
    metrics = SEARCH.metrics(0.5, 100) | {"fidelity": math.inf, "time_this_iter_s": 3.0, "config": {"lr": 1.0}}
    kept = plain_metrics(metrics)
    assert kept["train_loss"] is None
    assert kept["fidelity"] is None
    assert set(METRICS) - set(kept) == {SHARE, COMMON_FIDELITY}, "of a search of num_dense alone"
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept
    history = History(tmp_path / HISTORY_FILE)
    history.start(PARAMS, source="optuna", seed=0)
    before = (tmp_path / HISTORY_FILE).read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        history.report(1, {"num_samples_seen": 100, "val_error": math.nan}, stopped=False)
    assert (tmp_path / HISTORY_FILE).read_bytes() == before
    assert not history.trials[1].reports, "what is not in the file has not happened"


REPORT = b'{"event": "report", "trial": 1, "stopped": false, "metrics": {%s}}'


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "Expecting value"),
        (b'{"event": "report", "trial": 1, "met{"event": "error", "trial": 1, "text": ""}', "Expecting"),
        (b"\xff\xfe\xff", "codec can't decode"),
        (b"\0\0\0\0\0\0\0\0", "Expecting value|codec can't decode"),
        (b'{"event": "error", "trial": 9, "text": ""}', "KeyError: 9"),
        (b'{"event": "error", "trial": 1}', "KeyError: 'text'"),
        (b'{"trial": 1}', "KeyError: 'event'"),
        (b"5", "TypeError: .*"),
        (b'"session"', "TypeError: .*"),
        (b'{"event": "pause", "trial": 1}', "KeyError: 'pause'"),
        (b'{"event": "session", "num_trials": "8", "time": ""}', "TypeError: num_trials is '8'"),
        (b'{"event": "trial", "trial": 2, "params": null, "source": "tpe", "seed": 0}', "TypeError: params is None"),
        (b'{"event": "trial", "trial": 2, "params": {}, "source": 5, "seed": 0}', "TypeError: source is 5"),
        (REPORT % b'"num_samples_seen": -1, "val_error": 0.5', "TypeError: num_samples_seen is -1"),
        (REPORT % b'"num_samples_seen": true, "val_error": 0.5', "TypeError: num_samples_seen is True"),
        (REPORT % b'"num_samples_seen": 100', "TypeError: val_error is None"),
        (REPORT % b'"num_samples_seen": 100, "val_error": null', "TypeError: val_error is None"),
        (REPORT % b'"num_samples_seen": 100, "val_error": 0.5, "fidelity": "0.1"', "TypeError: fidelity is '0.1'"),
        (REPORT % b'"num_samples_seen": 100, "val_error": 0.5, "num_samples_trained": "x"', "num_samples_trained is 'x'"),
        (b"[" * 100_000, "maximum recursion depth exceeded"),
    ],
)
def test_a_broken_line_is_named_in_one_sentence(tmp_path, line, why):
    path = tmp_path / HISTORY_FILE
    fill(History(path))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:4], line, *lines[4:]]))
    with pytest.raises(
        MaskproError, match=rf"history\.jsonl is broken in line 5 \(.*({why}).*\); allowed: a history"
    ) as caught:
        History(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_history_cut_short_anywhere_is_the_history_of_its_whole_lines(tmp_path):
    whole = tmp_path / "whole.jsonl"
    fill(History(whole))
    content = whole.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for cut in {*range(0, len(content), 13), *ends, *(end - 1 for end in ends), 0, 1}:
        path = tmp_path / HISTORY_FILE
        path.write_bytes(content[:cut])
        whole_lines = sum(end <= cut for end in ends)
        assert len(list(read_events(path))) == whole_lines
        before = vars(History(path))
        drop_torn_line(path)
        assert vars(History(path)) == before
        History(path).session(1, time="later")
        assert len(list(read_events(path))) == whole_lines + 1
        path.unlink()


def test_a_full_disk_leaves_no_half_line(tmp_path):
    """The limit on a file's size stands for the disk's end: both cut a write short."""
    path = tmp_path / HISTORY_FILE
    history = History(path)
    fill(history)
    before, trials = path.read_bytes(), dict(history.trials)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        with pytest.raises(OSError, match=r"history\.jsonl") as caught:
            history.start(PARAMS, source="optuna", seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert history.trials == trials
    with pytest.raises(OSError, match=r"history\.jsonl"):  # room has come back, but a line is missing
        history.start(PARAMS, source="optuna", seed=0)
    assert path.read_bytes() == before
    History(path).start(PARAMS, source="optuna", seed=0)
    assert list(History(path).trials) == [1, 2, 3, 4]
