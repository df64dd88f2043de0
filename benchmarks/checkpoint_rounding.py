"""The cost in quality of checkpoints that hold a trial's state in few bits.

python -m benchmarks.checkpoint_rounding              # the table of results/precision.md: the best-known settings, 6 seeds
python -m benchmarks.checkpoint_rounding --seeds 1 --max-samples 540    # half a minute: does it run?

Each seed's masks are learned with the same samples and the same random numbers, with as many reports as in a search:

- float32: nothing is rounded; a checkpoint then took 12 bytes a weight and more.
- rounded: at each report logits and moments are rounded to what a checkpoint holds, as in every training.
- stopped at every rung: in addition, the trial resumes from the checkpoint of a stopped one (7 bits of each logit, new
  moments) after 1/27, 1/9 and 1/3 of its samples. No trial of a search stops more often.

Fidelity and recovery come from test samples that chose nothing. The differences are paired by seed, with their standard
errors.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from benchmarks.report import hardware_line, print_table
from maskpro.commands.running import run_command
from maskpro.fidelity import fidelity
from maskpro.logit_state import StoredLogits
from maskpro.metrics import recovery
from maskpro.runs import MaskFormat, RunCache, build_trainer, initial_masked
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig
from maskpro.tuning.space import load_space
from maskpro.workloads import open_workload

_SPACE = Path(__file__).parents[1] / "search_spaces" / "default.py"
_SETTINGS = "best known"
_RUNGS = (1 / 27, 1 / 9, 1 / 3)
# Fewer samples than in a search: with as many, validation would take as long here as learning.
_VALIDATION_SAMPLES = 64
_VARIANTS = ("float32", "rounded", "stopped at every rung")


class UnroundedTrainer(MaskTrainer):
    """A trainer whose state stays in float32."""

    def round_state(self) -> StoredLogits:
        """Round nothing."""
        return StoredLogits(None, {})  # type: ignore[arg-type]


def _learn(start: partial[MaskTrainer], reports: int, stops: bool) -> MaskTrainer:
    trainer = start()
    unit = -(-trainer.config.budget_samples // reports)
    rungs = {round(share * reports) for share in _RUNGS} if stops else set()
    for report in range(1, reports + 1):
        trainer.train(unit)
        trainer.validate()
        if report in rungs:
            parts, counters = trainer.state_dict()
            trainer = start()
            trainer.load_state_dict({name: part for name, part in parts.items() if name != "exact"}, counters)
    return trainer


def run_seed(seed: int, max_samples: int | None) -> list[dict[str, Any]]:
    """A row for each variant."""
    torch.set_num_threads(1)
    workload, space, cpu = open_workload("digits"), load_space(_SPACE), torch.device("cpu")
    (settings,) = (
        point for point, name in zip(space.seed_points, space.seed_point_names, strict=True) if name == _SETTINGS
    )
    budget = max_samples or workload.budgets.max_samples
    config = TrainerConfig(**space.fixed, **settings, budget_samples=budget, seed=seed)
    form = MaskFormat(space.pattern, "channel")
    first = initial_masked(workload, workload.model, form, seed=seed).model
    validation = workload.held_out_samples("validation", cpu).first(_VALIDATION_SAMPLES)
    test = workload.held_out_samples("test", cpu)
    cache = RunCache(validation_precision="float32", validation={"float32": validation})

    def start(kind: type[MaskTrainer]) -> MaskTrainer:
        return build_trainer(workload, config, form, seed=seed, device=cpu, cache=cache, kind=kind)

    before, dense_loss = test.judge(first).means(), test.judge(workload.model).means().loss
    rows = []
    for variant in _VARIANTS:
        started = time.monotonic()
        kind = UnroundedTrainer if variant == "float32" else MaskTrainer
        trainer = _learn(partial(start, kind), space.num_reports, stops=variant.startswith("stopped"))
        trainer.masked.set_mask(trainer.best_mask)
        found = test.judge(trainer.masked.model).means()
        row = {
            "seed": seed,
            "variant": variant,
            "fidelity": fidelity(before.error, found.error),
            "recovery": recovery(before.loss, found.loss, dense_loss),
            "seconds": time.monotonic() - started,
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def _summary(rows: pd.DataFrame) -> list[dict[str, str]]:
    lines = []
    for variant in _VARIANTS:
        line = {"state": variant}
        for figure in ("fidelity", "recovery"):
            table = rows.pivot(index="seed", columns="variant", values=figure)
            line[figure] = f"{table[variant].mean():.4f}"
            difference = table[variant] - table["float32"]
            error = f" ± {difference.std() / len(difference) ** 0.5:.4f}" if len(difference) > 1 else ""
            line[f"{figure}, difference"] = "" if variant == "float32" else f"{difference.mean():+.4f}{error}"
        lines.append(line)
    return lines


def main(
    seeds: Annotated[int, typer.Option(help="Number of seeds of calibration samples and masks.")] = 6,
    first_seed: Annotated[int, typer.Option(help="First seed; the settings were found on seeds below 5.")] = 10,
    max_samples: Annotated[int | None, typer.Option(help="Samples of a run; default: the workload's.")] = None,
    processes: Annotated[int, typer.Option(help="Concurrent seeds.")] = 2,
) -> None:
    """Print the table of what the rounding costs."""
    started = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = pool.map(partial(run_seed, max_samples=max_samples), range(first_seed, first_seed + seeds))
        rows = pd.DataFrame([row for part in parts for row in part])
    minutes = (time.monotonic() - started) / 60
    title = f"{_SETTINGS}, {seeds} seeds, {minutes:.0f} min with {processes} processes; {hardware_line()}"
    print_table(title, _summary(rows))


if __name__ == "__main__":
    run_command(main)
