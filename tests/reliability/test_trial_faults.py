"""A trial's fault stays its own: its search runs on, and says what became of the trial.

The short forms, of a trial or a driver alone, are in tests/tuning/test_trainable.py, test_faults.py and test_main_job.py.
"""

import datetime
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import ray
from shared_fixtures import RAY_IN_PROCESS, with_two_nodes

from analysis.report import write_report
from benchmarks.toy_workload import TOY, ToyWorkload, VectorObjective
from maskpro.search_options import JobOptions
from maskpro.tuning.command import parse_command
from maskpro.tuning.main_job import NOTHING_LEARNED, run_main_job
from maskpro.workloads import WORKLOADS

pytestmark = [*RAY_IN_PROCESS, pytest.mark.full, pytest.mark.slow]

# The workers do not have the tests on their path.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Batch size to what becomes of a trial with it.
GOOD, RAISES, HANGS, KILLED = 8, 5, 7, 9
SPACE = """
from ray import tune
workload = "toy"
num_reports = 2
scheduler = "none"
param_space = {{"lr": tune.uniform(1.0, 8.0), "batch_size": tune.choice([5, 7, 8, 9]), "dataset_size": 64}}
seed_points = [{points}]
num_trials = {count}
"""


class FaultyObjective(VectorObjective):
    """Training samples that are not to be had in batches of some sizes."""

    def batch(self, indices):
        with (self._log / f"{len(indices)}.log").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if len(indices) == RAISES:
            raise IndexError("no such sample")
        if len(indices) == HANGS:
            time.sleep(10_000)
        if len(indices) == KILLED:  # as Linux does where memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(indices)


@dataclass(frozen=True, kw_only=True)
class FaultyWorkload(ToyWorkload):
    log: Path

    def training_objective(self, *, seed, device, shares=None):
        objective = FaultyObjective(self.truth, self.width, noise=self.noise, seed=seed, device=device)
        objective._log = self.log
        return objective


def run(tmp_path, cluster, batch_sizes):
    """Exit status, trials, and how many processes began a batch of each size."""
    points = ", ".join(f'{{"lr": 5.0, "batch_size": {size}}}' for size in batch_sizes)
    (tmp_path / "space.py").write_text(SPACE.format(points=points, count=len(batch_sizes)))
    log = tmp_path / "log"
    log.mkdir()

    def faulty(*arguments):
        opened = TOY.open(*arguments)
        return FaultyWorkload(**{name: getattr(opened, name) for name in opened.__dataclass_fields__}, log=log)

    given = {"space": tmp_path / "space.py", "experiment": "x", "results_dir": tmp_path / "results"}
    given |= {"gpus_per_trial": 0.0, "address": with_two_nodes(cluster).address, "trial_timeout": "30s"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORKLOADS, "toy", replace(TOY, open=faulty))
        search = parse_command(given, JobOptions(), now=datetime.datetime.now())
        try:
            status = run_main_job(search, write_report, resume=False)
        finally:
            ray.shutdown()
    begun = {int(path.stem): len(set(path.read_text().split())) for path in log.glob("*.log")}
    return status, pd.read_csv(tmp_path / "results" / "x" / "trials.csv"), begun


def test_each_fault_is_told_and_the_other_trials_run(tmp_path, started_cluster, capfd):
    status, trials, begun = run(tmp_path, started_cluster, [GOOD, RAISES, HANGS, KILLED, GOOD])
    assert status == 0
    assert trials["status"].tolist() == ["completed", "failed", "failed", "failed", "completed"]
    raised, hung, killed = trials["failure"][1:4]
    assert raised == "IndexError: no such sample"
    assert hung == "no report for 30 s, and so it was ended; allowed: a longer --trial-timeout"
    assert "died" in killed
    assert (begun[RAISES], begun[HANGS]) == (1, 1), "neither would do better the next time"
    assert begun[KILLED] == 4, "a process that has died may"
    said = capfd.readouterr().out
    assert "3 of 5 trials failed, see failure in trials.csv" in said
    assert "1, trial 2 the first: IndexError: no such sample" in said


def test_a_search_all_of_whose_trials_fail_has_a_status_of_its_own(tmp_path, started_cluster, capfd):
    status, trials, _ = run(tmp_path, started_cluster, [RAISES, RAISES])
    assert (status, trials["status"].tolist()) == (NOTHING_LEARNED, ["failed", "failed"])
    assert capfd.readouterr().out.endswith("all trials failed: there is no mask to promote\n")
