"""The main job: search masks, then promote and evaluate the best trial's.

python tune_main.py --space search_spaces/default.py
"""

from __future__ import annotations

import datetime
import json
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from maskpro.cli import run_command
from maskpro.installation import check_installation, limit_threads
from maskpro.limits import usable_cores
from maskpro.tuning.driver_log import driver_log, kept_output

_Option = typer.Option


def main(
    space: Annotated[Path | None, _Option(help="Search-space file, such as search_spaces/default.py.")] = None,
    workload: Annotated[str | None, _Option(help="digits (embedded) or cifar10; default: the space's.")] = None,
    model: Annotated[str | None, _Option(help="Diffusers DDPM folder or hub name; default: the workload's.")] = None,
    data: Annotated[Path | None, _Option(help="Folder of images (cifar10 workload); default: CIFAR-10.")] = None,
    resize: Annotated[str | None, _Option(help="Filter that brings them to the model's size; default: bilinear.")] = None,
    crop: Annotated[
        str | None, _Option(help="centre (default), none, celeba, a number of pixels, or left,top,right,bottom in pixels.")
    ] = None,
    background: Annotated[
        str | None, _Option(help="Under transparent pixels: white (default), black, another colour's name or #rrggbb.")
    ] = None,
    skip_unreadable: Annotated[bool, _Option("--skip-unreadable", help="Go on without images that can't be read.")] = False,
    ema: Annotated[bool, _Option("--ema", help="Take the weights in unet_ema/ beside the model's unet/.")] = False,
    experiment: Annotated[str | None, _Option(help="Name of the results folder; default: space and time.")] = None,
    results_dir: Annotated[Path | None, _Option(help="Where experiments are kept; default: results.")] = None,
    storage_path: Annotated[
        str | None, _Option(help="Shared folder or s3://bucket/path for the trials' checkpoints; default: the results.")
    ] = None,
    num_trials: Annotated[int | None, _Option(help="Trials; default: the space's.")] = None,
    max_samples: Annotated[int | None, _Option(help="Calibration samples of a full trial.")] = None,
    time_budget: Annotated[str | None, _Option(help="Stop after so long, to be resumed: 2h, 90min, 1h30m.")] = None,
    seed_points: Annotated[
        str | None, _Option(help="Numbers of the seed points to run, such as 1,3; default: all.")
    ] = None,
    only_seed_points: Annotated[bool, _Option(help="Run the seed points alone, each to its full budget.")] = False,
    config: Annotated[int | None, _Option(help="Run this seed point alone, to its full budget.")] = None,
    searcher: Annotated[str | None, _Option(help="optuna (TPE) or random; default: the space's.")] = None,
    scheduler: Annotated[str | None, _Option(help="Early stopping: asha, median or none; default: the space's.")] = None,
    warm_start: Annotated[Path | None, _Option(help="Experiment whose trials the searcher starts from.")] = None,
    selection_samples: Annotated[
        int | None, _Option(help="Held-out samples that choose among the best trials; default: the workload's.")
    ] = None,
    test_samples: Annotated[
        int | None, _Option(help="Of the final evaluation's losses and fidelity; default: the workload's.")
    ] = None,
    num_generated: Annotated[int | None, _Option(help="Images per model in the final evaluation.")] = None,
    sampler: Annotated[str | None, _Option(help="Of these images: ddim or ddpm; default: ddim.")] = None,
    sampling_steps: Annotated[int | None, _Option(help="Default: the workload's for ddim, all for ddpm.")] = None,
    timestep_spacing: Annotated[
        str | None,
        _Option(help="leading, trailing, linspace or quad; default: leading where the steps fit, else trailing."),
    ] = None,
    sampling_precision: Annotated[
        str | None, _Option(help="float32 or bfloat16; auto (the default): bfloat16 on a GPU that computes in it.")
    ] = None,
    compile_sampling: Annotated[
        bool | None,
        _Option(
            "--compile-sampling/--no-compile-sampling",
            help="Whether torch compiles the network before it samples; default: for many images on such a GPU.",
        ),
    ] = None,
    frechet: Annotated[
        bool | None, _Option("--frechet/--no-frechet", help="Whether images are judged; default: yes.")
    ] = None,
    features: Annotated[
        str | None,
        _Option(help="What judges images: inception-v3 (FID), another name, or a program's file; default: the workload's."),
    ] = None,
    inception_weights: Annotated[Path | None, _Option(help="torch-fidelity's Inception weights (FID).")] = None,
    reference_statistics: Annotated[
        Path | None, _Option(help="File (.npz, mu and sigma) of real images; default: the workload's images.")
    ] = None,
    promote_top_k: Annotated[int | None, _Option(help="Best trials to evaluate; default: 1.")] = None,
    confirm_seeds: Annotated[int | None, _Option(help="Fresh seeds to train each of these with first; default: 0.")] = None,
    seed: Annotated[int | None, _Option(help="Of the search, its samples and the sampled masks; default: 0.")] = None,
    gpus_per_trial: Annotated[float | None, _Option(help="May be a fraction; default: 0.25 where there are GPUs.")] = None,
    cpus_per_trial: Annotated[float | None, _Option(help="Cores of a trial; default: 1.")] = None,
    max_concurrent: Annotated[int | None, _Option(help="Trials at a time; default: as many as fit.")] = None,
    address: Annotated[str | None, _Option(help="A running Ray: auto or host:port; default: a local Ray.")] = None,
    swanlab: Annotated[str | None, _Option(help="SwanLab project to log to as well (extra swanlab).")] = None,
    wandb: Annotated[str | None, _Option(help="Weights & Biases project, likewise (extra wandb).")] = None,
    mlflow: Annotated[str | None, _Option(help="MLflow experiment, likewise (extra mlflow).")] = None,
    resume: Annotated[Path | None, _Option(help="Experiment folder to go on with.")] = None,
    extend: Annotated[int | None, _Option(help="With --resume: trials to add.")] = None,
    replay: Annotated[Path | None, _Option(help="Experiment folder, or its experiment.json, to do again.")] = None,
    dry_run: Annotated[
        bool, _Option(help="Check everything, print the experiment and what a trial will take, run nothing.")
    ] = False,
) -> None:
    """Search the best n:m masks of a frozen diffusion network with Ray Tune."""
    given: dict[str, Any] = {
        name: value
        for name, value in locals().items()
        if value is not None and value is not False and name not in ("resume", "extend", "replay", "dry_run")
    }
    # These may be given as False.
    given |= {
        name: value for name, value in (("frechet", frechet), ("compile_sampling", compile_sampling)) if value is not None
    }
    # What --dry-run prints is all that it is for.
    with nullcontext() if dry_run else kept_output():
        status = _run(given, address=address, resume=resume, extend=extend, replay=replay, dry_run=dry_run)
    if status:
        raise typer.Exit(status)


def _run(
    given: dict[str, Any],
    *,
    address: str | None,
    resume: Path | None,
    extend: int | None,
    replay: Path | None,
    dry_run: bool,
) -> int:
    """The job from the options to the report; the process's exit status."""
    with ExitStack() as stack:
        # A new search needs Ray in any case (one that goes on may be complete), and to start it takes about as long as to
        # import torch and diffusers.
        wait_for_ray = None
        if not (dry_run or resume or replay or "torch" in sys.modules):
            from maskpro.tuning.resources import ray_starting

            wait_for_ray = stack.enter_context(ray_starting(address))
        check_installation()
        limit_threads(usable_cores())
        from maskpro.tuning.command import parse_command
        from maskpro.tuning.main_job import run_main_job

        search = parse_command(given, resume=resume, extend=extend, replay=replay, now=datetime.datetime.now())
        if dry_run:
            print(json.dumps({**search.describe(), "understood": search.understood()}, indent=2))
            return 0
        if wait_for_ray:
            wait_for_ray()
        status = run_main_job(search, resume=resume is not None, extend=extend or 0)
    if status == 0:
        from analysis.report import write_report

        with driver_log(search.options.folder):
            print(f"report: {write_report(search.options.folder)}", flush=True)
    return status


if __name__ == "__main__":
    run_command(main, check=False)
