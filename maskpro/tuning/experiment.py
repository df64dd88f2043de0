"""A search as it runs: its folder, Ray, the trials, and their table `trials.csv`."""

from __future__ import annotations

import math
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, ResultGrid, RunConfig, TuneConfig, Tuner

from maskpro.errors import MaskproError
from maskpro.files import atomic_path, read_json, refuse_existing, write_json
from maskpro.masked_model import model_hash
from maskpro.tuning.monitor import SearchMonitor
from maskpro.tuning.search import EXPERIMENT_FORMAT, Search, SearchOptions, prepare_search
from maskpro.tuning.searcher import METRIC, make_scheduler, make_searcher
from maskpro.tuning.trainable import MaskTrainable

EXPERIMENT_FILE = "experiment.json"
TRIALS_FILE = "trials.csv"
_SPACE_FILE = "space.py"
_TRIALS_FOLDER = "trials"

# Trials share a GPU by default: networks of the size this is made for leave most of one idle.
_DEFAULT_GPU_SHARE = 0.25


def start_ray(options: SearchOptions) -> float:
    """Start Ray here, or connect to `address`; returns the GPUs of each trial.

    Raises:
        MaskproError: the address can't be reached, or no node has what a trial asks for.
    """
    _check_address(options.address)
    try:
        started = ray.init(
            address=options.address,
            include_dashboard=None if options.address else True,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise MaskproError(
            f"address is {options.address!r}; Ray could not be reached or started ({' '.join(str(error).split())[:200]}); "
            "allowed: none (a local Ray), auto, or host:port"
        ) from error
    url = getattr(started, "dashboard_url", None)
    if url:
        print(f"Ray dashboard: http://{url}", flush=True)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = options.gpus_per_trial
    if gpus is None:
        gpus = _DEFAULT_GPU_SHARE if any(node.get("GPU", 0) for node in nodes) else 0.0
    for field, resource, wanted in (("gpus_per_trial", "GPU", gpus), ("cpus_per_trial", "CPU", options.cpus_per_trial)):
        most = max(node.get(resource, 0) for node in nodes)
        if wanted > most:
            raise MaskproError(f"{field} is {wanted}; allowed: at most {most:g}, the most that one node has")
    return gpus


def _check_address(address: str | None) -> None:
    """Ray waits for minutes, and then ends the process, where nothing listens at host:port."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise MaskproError(f"address is {address!r}; nothing answers there ({error}); allowed: a running Ray's") from error


def create_experiment(search: Search) -> None:
    """Make the experiment's folder with `experiment.json` and a copy of the space file.

    Raises:
        MaskproError: the folder exists.
    """
    folder = search.options.folder
    refuse_existing(folder, "experiment folder")
    folder.mkdir(parents=True)
    with atomic_path(folder / _SPACE_FILE) as temporary:
        shutil.copyfile(search.options.space_file, temporary)
    write_json(folder / EXPERIMENT_FILE, search.describe())


def reopen_experiment(folder: Path, *, address: str | None, refused: Mapping[str, Any]) -> Search:
    """The search that `experiment.json` in `folder` describes, to be resumed.

    Args:
        refused: options given beside `folder`, which the experiment brings itself; any one is an error.

    Raises:
        MaskproError: `folder` is not an experiment, or of another format.
    """
    for name, value in refused.items():
        raise MaskproError(f"{name} is {value} together with resume; allowed with resume: address and dry_run")
    if not (folder / EXPERIMENT_FILE).is_file():
        raise MaskproError(f"resume is {folder}; no experiment there (allowed: a folder with {EXPERIMENT_FILE})")
    described = read_json(folder / EXPERIMENT_FILE)
    if not isinstance(described, dict) or described.get("format") != EXPERIMENT_FORMAT:
        raise MaskproError(f"{folder / EXPERIMENT_FILE} is of another version; allowed: format {EXPERIMENT_FORMAT}")
    stored = described["options"]
    options = SearchOptions(
        **stored
        | {
            "space": folder / _SPACE_FILE,
            "results_dir": folder.absolute().parent,
            "experiment": folder.absolute().name,
            **{name: Path(stored[name]) if stored[name] else None for name in ("data", "inception_weights")},
            "address": address,
        }
    )
    search = prepare_search(options, resume=True)
    found = model_hash(search.workload.model)
    if found != described["workload"]["model_hash"]:
        raise MaskproError(
            f"model {search.workload.model_source} has changed since the experiment began "
            f"(hash {found[:12]}, was {described['workload']['model_hash'][:12]}); allowed: the same weights"
        )
    return search


def run_experiment(search: Search, *, resume: bool) -> pd.DataFrame:
    """Start Ray, run the search or go on with it, and leave `experiment.json` and `trials.csv`; the table of trials.

    Raises:
        MaskproError: the folder exists (without `resume`), or Ray can't run the search.
    """
    try:
        gpus_per_trial = start_ray(search.options)
        if not resume:
            create_experiment(search)
        print(f"experiment: {search.options.folder}", flush=True)
        trials = tabulate_trials(search, _run_search(search, gpus_per_trial=gpus_per_trial, resume=resume))
    finally:
        ray.shutdown()
    write_trials(search.options.folder, trials)
    unfinished = search.num_trials - int((trials["status"] != "unfinished").sum())
    if unfinished > 0:
        raise MaskproError(f"search was stopped with {unfinished} trials left; go on with --resume {search.options.folder}")
    return trials


def _run_search(search: Search, *, gpus_per_trial: float, resume: bool) -> ResultGrid:
    context, options = search.context, search.options
    trainable = tune.with_resources(
        tune.with_parameters(MaskTrainable, context=context),
        {"cpu": options.cpus_per_trial, "gpu": gpus_per_trial},
    )
    path = options.folder / _TRIALS_FOLDER
    if resume and Tuner.can_restore(str(path)):
        return Tuner.restore(str(path), trainable, resume_unfinished=True, resume_errored=True).fit()
    tuner = Tuner(
        trainable,
        param_space=search.space.param_space,
        tune_config=TuneConfig(
            num_samples=search.num_trials,
            search_alg=make_searcher(search.space.seed_points, options.seed),
            scheduler=make_scheduler(
                report_samples=context.report_samples,
                max_samples=context.max_samples,
                reduction_factor=search.space.reduction_factor,
            ),
            max_concurrent_trials=search.options.max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=RunConfig(
            name=_TRIALS_FOLDER,
            storage_path=str(options.folder),
            verbose=0,
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_frequency=2, checkpoint_at_end=True),
            callbacks=_callbacks(search),
        ),
    )
    return tuner.fit()


def _callbacks(search: Search) -> list[Callback]:
    """The terminal's monitor and the trackers that were asked for; Tune adds TensorBoard, CSV and JSON by itself."""
    callbacks: list[Callback] = [SearchMonitor(num_trials=search.num_trials, metric=METRIC)]
    if search.options.swanlab is not None:
        from swanlab.integration.ray import SwanLabLoggerCallback

        # Whether it uploads is SwanLab's own setting: SWANLAB_MODE=offline keeps everything on this machine.
        callbacks.append(SwanLabLoggerCallback(project=search.options.swanlab, log_config=True))
    return callbacks


def _trial_folder(trial: Any) -> str:
    return f"trial_{trial.trial_id}"


def tabulate_trials(search: Search, results: ResultGrid) -> pd.DataFrame:
    """A row per trial, in the order of their start, with the path of its last checkpoint.

    Status: completed (ran to its budget), stopped (early, by the scheduler), failed, or unfinished (the search was
    interrupted).
    """
    rows = []
    seed_points = dict(enumerate(search.space.seed_points, 1))
    for number, result in enumerate(results, 1):
        metrics, config = result.metrics or {}, result.config or {}
        failure = str(result.error).strip().splitlines()[-1] if result.error else metrics.get("failure", "")
        seen = metrics.get("num_samples_seen", 0)
        if failure:
            status = "failed"
        elif not metrics.get("done"):
            status = "unfinished"
        else:
            status = "completed" if seen >= search.context.max_samples else "stopped"
        rows.append(
            {
                "trial": number,
                "trial_id": Path(result.path).name.removeprefix("trial_"),
                **{name: config.get(name) for name in search.space.param_space},
                "status": status,
                "num_samples_seen": seen,
                **{
                    name: math.nan if failure else metrics.get(name, math.nan)
                    for name in ("val_loss", "recovery", "loss_improvement")
                },
                "seconds": metrics.get("time_total_s", math.nan),
                "seed_point": _take_seed_point(seed_points, config),
                "failure": failure,
                "checkpoint": result.checkpoint.path if result.checkpoint else "",
            }
        )
    return pd.DataFrame(rows).astype({"seed_point": "Int64"})


def write_trials(folder: Path, trials: pd.DataFrame) -> None:
    """Write `trials.csv` atomically."""
    with atomic_path(folder / TRIALS_FILE) as temporary:
        trials.drop(columns="checkpoint").to_csv(temporary, index=False)


def _take_seed_point(seed_points: dict[int, dict[str, Any]], config: dict[str, Any]) -> int | None:
    """The number of the seed point that a trial ran, which is then used up; None for a suggested trial."""
    for number, point in seed_points.items():
        if config and all(config.get(name) == value for name, value in point.items()):
            del seed_points[number]
            return number
    return None
