"""What the default search is worth: against its seed points at full budget, random search, and no early stopping.

python -m benchmarks.search_value --seeds 5

Real training on the embedded workload, in this process and without Ray: the trials of the different searches are driven by
the main job's own state on a simulated clock, two at a time, and a trial that several of them run is trained once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from benchmarks.report import hardware_line, print_table
from benchmarks.simulated_search import SimulatedSearch
from maskpro.cli import run_command
from maskpro.evaluation.comparison import recovery
from maskpro.objectives import teacher_outputs
from maskpro.trainer import MaskTrainer, TrainerConfig
from maskpro.tuning.search import SearchOptions, prepare_search
from maskpro.tuning.shared import initial_masked
from maskpro.tuning.state import Plan

_SEARCHES = {
    "default (TPE, ASHA)": ("optuna", "asha"),
    "random search, ASHA": ("random", "asha"),
    "TPE, no early stopping": ("optuna", "none"),
}


class _RealCurves:
    """Validation losses of trials of one seed, each trained no further than somebody has asked for."""

    def __init__(self, space: Path, seed: int, max_samples: int | None):
        options = SearchOptions(
            space=space, experiment="none", results_dir=Path("nowhere"), seed=seed, frechet=False, max_samples=max_samples
        )
        self.search = prepare_search(options)
        cpu, workload = torch.device("cpu"), self.search.workload
        masked = initial_masked(self.search.context, workload.model, self.search.context.formats[0])
        (timesteps,) = self.search.context.timesteps
        shares = workload.timestep_shares(masked.model, cpu) if timesteps == "importance" else None
        self._objective = workload.training_objective(seed=seed, device=cpu, shares=shares)
        self._validation = workload.held_out_samples("validation", cpu)
        self._teacher = teacher_outputs(workload.model, self._objective)
        self.dense = self._validation.mean_loss(workload.model)
        self.initial = self._validation.mean_loss(masked.model)
        self._trainers: dict[str, MaskTrainer] = {}
        self._losses: dict[str, dict[int, float]] = {}
        self.trained_samples = 0

    def loss(self, params: Mapping[str, Any], samples: int) -> float:
        """The lowest validation loss of a trial's masks within its first `samples` samples."""
        key = json.dumps(dict(params), sort_keys=True)
        if key not in self._trainers:
            self._trainers[key] = self._start(params)
        trainer = self._trainers[key]
        losses = self._losses.setdefault(key, {})
        while trainer.num_samples_seen < samples:
            before = trainer.num_samples_seen
            trainer.train(self.search.context.report_samples)
            trainer.validate()
            losses[trainer.num_samples_seen] = trainer.lowest_val_loss or 0.0
            self.trained_samples += trainer.num_samples_seen - before
        return losses[samples]

    def _start(self, params: Mapping[str, Any]) -> MaskTrainer:
        search = self.search
        settings = search.space.fixed | dict(params)
        return MaskTrainer(
            TrainerConfig(**settings, budget_samples=search.context.max_samples, seed=search.options.seed),
            masked=initial_masked(search.context, search.workload.model, search.context.formats[0]),
            objective=self._objective,
            validation=self._validation,
            teacher=self._teacher,
            initial_val_loss=self.initial,
        )


def run_seed(space: Path, seed: int, max_samples: int | None) -> list[dict[str, Any]]:
    """The rows of one seed: a search each, and the seed points at full budget."""
    torch.set_num_threads(1)
    curves = _RealCurves(space, seed, max_samples)
    search = curves.search
    full = search.context.max_samples
    rows = []

    def row(name: str, loss: float, samples: int, completed: int) -> None:
        best = recovery(curves.initial, loss, curves.dense)
        rows.append({"search": name, "seed": seed, "recovery": best, "full trials": samples / full, "completed": completed})

    losses = [curves.loss(plan.params, full) for plan in search.planned]
    row("the seed points at full budget", min(losses), len(losses) * full, len(losses))
    print(rows[-1], flush=True)
    for name, (searcher, scheduler) in _SEARCHES.items():
        started = time.monotonic()
        simulated = SimulatedSearch(
            distributions=search.space.distributions,
            curve=curves.loss,
            pace=lambda params: 1.0,
            num_trials=search.num_trials,
            planned=[Plan(params=plan.params, source=plan.source, seed=seed) for plan in search.planned],
            searcher=searcher,
            scheduler=scheduler,
            seed=seed,
            unit=search.context.report_samples,
            max_samples=full,
            reduction_factor=search.space.reduction_factor,
            slots=2,
        )
        with TemporaryDirectory() as folder:
            state = simulated.open(Path(folder))
            simulated.run(state)
            records = state.history.searched
        completed = [record for record in records if record.status == "completed"]
        best = min(record.last["val_loss"] for record in completed)
        row(name, best, sum(record.samples for record in records), len(completed))
        print(f"{rows[-1]} ({time.monotonic() - started:.0f} s)", flush=True)
    return rows


def main(
    seeds: Annotated[int, typer.Option(help="How many.")] = 5,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    space: Annotated[Path, typer.Option(help="The space that is searched.")] = Path("search_spaces/default.py"),
    max_samples: Annotated[int | None, typer.Option(help="Of a full trial; default: the workload's.")] = None,
    processes: Annotated[int, typer.Option(help="Seeds at a time, one core each.")] = 2,
) -> None:
    """Print a row per search: mean, lowest and highest recovery of its best full-budget trial, and what it cost."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = pool.map(run_seed, [space] * seeds, range(first_seed, first_seed + seeds), [max_samples] * seeds)
        frame = pd.DataFrame([row for part in parts for row in part])
    grouped = frame.groupby("search", sort=False)
    reference = frame[frame["search"] == "the seed points at full budget"].set_index("seed")["recovery"]
    rows = [
        {
            "search": name,
            "best recovery (validation), mean": f"{part['recovery'].mean():.4f}",
            "lowest and highest": f"{part['recovery'].min():.4f}, {part['recovery'].max():.4f}",
            "not below the seed points": f"{(part.set_index('seed')['recovery'] >= reference).sum()} of {seeds}",
            "cost in full trials, mean": f"{part['full trials'].mean():.2f}",
            "highest": f"{part['full trials'].max():.2f}",
            "trials at full budget": f"{part['completed'].mean():.1f}",
        }
        for name, part in grouped
    ]
    print_table(f"{space}, {seeds} seeds; {hardware_line()}", rows)


if __name__ == "__main__":
    run_command(main)
