"""The driver's cost of a search: trials that do nothing run through the main job's own machinery.

python -m benchmarks.driver_overhead --trials 2000 --searcher random

"CPU" is the time that the driver's process had of all cores, in all of its threads. Other processes on the machine do not
count, as they do in wall time.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from optuna.pruners import NopPruner
from ray.tune import Callback, Trainable

from benchmarks.report import hardware_line, print_table
from maskpro.commands.running import run_command
from maskpro.schedule.early_stopping import SuccessiveHalving
from maskpro.schedule.folder import HISTORY_FILE, STUDY_FILE
from maskpro.schedule.history import METRIC, History
from maskpro.schedule.searcher import SearchStudy
from maskpro.schedule.state import SearchState
from maskpro.tuning.adapters import NUMBER, HistoryCallback
from maskpro.tuning.experiment import run_trials
from maskpro.tuning.monitor import SearchMonitor
from maskpro.tuning.resources import start_ray
from maskpro.tuning.space import load_space

_UNIT = 100


class NoOpTrial(Trainable):
    """Reports a made-up falling error at once, and saves a state of a few bytes."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start at zero samples."""
        self._samples = 0
        self._level = 0.5 + 0.5 * ((config[NUMBER] * 7919) % 1000) / 1000

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start again."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One report."""
        self._samples += _UNIT
        error = self._level / (1 + self._samples / _UNIT)
        names = ("fidelity", "val_error_now", "best_val_error", "train_loss", "recovery", "loss_improvement")
        return {
            "num_samples_seen": self._samples,
            METRIC: error,
            **dict.fromkeys(names, error),
            "initial_val_error": 1.0,
            "changed_share": 0.01,
            "seconds": 0.0,
            "failure": "",
            "done": self._samples >= self.config["max_samples"],
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save as little as possible: real states cost the storage, not the driver."""
        (Path(checkpoint_dir) / "state.json").write_text(str(self._samples))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Resume."""
        self._samples = int((Path(checkpoint_dir) / "state.json").read_text())


class _Clock(Callback):
    """Reports, wall time, CPU time and memory at every `every`-th trial's end."""

    def __init__(self, total: int, every: int) -> None:
        self._total = total
        self._every = every
        self._ended = self._reports = 0
        self.rows = [(0, 0, 0.0, 0.0, 0.0)]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def setup(self, *args: Any, **info: Any) -> None:
        """The clock runs from the search's start."""
        self._started, self._cpu = time.monotonic(), time.process_time()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Count."""
        self._reports += 1

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note."""
        self._ended += 1
        if self._ended % self._every == 0 or self._ended == self._total:
            wall, cpu = time.monotonic() - self._started, time.process_time() - self._cpu
            self.rows.append((self._ended, self._reports, wall, cpu, _resident_mib()))
            print(f"{self._ended} trials: {self._reports} reports, {wall:.1f} s, {cpu:.1f} s of CPU", flush=True)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main(
    trials: Annotated[int, typer.Option(help="How many.")] = 2000,
    reports: Annotated[int, typer.Option(help="Reports of a trial that runs to the end.")] = 9,
    slots: Annotated[int, typer.Option(help="Concurrent trials.")] = 2,
    space: Annotated[Path, typer.Option(help="Space whose parameters are suggested.")] = Path("search_spaces/default.py"),
    searcher: Annotated[str | None, typer.Option(help="Searcher; default: the space's.")] = None,
    every: Annotated[int, typer.Option(help="Trials of a row.")] = 200,
) -> None:
    """Run no-op trials and print the driver's time per report and per trial, and its memory, as the search grows."""
    loaded = load_space(space)
    folder = Path(tempfile.mkdtemp(prefix="maskpro-overhead-"))
    history = History(folder / HISTORY_FILE)
    history.session(trials, time="")
    max_samples = reports * _UNIT
    study = SearchStudy(searcher or loaded.searcher, distributions=loaded.distributions, pruner=NopPruner(), seed=0)
    halving = SuccessiveHalving(first_rung=_UNIT, max_samples=max_samples, reduction_factor=loaded.reduction_factor)
    state = SearchState(history, study, planned=(), seed=0, halving=halving)
    study.write(folder / STUDY_FILE)
    resources = start_ray(None, cpus=1.0, gpus=0.0)
    clock = _Clock(trials, every)
    run_trials(
        state,
        trainable=NoOpTrial,
        fixed={"max_samples": max_samples},
        resources=resources,
        max_concurrent=slots,
        storage_path=str(folder),
        name="trials",
        callbacks=[
            HistoryCallback(state, {}, storage=f"{folder}/trials"),
            SearchMonitor(history, num_trials=trials),
            clock,
        ],
    )
    rows = [
        {
            "trials ended": ended,
            "reports": reported,
            "seconds": round(wall, 1),
            "CPU ms a report": round(1000 * (cpu - cpu_before) / (reported - reported_before), 1),
            "CPU ms a trial": round(1000 * (cpu - cpu_before) / (ended - ended_before), 1),
            "wall ms a report": round(1000 * (wall - wall_before) / (reported - reported_before), 1),
            "driver MiB": round(memory),
        }
        for (ended_before, reported_before, wall_before, cpu_before, _), (ended, reported, wall, cpu, memory) in pairwise(
            clock.rows
        )
    ]
    print_table(f"{trials} no-op trials by {study.searcher}, {slots} at a time; {hardware_line()}", rows)
    shutil.rmtree(folder)


if __name__ == "__main__":
    run_command(main)
