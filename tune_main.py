"""The main job: search masks, then promote and evaluate the best trial's.

python tune_main.py --space search_spaces/default.py
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated, Any

import typer

try:
    from maskpro.cli import run_command
except ImportError as error:  # such as a torch and a torchvision that don't fit together
    raise SystemExit(f"error: {error}") from None

_Option = typer.Option


def main(
    space: Annotated[Path | None, _Option(help="Search-space file, such as search_spaces/default.py.")] = None,
    workload: Annotated[str | None, _Option(help="digits (embedded) or cifar10; default: the space's.")] = None,
    model: Annotated[str | None, _Option(help="Diffusers DDPM folder or hub name; default: the workload's.")] = None,
    data: Annotated[Path | None, _Option(help="Folder of images (cifar10 workload); default: CIFAR-10.")] = None,
    experiment: Annotated[str | None, _Option(help="Name of the results folder; default: space and time.")] = None,
    results_dir: Annotated[Path | None, _Option(help="Where experiments are kept; default: results.")] = None,
    num_trials: Annotated[int | None, _Option(help="Trials; default: the space's.")] = None,
    max_samples: Annotated[int | None, _Option(help="Calibration samples of a full trial.")] = None,
    num_generated: Annotated[int | None, _Option(help="Images per model in the final evaluation.")] = None,
    frechet: Annotated[
        bool | None, _Option("--frechet/--no-frechet", help="Whether to compute it (FID); default: yes.")
    ] = None,
    seed: Annotated[int | None, _Option(help="Of the search, its samples and the sampled masks; default: 0.")] = None,
    gpus_per_trial: Annotated[float | None, _Option(help="May be a fraction; default: 0.25 where there are GPUs.")] = None,
    cpus_per_trial: Annotated[float | None, _Option(help="Cores of a trial; default: 1.")] = None,
    max_concurrent: Annotated[int | None, _Option(help="Trials at a time; default: as many as fit.")] = None,
    address: Annotated[str | None, _Option(help="A running Ray: auto or host:port; default: a local Ray.")] = None,
    swanlab: Annotated[str | None, _Option(help="SwanLab project to log to as well (extra swanlab).")] = None,
    inception_weights: Annotated[Path | None, _Option(help="torch-fidelity's Inception weights (FID).")] = None,
    resume: Annotated[Path | None, _Option(help="Experiment folder to go on with.")] = None,
    dry_run: Annotated[bool, _Option(help="Check everything, print the experiment, run nothing.")] = False,
) -> None:
    """Search the best n:m masks of a frozen diffusion network with Ray Tune."""
    from maskpro.tuning.experiment import reopen_experiment, run_experiment
    from maskpro.tuning.promotion import promote, summarise
    from maskpro.tuning.search import SearchOptions, prepare_search

    given: dict[str, Any] = {
        "space": space,
        "workload": workload,
        "model": model,
        "data": data,
        "experiment": experiment,
        "results_dir": results_dir,
        "num_trials": num_trials,
        "max_samples": max_samples,
        "num_generated": num_generated,
        "frechet": frechet,
        "seed": seed,
        "gpus_per_trial": gpus_per_trial,
        "cpus_per_trial": cpus_per_trial,
        "max_concurrent": max_concurrent,
        "swanlab": swanlab,
        "inception_weights": inception_weights,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if resume is not None:
        search = reopen_experiment(resume, address=address, refused=given)
    else:
        default_name = f"{space.stem if space else ''}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        search = prepare_search(SearchOptions(**{"space": None, "experiment": default_name, "address": address, **given}))
    if dry_run:
        print(json.dumps(search.describe(), indent=2))
        return
    trials = run_experiment(search, resume=resume is not None)
    report = promote(search, trials)
    summarise(search, trials, report)


if __name__ == "__main__":
    run_command(main)
