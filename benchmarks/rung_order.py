"""What a short run of a trial tells of its full run, with lr as it is and scaled for the short run.

python -m benchmarks.rung_order --max-samples 6304       # a quarter of the digits workload's full trial

Settings are drawn at random from the space, all with the same batch size. Each is trained at the full budget, and as a run
of its own of each rung with each `rung_lr_exponent`. The table has Spearman's rank correlation of the short run's
validation error with the full run's, over all settings and over the better half at the full budget, and with lr over the
better half. With --rows finished settings are kept in a file, from which the same command resumes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from optuna.samplers import RandomSampler
from optuna.study import create_study

from benchmarks.report import hardware_line, print_table
from benchmarks.resumable import Rows
from benchmarks.search_value import Comparison, RealTrials
from maskpro.commands.running import run_command

_FULL = "full run"


def errors(trials: RealTrials, params: dict[str, Any], rungs: list[int], exponents: list[float]) -> dict[str, float]:
    """Validation error of the full run, and of each short run by its name."""
    search, context = trials.search, trials.search.context
    found = {_FULL: trials.validation_error(params, context.max_samples, context.max_samples)}
    for rung in rungs:
        samples = context.max_samples // rung // context.report_samples * context.report_samples
        for exponent in exponents:
            trials.forget()
            trials.search = replace(search, context=replace(context, rung_lr_exponent=exponent))
            found[f"1/{rung}, exponent {exponent:g}"] = trials.validation_error(params, samples, samples)
    trials.forget()
    trials.search = search
    return found


def main(
    space: Annotated[Path, typer.Option(help="The space that settings are drawn from.")] = Path("search_spaces/default.py"),
    settings: Annotated[int, typer.Option(help="Number of settings.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the settings and of their training.")] = 70,
    batch_size: Annotated[int, typer.Option(help="Batch size of all settings.")] = 8,
    max_samples: Annotated[int | None, typer.Option(help="Samples of a full trial; default: the workload's.")] = None,
    rungs: Annotated[str, typer.Option(help="Rungs, as parts of the full budget.")] = "8,4",
    exponents: Annotated[str, typer.Option(help="Values of rung_lr_exponent.")] = "0,0.3,0.5",
    rows_file: Annotated[Path | None, typer.Option("--rows", help="File with finished settings, to resume from.")] = None,
) -> None:
    """Print how well short runs order settings as full runs do."""
    torch.set_num_threads(1)
    asked = Comparison(
        seed=seed, space=space, searches=(), model=None, max_samples=max_samples, pattern=None, reference=None, beside=None
    )
    places, powers = [int(part) for part in rungs.split(",")], [float(part) for part in exponents.split(",")]
    trials = RealTrials(asked)
    study = create_study(sampler=RandomSampler(seed=seed))
    kept = Rows(rows_file) if rows_file else None
    known = {row["key"]: row["errors"] for row in kept.read()} if kept else {}
    found = []
    for number in range(settings):
        params = study.ask(trials.search.space.distributions).params | {"batch_size": batch_size}
        key = f"{asked.key} {params} {places} {powers}"
        if key not in known:
            known[key] = errors(trials, params, places, powers)
            if kept:
                kept.add({"key": key, "errors": known[key]})
        found.append(known[key] | {"lr": params["lr"]})
        print(f"setting {number + 1} of {settings}: {params}: {known[key]}", flush=True)
    frame = pd.DataFrame(found)
    print_table(f"{space}, {settings} settings, batches of {batch_size}; {hardware_line()}", correlations(frame))


def correlations(frame: pd.DataFrame) -> list[dict[str, str]]:
    """A row for each short run; `frame` has errors of runs by their names, and lr."""
    better = frame[frame[_FULL] <= frame[_FULL].median()]
    return [
        {
            "run": name,
            "rank correlation with the full run, all": f"{frame[name].corr(frame[_FULL], method='spearman'):.2f}",
            "the better half": f"{better[name].corr(better[_FULL], method='spearman'):.2f}",
            "with lr, the better half": f"{better[name].corr(better['lr'], method='spearman'):.2f}",
        }
        for name in frame.columns
        if name not in (_FULL, "lr")
    ]


if __name__ == "__main__":
    run_command(main)
