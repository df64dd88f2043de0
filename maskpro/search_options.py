"""All options of the main job: what the command line, `experiment.json`, `--resume` and docs/options.md know of them.

Importing this takes neither torch nor Ray, so that Ray can start while they are imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_origin, get_type_hints

from maskpro.errors import MaskproError
from maskpro.machine.interruption import parse_duration
from maskpro.option_groups import SESSION, DenseOptions, JudgingOptions, SamplingOptions, SourceOptions
from maskpro.options import check_options, names_in, option
from maskpro.trackers import Tracker, check_tracker

if TYPE_CHECKING:
    import torch

# Groups of options. With `--resume` and `--replay` only those of a session may be given. Of these the momentary ones hold
# for that session alone. A replay may also have a place of its own.
MOMENTARY = "momentary"
PLACE = "place"
# Types of options that JSON holds as others.
_IN_JSON: Mapping[Any, Any] = {Path: str, tuple: list | tuple, float: int | float}
# Longest name of an experiment, in bytes: file systems take 255, and temporary names are longer.
_LONGEST_NAME = 200


def _seed_point_numbers(text: str) -> tuple[int, ...]:
    parts = text.replace(" ", "").split(",")
    if not all(part.isdecimal() for part in parts):
        raise MaskproError(f"seed_points is {text!r}; allowed: numbers with commas between them, such as 1,3")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(JudgingOptions, SamplingOptions, DenseOptions, SourceOptions):
    """What the command line says of a search; None: as the space file or the workload has it."""

    TITLE: ClassVar[str] = "search"

    space: Path | None = option(None, "Search-space file, such as search_spaces/default.py.")
    workload: str | None = option(
        None,
        "digits (embedded), cifar10 or causal_lm (language models).",
        "--workload",
        "--dataset",
        otherwise="the space's",
    )
    experiment: str = option("", "Name of the results folder.", otherwise="space and time", groups=(PLACE,))
    results_dir: Path = option(Path("results"), "Where experiments are kept.", groups=(PLACE,))
    storage_path: str | None = option(
        None, "Shared folder or s3://bucket/path for the trials' checkpoints.", otherwise="the results folder"
    )
    num_trials: int | None = option(None, "Trials.", least=1, otherwise="the space's")
    max_samples: int | None = option(
        None, "Calibration samples of a full trial.", least=1, otherwise="the space's or the workload's"
    )
    time_budget: str | None = option(
        None, "Stop after so long, to be resumed: 2h, 90min, 1h30m.", otherwise="none", groups=(SESSION, MOMENTARY)
    )
    trial_timeout: str | None = option(
        None, "End a trial that takes longer from one report to the next: 10min, 1h.", otherwise="none", groups=(SESSION,)
    )
    seed_points: tuple[int, ...] | None = option(
        None, "Numbers of the seed points to run, such as 1,3.", parse=_seed_point_numbers, otherwise="all"
    )
    only_seed_points: bool = option(False, "Run the seed points alone, each to its full budget.")
    searcher: str | None = option(None, "optuna (TPE), tpe, gp, qmc or random.", otherwise="the space's")
    scheduler: str | None = option(None, "Early stopping: asha, median or none.", otherwise="the space's")
    warm_start: Path | None = option(None, "Experiment whose trials the searcher starts from.")
    selection_samples: int | None = option(
        None,
        "Held-out samples that choose among the best trials.",
        least=1,
        otherwise="the workload's",
        groups=(SESSION,),
    )
    num_generated: int | None = option(
        None, "Images of each network in the final evaluation.", least=2, otherwise="the workload's", groups=(SESSION,)
    )
    frechet: bool = option(True, "Whether these images are judged; if not, 64 are made.", groups=(SESSION,))
    promote_top_k: int = option(1, "Best trials to evaluate.", least=1, groups=(SESSION,))
    confirm_seeds: int = option(0, "Fresh seeds to train each of these with first.", least=0, groups=(SESSION,))
    seed: int = option(0, "Of the search, its samples and the sampled masks.")
    gpus_per_trial: float | None = option(
        None, "GPUs of a trial; a fraction shares one.", otherwise="0.25 where there are GPUs", groups=(SESSION,)
    )
    cpus_per_trial: float = option(1.0, "Cores of a trial.", groups=(SESSION,))
    max_concurrent: int | None = option(
        None, "Trials at a time.", least=1, otherwise="as many as fit", groups=(SESSION, MOMENTARY)
    )
    address: str | None = option(
        None, "A running Ray: auto or host:port.", otherwise="a local Ray", groups=(SESSION, MOMENTARY)
    )
    swanlab: str | None = option(None, "SwanLab project to log to as well (extra swanlab).")
    wandb: str | None = option(None, "Weights & Biases project to log to as well (extra wandb).")
    mlflow: str | None = option(None, "MLflow experiment to log to as well (extra mlflow).")

    def __post_init__(self) -> None:
        from maskpro.precision import parse_sampling_precision
        from maskpro.schedule.early_stopping import check_scheduler
        from maskpro.schedule.searcher import check_searcher

        named_space(self.space)
        if Path(self.experiment).name != self.experiment or self.experiment in ("", ".", ".."):
            raise MaskproError(f"experiment is {self.experiment!r}; allowed: a plain folder name")
        if len(os.fsencode(self.experiment)) > _LONGEST_NAME:
            raise MaskproError(
                f"experiment is a name of {len(os.fsencode(self.experiment))} bytes; allowed: at most {_LONGEST_NAME}"
            )
        check_options(self)
        if self.searcher is not None:
            check_searcher(self.searcher)
        if self.scheduler is not None:
            check_scheduler(self.scheduler)
        _ = self.reading  # refuses what isn't allowed
        parse_sampling_precision(self.sampling_precision)
        for tracker in get_args(Tracker):
            check_tracker(tracker, getattr(self, tracker))
        if not 0 <= self.seed < 2**32:
            raise MaskproError(f"seed is {self.seed}; allowed: 0 to {2**32 - 1}")
        if self.gpus_per_trial is not None and not (0 <= self.gpus_per_trial <= 1):
            raise MaskproError(
                f"gpus_per_trial is {self.gpus_per_trial}; allowed: 0, a fraction such as 0.25, or 1 (a trial uses one GPU)"
            )
        if not (math.isfinite(self.cpus_per_trial) and self.cpus_per_trial > 0):
            raise MaskproError(f"cpus_per_trial is {self.cpus_per_trial}; allowed: a number above 0")
        if self.time_budget is not None:
            parse_duration(self.time_budget)
        if self.trial_timeout is not None:
            parse_duration(self.trial_timeout, "trial_timeout")
        if (self.address or "").startswith("ray://"):
            raise MaskproError(
                f"address is {self.address!r}; allowed: none (a local Ray), auto or host:port on a node of the cluster (a "
                "Ray client can't hold a search's history: run it there, or with ray job submit)"
            )

    @property
    def space_file(self) -> Path:
        """The search-space file, which a checked instance has."""
        return named_space(self.space)

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return (self.results_dir / self.experiment).absolute()

    @property
    def evaluation_device(self) -> torch.device:
        """Where the driver judges the best trials."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() and self.gpus_per_trial != 0 else "cpu")

    def describe(self) -> dict[str, Any]:
        """The options as JSON; paths are made absolute, so that a search can be resumed from anywhere."""
        from maskpro.workloads import names_a_file

        stored = asdict(self)
        for name, value in stored.items():
            is_file = (name == "model" and value is not None and Path(value).is_dir()) or (
                value is not None and names_a_file(name, value)
            )
            if name == "data" and value is not None and not value.exists():  # a data set's name
                stored[name] = str(value)
            elif is_file or isinstance(value, Path):
                stored[name] = str(Path(value).absolute())
        return stored

    @classmethod
    def of_record(cls, described: Mapping[str, Any], **given: Any) -> SearchOptions:
        """The options that `describe` has written, without the momentary ones, and with those `given`."""
        hints = get_type_hints(cls)
        values = {item.name: described[item.name] for item in fields(cls) if item.name in described}
        values |= dict.fromkeys(names_in(cls, MOMENTARY))
        for name, value in values.items():
            kinds = [get_origin(kind) or kind for kind in (get_args(hints[name]) or (hints[name],))]
            if not any(isinstance(value, _IN_JSON.get(kind, kind)) for kind in kinds):
                raise MaskproError(
                    f"the experiment's record has {value!r:.40} as option {name}; allowed: the record as it was written"
                )
            if value is not None and Path in (hints[name], *get_args(hints[name])):
                values[name] = Path(value)
            elif isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values | given)


SESSION_OPTIONS = names_in(SearchOptions, SESSION)
PLACE_OPTIONS = names_in(SearchOptions, PLACE)


def named_space(space: Path | None) -> Path:
    """The search-space file that was named; raise MaskproError where none was."""
    if space is None:
        raise MaskproError(
            "space is missing; allowed: a search-space file (--space), or an experiment (--resume or --replay)"
        )
    return space


def check_space_file(space: Path) -> None:
    """Raise MaskproError where there is no search-space file of that name."""
    if not space.is_file():
        raise MaskproError(f"space is {space}; no such file (allowed: a Python file such as search_spaces/default.py)")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What a run of `tune_main.py` is to do, besides a new search."""

    TITLE: ClassVar[str] = "run"

    config: int | None = option(None, "Run this seed point alone, to its full budget.")
    resume: Path | None = option(None, "Experiment folder to resume.")
    extend: int | None = option(None, "With --resume: trials to add.", otherwise="0")
    replay: Path | None = option(None, "Experiment folder, or its experiment.json, to do again.")
    dry_run: bool = option(False, "Check everything, print the experiment and what a trial will take, and run nothing.")
