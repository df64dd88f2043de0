"""The default search compared with its seed points at full budget, random search, and no early stopping.

python -m benchmarks.search_value --seeds 5

Trials are really trained on the embedded workload, in this process and without Ray. The main job's own state drives each
search's trials on a simulated clock, two at a time. A trial that several searches run is trained once. Searches choose by
the validation error. Fidelity, and the gain over the best seed point with its paired standard error over samples, come
from test samples. With --beside a setting found by hand is trained as well; no search knows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor

from benchmarks.report import hardware_line, print_table
from benchmarks.simulated_search import SimulatedSearch
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.fidelity import Estimate, estimate_fidelity, estimate_gain
from maskpro.runs import RunCache, build_trainer
from maskpro.schedule.history import METRIC, TrialRecord
from maskpro.schedule.state import MIN_COMPLETED, Plan
from maskpro.search_options import SearchOptions
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig
from maskpro.tuning.search import prepare_search
from maskpro.tuning.shared import initial_masked
from maskpro.tuning.trainable import split_targets

_SEED_POINTS = "the seed points at full budget"
_BESIDE = "found by hand, no search"
_SEARCHES = {
    "default (TPE, ASHA)": ("optuna", "asha"),
    "random search, ASHA": ("random", "asha"),
    "TPE, no early stopping": ("optuna", "none"),
}


class _RealTrials:
    """Trials of one seed, each trained only as far as requested."""

    def __init__(self, options: SearchOptions):
        self.search = prepare_search(options)
        cpu, workload = torch.device("cpu"), self.search.workload
        form, precision = self.search.context.formats[0], self.search.context.validation_precision
        masked = initial_masked(self.search.context, workload.model, form)
        self._cache = RunCache(validation_precision=precision)
        validation = self._cache.validation_of(workload, cpu, precision)
        self._cache.initial[form] = validation.judge(masked.model).means()
        self._test = workload.held_out_samples("test", cpu)
        self.initial_errors = self._test.judge(masked.model).errors
        self._trainers: dict[str, MaskTrainer] = {}
        self._errors: dict[str, dict[int, float]] = {}

    def validation_error(self, params: Mapping[str, Any], samples: int, budget: int) -> float:
        """Lowest validation error within the first `samples` samples of a run with this budget."""
        trainer, errors = self._trainer(params, budget), self._errors.setdefault(_key(params, budget), {})
        while trainer.num_samples_seen < samples:
            trainer.train(self.search.context.report_samples)
            trainer.validate()
            assert trainer.lowest is not None
            errors[trainer.num_samples_seen] = trainer.lowest.error
        return errors[samples]

    def test_errors(self, params: Mapping[str, Any]) -> Tensor:
        """Error of each test sample, `[size]`, under the mask that a trial has kept at its full budget."""
        trainer = self._trainer(params, self.search.context.max_samples)
        assert trainer.finished
        trainer.masked.set_mask(trainer.best_mask)
        return self._test.judge(trainer.masked.model).errors

    def _trainer(self, params: Mapping[str, Any], budget: int) -> MaskTrainer:
        key, search = _key(params, budget), self.search
        if key not in self._trainers:
            settings = search.space.fixed | dict(params)
            targets = split_targets(settings.pop("targets", None)) or search.context.targets
            self._trainers[key] = build_trainer(
                search.workload,
                TrainerConfig(**settings, budget_samples=budget, seed=search.options.seed),
                search.context.formats[0],
                seed=search.context.seed,
                device=torch.device("cpu"),
                targets=targets,
                cache=self._cache,
            )
        return self._trainers[key]


def _key(params: Mapping[str, Any], budget: int) -> str:
    return json.dumps([budget, dict(params)], sort_keys=True)


def _trained_samples(record: TrialRecord, rungs: Sequence[int], restarts: bool) -> int:
    """Samples that a trial was trained on; with restarts this includes its runs up to earlier rungs."""
    return record.samples + sum(rung for rung in rungs if restarts and rung < record.samples)


def run_seed(options: SearchOptions, searches: tuple[str, ...], beside: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of one seed: the seed points at full budget, a trial of the parameters `beside`, and each search."""
    torch.set_num_threads(1)
    trials = _RealTrials(options)
    search, seed, full = trials.search, options.seed, trials.search.context.max_samples
    rows: list[dict[str, Any]] = []

    def row(name: str, params: Mapping[str, Any], samples: int, completed: int, source: str) -> Tensor:
        errors = trials.test_errors(params)
        found = estimate_fidelity(trials.initial_errors, errors)
        gain = estimate_gain(trials.initial_errors, reference, errors) if rows else Estimate(0.0, 0.0)
        assert found is not None
        assert gain is not None
        rows.append(
            {
                "search": name,
                "seed": seed,
                "fidelity": found.value,
                "gain": gain.value,
                "gain_error": gain.standard_error,
                "full trials": samples / full,
                "completed": completed,
                "found by": source,
            }
        )
        print(rows[-1] | {"parameters": dict(params)}, flush=True)
        return errors

    planned, restarts = search.planned, search.space.promotion == "restart"
    best = min(planned, key=lambda plan: trials.validation_error(plan.params, full, full))
    reference = row(_SEED_POINTS, best.params, len(planned) * full, len(planned), best.source)
    if beside:
        trials.validation_error(beside, full, full)
        row(_BESIDE, beside, full, 1, "hand")
    for name in searches:
        searcher, scheduler = _SEARCHES[name]
        simulated = SimulatedSearch(
            distributions=search.space.distributions,
            curve=trials.validation_error,
            pace=lambda params: 1.0,
            num_trials=search.num_trials,
            planned=[Plan(params=plan.params, source=plan.source, seed=seed) for plan in planned],
            searcher=searcher,
            scheduler=scheduler,
            seed=seed,
            unit=search.context.report_samples,
            max_samples=full,
            reduction_factor=search.space.reduction_factor,
            slots=2,
            min_completed=MIN_COMPLETED,
            restarts=restarts and scheduler == "asha",
        )
        rungs = simulated.halving().rungs
        with TemporaryDirectory() as folder:
            state = simulated.open(Path(folder))
            simulated.run(state)
            records = state.history.searched
        completed = [record for record in records if record.status == "completed"]
        picked = min(completed, key=lambda record: record.last[METRIC])
        trained = sum(_trained_samples(record, rungs, simulated.restarts) for record in records)
        row(name, picked.params, trained, len(completed), picked.source)
    return rows


def main(
    seeds: Annotated[int, typer.Option(help="How many.")] = 5,
    first_seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    space: Annotated[Path, typer.Option(help="The space that is searched.")] = Path("search_spaces/default.py"),
    model: Annotated[str | None, typer.Option(help="Folder of a digits network other than the embedded one.")] = None,
    max_samples: Annotated[int | None, typer.Option(help="Samples of a full trial; default: the workload's.")] = None,
    searches: Annotated[str, typer.Option(help="Searches by their names, with ; between them.")] = "; ".join(_SEARCHES),
    beside: Annotated[str | None, typer.Option(help="Parameters of one more trial, as JSON.")] = None,
    processes: Annotated[int, typer.Option(help="Concurrent seeds, one core each.")] = 2,
) -> None:
    """Print a row per search: test fidelity of its best full-budget trial, gain over the seed points', and its cost."""
    names = tuple(name.strip() for name in searches.split(";"))
    for name in names:
        if name not in _SEARCHES:
            raise MaskproError(f"searches holds {name!r}; allowed: {'; '.join(_SEARCHES)}")
    more = None if beside is None else json.loads(beside)
    options = [
        SearchOptions(
            space=space,
            experiment="none",
            results_dir=Path("nowhere"),
            seed=seed,
            frechet=False,
            model=model,
            max_samples=max_samples,
        )
        for seed in range(first_seed, first_seed + seeds)
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = pool.map(run_seed, options, repeat(names), repeat(more))
        frame = pd.DataFrame([row for part in running for row in part])
    rows = [
        {
            "search": name,
            "test fidelity, mean": f"{part['fidelity'].mean():.4f}",
            "lowest, highest": f"{part['fidelity'].min():.4f}, {part['fidelity'].max():.4f}",
            "gain over the best seed point": f"{part['gain'].mean():.4f} ± {part['gain'].sem():.4f}",
            "above it by two standard errors": f"{(part['gain'] > 2 * part['gain_error']).sum()} of {seeds}",
            "cost in full trials, mean": f"{part['full trials'].mean():.2f}",
            "highest": f"{part['full trials'].max():.2f}",
            "trials at full budget": f"{part['completed'].mean():.1f}",
        }
        for name, part in frame.groupby("search", sort=False)
    ]
    print_table(f"{space}, {seeds} seeds from {first_seed}; {hardware_line()}", rows)


if __name__ == "__main__":
    run_command(main)
