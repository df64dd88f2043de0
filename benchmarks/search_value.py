"""The default search compared with its seed points at full budget, random search, and no early stopping.

python -m benchmarks.search_value --seeds 5
python -m benchmarks.search_value --seeds 2 --pattern 1:4 --max-samples 6304 --reference 2

Trials are really trained on the embedded workload, in this process and without Ray. The main job's own state drives each
search's trials on a simulated clock, two at a time. A trial that several searches run is trained once. The best seed point
is the one with the lowest validation error. Of its best trials by validation error a search picks one on the selection
samples, as the main job does. Fidelity, and the gain over the best seed point with its paired standard error over images,
come from test samples. With --beside a setting found by hand is trained as well; no search knows it. With --reference N
only those N seed points are trained at full budget that are best at the search's highest rung. With --rows finished seeds
are kept in a file, from which the same command resumes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor

from benchmarks.report import hardware_line, print_table, spread
from benchmarks.resumable import Rows, die_with_parent
from benchmarks.simulated_search import SimulatedSearch
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.fidelity import Estimate, estimate_fidelity, estimate_gain
from maskpro.held_out import HeldOut
from maskpro.runs import RunCache, build_trainer
from maskpro.schedule.history import METRIC
from maskpro.schedule.rungs import MIN_COMPLETED, rung_lr, rungs
from maskpro.schedule.state import Plan
from maskpro.search_options import SearchOptions
from maskpro.trainer import MaskTrainer, NonFiniteLossError
from maskpro.trainer_config import TrainerConfig
from maskpro.tuning.promotion import CONTENDERS
from maskpro.tuning.search import prepare_search
from maskpro.tuning.shared import initial_masked
from maskpro.tuning.trainable import split_targets

_JUDGED: tuple[HeldOut, ...] = ("selection", "test")
_SEED_POINTS = "the seed points at full budget"
_BESIDE = "found by hand, no search"
_SEARCHES = {
    "default (GP, ASHA)": ("gp", "asha"),
    "TPE, ASHA": ("tpe", "asha"),
    "random search, ASHA": ("random", "asha"),
    "TPE, no early stopping": ("tpe", "none"),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared on one seed.

    Attributes:
        searches: names of searches, from `_SEARCHES`.
        model: folder of a digits network; None: the embedded one.
        max_samples: samples of a full trial; None: the workload's.
        pattern: N:M pattern; None: the space's.
        reference: number of seed points that are trained at full budget; None: all.
        beside: parameters of one more trial.
    """

    seed: int
    space: Path
    searches: tuple[str, ...]
    model: str | None
    max_samples: int | None
    pattern: str | None
    reference: int | None
    beside: dict[str, Any] | None

    @property
    def key(self) -> str:
        """Names the comparison; another space's text is another comparison."""
        return json.dumps([self.space.read_text(), asdict(self)], sort_keys=True, default=str)


class RealTrials:
    """Trials of one seed, each trained only as far as requested."""

    def __init__(self, asked: Comparison):
        options = SearchOptions(
            space=asked.space,
            experiment="none",
            results_dir=Path("nowhere"),
            seed=asked.seed,
            frechet=False,
            model=asked.model,
            max_samples=asked.max_samples,
        )
        self.search = prepare_search(options)
        cpu, workload = torch.device("cpu"), self.search.workload
        form, precision = self.search.context.formats[0], self.search.context.validation_precision
        self._form = form = form._replace(pattern=asked.pattern or form.pattern)
        masked = initial_masked(self.search.context, workload.model, form)
        self._cache = RunCache(validation_precision=precision)
        validation = self._cache.validation_of(workload, cpu, precision)
        self._cache.initial[form] = validation.judge(masked.model).means()
        self._held_out = {part: workload.held_out_samples(part, cpu) for part in _JUDGED}
        self.initial_errors = self._held_out["test"].judge(masked.model).errors
        self._trainers: dict[str, MaskTrainer] = {}
        self._errors: dict[str, dict[int, float]] = {}
        self._failed: set[str] = set()

    def validation_error(self, params: Mapping[str, Any], samples: int, budget: int) -> float:
        """Lowest validation error within the first `samples` samples of a run with this budget; infinite once it fails."""
        key, trainer = _key(params, budget), self._trainer(params, budget)
        errors = self._errors.setdefault(key, {})
        while trainer.num_samples_seen < samples and key not in self._failed:
            try:
                trainer.train(self.search.context.report_samples)
                trainer.validate()
                assert trainer.lowest is not None
                errors[trainer.num_samples_seen] = trainer.lowest.error
            except NonFiniteLossError:
                self._failed.add(key)
        return math.inf if key in self._failed and samples not in errors else errors[samples]

    def errors(self, part: HeldOut, params: Mapping[str, Any]) -> Tensor:
        """Error of each sample of a held-out set, `[size]`, under the mask that a trial has kept at its full budget."""
        trainer = self._trainer(params, self.search.context.max_samples)
        assert trainer.finished
        trainer.masked.set_mask(trainer.best_mask)
        return self._held_out[part].judge(trainer.masked.model).errors

    def forget(self) -> None:
        """Drop all trained trials; what they share is kept."""
        self._trainers, self._errors, self._failed = {}, {}, set()

    def _trainer(self, params: Mapping[str, Any], budget: int) -> MaskTrainer:
        key, search = _key(params, budget), self.search
        if key not in self._trainers:
            settings = search.space.fixed | dict(params)
            targets = split_targets(settings.pop("targets", None)) or search.context.targets
            config = TrainerConfig(**settings, budget_samples=budget, seed=search.options.seed)
            full, exponent = search.context.max_samples, search.context.rung_lr_exponent
            scaled = rung_lr(config.lr, budget=budget, max_samples=full, exponent=exponent)
            self._trainers[key] = build_trainer(
                search.workload,
                replace(config, lr=scaled),
                self._form,
                seed=search.context.seed,
                device=torch.device("cpu"),
                targets=targets,
                cache=self._cache,
            )
        return self._trainers[key]


def _key(params: Mapping[str, Any], budget: int) -> str:
    return json.dumps([budget, dict(params)], sort_keys=True)


def run_seed(asked: Comparison) -> list[dict[str, Any]]:
    """The rows of one seed: the seed points at full budget, a trial of the parameters `beside`, and each search."""
    torch.set_num_threads(1)
    trials = RealTrials(asked)
    search, seed, full = trials.search, asked.seed, trials.search.context.max_samples
    images = len(search.workload.images.test)
    rows: list[dict[str, Any]] = []

    def row(name: str, params: Mapping[str, Any], samples: int, completed: int, source: str) -> Tensor:
        errors = trials.errors("test", params)
        found = estimate_fidelity(trials.initial_errors, errors, images=images)
        gain = Estimate(0.0, 0.0)
        if rows:
            gain = estimate_gain(trials.initial_errors, reference, errors, images=images)
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
    candidates, cost = list(planned), len(planned) * full
    if asked.reference is not None:
        unit, factor = search.context.report_samples, search.space.reduction_factor
        rung = rungs(first_rung=unit, max_samples=full, reduction_factor=factor)[-1]
        budget = rung if restarts else full
        candidates.sort(key=lambda plan: trials.validation_error(plan.params, rung, budget))
        del candidates[asked.reference :]
        cost = len(planned) * rung + len(candidates) * (full if restarts else full - rung)
    best = min(candidates, key=lambda plan: trials.validation_error(plan.params, full, full))
    reference = row(_SEED_POINTS, best.params, cost, len(candidates), best.source)
    if asked.beside:
        trials.validation_error(asked.beside, full, full)
        row(_BESIDE, asked.beside, full, 1, "hand")
    for name in asked.searches:
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
        with TemporaryDirectory() as folder:
            state = simulated.open(Path(folder))
            simulated.run(state)
            records = state.history.searched
        completed = [record for record in records if record.status == "completed"]
        contenders = sorted(completed, key=lambda record: record.last[METRIC])[:CONTENDERS]
        selection = {record.number: float(trials.errors("selection", record.params).mean()) for record in contenders}
        picked = min(contenders, key=lambda record: selection[record.number])
        for record in contenders:
            figures = {METRIC: record.last[METRIC], "selection error": selection[record.number]}
            print(figures | {"found by": record.source, "parameters": record.params}, flush=True)
        row(name, picked.params, sum(record.trained for record in records), len(completed), picked.source)
    return rows


def main(
    seeds: Annotated[int, typer.Option(help="How many.")] = 5,
    first_seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    space: Annotated[Path, typer.Option(help="The space that is searched.")] = Path("search_spaces/default.py"),
    model: Annotated[str | None, typer.Option(help="Folder of a digits network other than the embedded one.")] = None,
    max_samples: Annotated[int | None, typer.Option(help="Samples of a full trial; default: the workload's.")] = None,
    searches: Annotated[str, typer.Option(help="Searches by their names, with ; between them.")] = "; ".join(_SEARCHES),
    pattern: Annotated[str | None, typer.Option(help="N:M pattern; default: the space's.")] = None,
    reference: Annotated[int | None, typer.Option(help="Seed points trained at full budget; default: all.")] = None,
    beside: Annotated[str | None, typer.Option(help="Parameters of one more trial, as JSON.")] = None,
    processes: Annotated[int, typer.Option(help="Concurrent seeds, one core each.")] = 2,
    rows_file: Annotated[Path | None, typer.Option("--rows", help="File with finished seeds, to resume from.")] = None,
) -> None:
    """Print a row per search: test fidelity of its best full-budget trial, gain over the seed points', and its cost."""
    names = tuple(name.strip() for name in searches.split(";"))
    for name in names:
        if name not in _SEARCHES:
            raise MaskproError(f"searches holds {name!r}; allowed: {'; '.join(_SEARCHES)}")
    asked = [
        Comparison(
            seed=seed,
            space=space,
            searches=names,
            model=model,
            max_samples=max_samples,
            pattern=pattern,
            reference=reference,
            beside=None if beside is None else json.loads(beside),
        )
        for seed in range(first_seed, first_seed + seeds)
    ]
    kept = Rows(rows_file) if rows_file else None
    found = {row["key"]: row["rows"] for row in kept.read()} if kept else {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=die_with_parent) as pool:
        running = {pool.submit(run_seed, one): one for one in asked if one.key not in found}
        for done in as_completed(running):
            found[running[done].key] = done.result()
            if kept:
                kept.add({"key": running[done].key, "rows": done.result()})
    frame = pd.DataFrame([row for one in asked for row in found[one.key]])
    rows = [
        {
            "search": name,
            "test fidelity, mean": f"{part['fidelity'].mean():.4f}",
            "lowest, highest": f"{part['fidelity'].min():.4f}, {part['fidelity'].max():.4f}",
            "gain over the best seed point": spread(part["gain"], 4),
            "above it by two standard errors": f"{(part['gain'] > 2 * part['gain_error']).sum()} of {seeds}",
            "cost in full trials, mean": f"{part['full trials'].mean():.2f}",
            "highest": f"{part['full trials'].max():.2f}",
            "trials at full budget": f"{part['completed'].mean():.1f}",
        }
        for name, part in frame.groupby("search", sort=False)
    ]
    others = [f"{name} {value}" for name, value in [("pattern", pattern), ("model", model)] if value]
    title = ", ".join([str(space), *others, f"{seeds} seeds from {first_seed}"])
    print_table(f"{title}; {hardware_line()}", rows)


if __name__ == "__main__":
    run_command(main)
