"""What is in the trials' storage, file by file, while trials run, stop, go on and end."""

from types import SimpleNamespace

import pyarrow.fs
import pytest
import torch
from ray.tune import Checkpoint

from benchmarks.simulated_search import SimulatedSearch
from maskpro.schedule.checkpoints import write_checkpoint
from maskpro.schedule.folder import HISTORY_FILE
from maskpro.schedule.history import PARTS, History
from maskpro.schedule.state import plain_metrics
from maskpro.tuning.adapters import HistoryCallback, open_checkpoint

SEARCH = SimulatedSearch()
WHOLE = {"mask.safetensors", "logits.safetensors", "exact.safetensors", "state.json"}
STOPPED = WHOLE - {"exact.safetensors"}
ENDED = {"mask.safetensors", "state.json"}


class Storage:
    """A trial's reports and checkpoints, as Tune makes them, in a folder."""

    def __init__(self, root, *, may_go_on=True, as_uri=False):
        self.root, self.storage = root / "trials", (root / "trials").as_uri() if as_uri else str(root / "trials")
        self.history = History(root / HISTORY_FILE)
        self.history.start({"lr": 1.0}, source="optuna", seed=0)
        self.source = SimpleNamespace(history=self.history, stopped_may_go_on=may_go_on, finish=lambda number: None)
        self.callback = HistoryCallback(self.source, {}, storage=self.storage)
        self.trial = SimpleNamespace(
            config={"trial": 1, "folder": "trial_00001"},
            num_failures=9,
            error_file=None,
            get_error=lambda: "RuntimeError: lost",
        )

    def report(self, samples, *, stopped=False, **metrics):
        self.history.report(1, plain_metrics(SEARCH.metrics(0.5, samples) | metrics), stopped=stopped)
        self.trial.last_result = {"num_samples_seen": samples}
        name = f"{self.history.trials[1].folder}/checkpoint_{samples:06d}"
        (self.root / name).mkdir(parents=True)
        write_checkpoint(self.root / name, {part: {"x": torch.zeros(1)} for part in PARTS}, {})
        self.save(open_checkpoint(self.storage, name))

    def save(self, checkpoint):
        self.callback.on_checkpoint(1, [], self.trial, checkpoint)

    def files(self):
        folders = {path.parent for path in self.root.rglob("*") if path.is_file()}
        return {str(folder.relative_to(self.root)): {path.name for path in folder.iterdir()} for folder in folders}


@pytest.mark.parametrize("as_uri", [False, True])
def test_the_files_of_a_trial_that_runs_stops_goes_on_and_ends(tmp_path, as_uri):
    storage = Storage(tmp_path, as_uri=as_uri)
    for samples in (100, 200, 300):
        storage.report(samples)
    newest = {"trial_00001/checkpoint_000200": WHOLE, "trial_00001/checkpoint_000300": WHOLE}
    assert storage.files() == newest, "one more than the newest, for a kill between two writes"
    storage.report(400, stopped=True)
    stopped = {"trial_00001/checkpoint_000400": STOPPED}
    assert storage.files() == stopped
    assert storage.history.trials[1].checkpoint_parts == ("mask", "logits")
    storage.history.go_on(1, promoted=True)
    storage.report(500)
    assert storage.files() == stopped | {"trial_00001_part2/checkpoint_000500": WHOLE}
    storage.report(900)
    assert storage.files() == {"trial_00001_part2/checkpoint_000900": ENDED}
    assert storage.history.trials[1].checkpoint_parts == ("mask",)
    assert vars(History(tmp_path / HISTORY_FILE)) == vars(storage.history)


def test_a_trial_that_failed_or_stopped_for_good_leaves_nothing(tmp_path):
    for name, may_go_on, report in (
        ("failed", True, {"failure": "out of memory", "done": True}),
        ("replay", False, {"stopped": True}),
    ):
        (tmp_path / name).mkdir()
        storage = Storage(tmp_path / name, may_go_on=may_go_on)
        storage.report(100)
        storage.report(200, **report)
        assert storage.files() == {}
        assert storage.history.trials[1].checkpoint_parts == ()


@pytest.mark.parametrize("as_uri", [False, True])
def test_a_trial_that_died_leaves_its_error_alone(tmp_path, as_uri):
    storage = Storage(tmp_path, as_uri=as_uri)
    storage.report(100)
    storage.callback.on_trial_error(1, [], storage.trial)
    assert storage.history.trials[1].status == "failed"
    assert storage.files() == {"trial_00001": {"error.txt"}}
    assert (storage.root / "trial_00001" / "error.txt").read_text() == "RuntimeError: lost"


@pytest.mark.parametrize("deleted", [(), ("exact",)])
def test_what_a_kill_has_left_is_removed_by_the_next_session(tmp_path, deleted):
    """Killed before the removal, or after it and before its line; with a checkpoint that nobody remembers."""
    storage = Storage(tmp_path)
    storage.callback.remove_unneeded = lambda number: None
    storage.report(100)
    storage.history.report(1, plain_metrics(SEARCH.metrics(0.5, 200)), stopped=True)
    storage.history.checkpoint(1, "trial_00001/checkpoint_000100", 200)
    forgotten = storage.root / "trial_00001" / "checkpoint_000000"
    forgotten.mkdir()
    (forgotten / "state.json").touch()
    for part in deleted:
        (storage.root / "trial_00001" / "checkpoint_000100" / f"{part}.safetensors").unlink()
    checkpoint = Checkpoint(
        str(storage.root / "trial_00001" / "checkpoint_000100"), filesystem=pyarrow.fs.LocalFileSystem()
    )
    storage.source.history = History(tmp_path / HISTORY_FILE)
    HistoryCallback(storage.source, {1: checkpoint}, storage=storage.storage).remove_unneeded(1)
    assert storage.files() == {"trial_00001/checkpoint_000100": STOPPED}
    assert History(tmp_path / HISTORY_FILE).trials[1].checkpoint_parts == ("mask", "logits")


def test_a_promoted_trial_that_was_killed_keeps_what_it_goes_on_from(tmp_path):
    storage = Storage(tmp_path)
    storage.report(100, stopped=True)
    storage.history.go_on(1, promoted=True)
    storage.callback.remove_unneeded(1)
    assert storage.files() == {"trial_00001/checkpoint_000100": STOPPED}
    assert storage.history.trials[1].checkpoint_parts == ("mask", "logits")
    assert storage.history.trials[1].status == "unfinished"
