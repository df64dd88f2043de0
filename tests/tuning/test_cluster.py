"""Trials on a local cluster of several nodes, one of which is lost."""

import os
import sys
import time
from pathlib import Path

import pytest
import ray
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner
from ray.tune import Callback, Trainable
from shared_fixtures import RAY_IN_PROCESS

from maskpro.schedule.early_stopping import SuccessiveHalving
from maskpro.schedule.folder import HISTORY_FILE
from maskpro.schedule.history import History
from maskpro.schedule.searcher import SearchStudy
from maskpro.schedule.state import Plan, SearchState
from maskpro.tuning.adapters import NUMBER, HistoryCallback
from maskpro.tuning.experiment import run_trials
from maskpro.tuning.resources import TrialResources

pytestmark = [*RAY_IN_PROCESS, pytest.mark.slow]

# The workers do not have the tests on their path.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

UNIT, MAX_SAMPLES = 100, 900
RESOURCES = TrialResources(cpus=1.0, gpus=0.0, slots=2)


class SlowTrial(Trainable):
    """A made-up falling loss, a report every fifth of a second."""

    def setup(self, config):
        self.samples = 0
        if config["checkpoint"]:
            self.load_checkpoint(str(Path(config["storage"]) / config["checkpoint"]))

    def reset_config(self, new_config):
        self.setup(new_config)
        return True

    def step(self):
        time.sleep(0.2)
        self.samples += UNIT
        loss = self.config["lr"] / self.samples
        return {"num_samples_seen": self.samples, "val_error": loss, "done": self.samples >= MAX_SAMPLES}

    def save_checkpoint(self, checkpoint_dir):
        (Path(checkpoint_dir) / "samples").write_text(str(self.samples))

    def load_checkpoint(self, checkpoint_dir):
        self.samples = int((Path(checkpoint_dir) / "samples").read_text())


class DiesWhenHandedOn(SlowTrial):
    """Its process dies, once in a search, while it is handed from one trial to the next."""

    def reset_config(self, new_config):
        died = Path(new_config["storage"]).parent / "died"
        if not died.exists():
            died.touch()
            os._exit(1)
        return super().reset_config(new_config)


class LoseNode(Callback):
    """Takes a node away, once, when some reports have come; notes every report."""

    def __init__(self, cluster, node, *, after):
        self.cluster, self.node, self.after = cluster, node, after
        self.reports = []

    def __getstate__(self):
        return {}

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.reports.append((trial.config[NUMBER], result["num_samples_seen"]))
        if len(self.reports) == self.after:
            self.cluster.remove_node(self.node, allow_graceful=False)


def search_state(history):
    study = SearchStudy("random", distributions={"lr": FloatDistribution(0.1, 1.0)}, pruner=NopPruner(), seed=0)
    halving = SuccessiveHalving(first_rung=UNIT, max_samples=MAX_SAMPLES, reduction_factor=3)
    # The first is the best, but stops until there are others to compare it with.
    planned = [Plan(params={"lr": lr}, source="planned", seed=0) for lr in (0.1, 0.9, 0.8, 0.7, 0.6, 0.5)]
    return SearchState(history, study, planned=planned, seed=0, halving=halving)


def run(source, folder, *callbacks, trainable=SlowTrial):
    run_trials(
        source,
        trainable=trainable,
        fixed={"storage": str(folder / "trials")},
        resources=RESOURCES,
        max_concurrent=None,
        storage_path=str(folder),
        name="trials",
        callbacks=[HistoryCallback(source, {}, storage=f"{folder}/trials"), *callbacks],
    )


def test_a_lost_node_costs_its_trial_one_interval_and_a_second_session_goes_on(joined_ray, tmp_path):
    history = History(tmp_path / HISTORY_FILE)
    history.session(6, time="now")
    loss = LoseNode(joined_ray, next(iter(joined_ray.worker_nodes)), after=8)

    run(search_state(history), tmp_path, loss)
    assert len(history.searched) == 6
    assert {record.status for record in history.searched} <= {"completed", "stopped"}
    assert any(record.status == "completed" for record in history.searched)
    assert history.trials[1].parts > 1, "a stopped one went on from its checkpoint"
    for record in history.searched:
        assert sorted(record.reports) == list(range(UNIT, record.samples + 1, UNIT))
    repeated = len(loss.reports) - len(set(loss.reports))
    assert repeated <= 1, "the lost trial went back by one report at most"

    reopened = History(tmp_path / HISTORY_FILE)
    assert reopened.trials == history.trials
    reopened.session(8, time="now")
    run(search_state(reopened), tmp_path)
    assert len(reopened.searched) == 8
    for number, record in history.trials.items():
        assert record.reports.items() <= reopened.trials[number].reports.items()


def test_a_process_lost_while_it_is_handed_on_costs_no_trial(joined_ray, tmp_path):
    """Tune gives such a trial up at the first loss."""
    history = History(tmp_path / HISTORY_FILE)
    history.session(4, time="now")
    run(search_state(history), tmp_path, trainable=DiesWhenHandedOn)
    assert (tmp_path / "died").exists()
    assert [record.status for record in history.searched if record.failure] == []
    assert len(history.searched) == 4
    assert not history.unfinished
