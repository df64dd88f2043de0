"""A search before it runs: its options, and everything loaded, checked and judged that needs no Ray."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from maskpro.errors import MaskproError
from maskpro.evaluation.frechet import open_features
from maskpro.files import refuse_existing
from maskpro.initial_masks import magnitude_masked_model
from maskpro.masked_model import MaskedModel, model_hash
from maskpro.pattern import NMPattern, parse_layout
from maskpro.trackers import check_swanlab
from maskpro.tuning.space import SearchSpace, load_space
from maskpro.tuning.trainable import TrialContext
from maskpro.workloads import Workload, open_workload

EXPERIMENT_FORMAT = 1
_PACKAGES = ("maskpro", "torch", "torchvision", "diffusers", "ray", "optuna", "torch-fidelity", "pandas")

# Reports of a full trial; early stopping judges first at the first of them.
_REPORTS = 9


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What the command line says of a search; None: as the space file or the workload has it."""

    space: Path | None
    experiment: str
    results_dir: Path = Path("results")
    workload: str | None = None
    model: str | None = None
    data: Path | None = None
    num_trials: int | None = None
    max_samples: int | None = None
    num_generated: int | None = None
    inception_weights: Path | None = None
    frechet: bool = True
    swanlab: str | None = None
    seed: int = 0
    gpus_per_trial: float | None = None
    cpus_per_trial: float = 1.0
    max_concurrent: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.space is None:
            raise MaskproError("space is missing; allowed: a search-space file (--space) or an experiment (--resume)")
        if Path(self.experiment).name != self.experiment or self.experiment in ("", ".", ".."):
            raise MaskproError(f"experiment is {self.experiment!r}; allowed: a plain folder name")
        for name, least in (("num_trials", 1), ("max_samples", 1), ("max_concurrent", 1), ("num_generated", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise MaskproError(f"{name} is {value}; allowed: a whole number of at least {least}")
        check_swanlab(self.swanlab)
        if not 0 <= self.seed < 2**32:
            raise MaskproError(f"seed is {self.seed}; allowed: 0 to {2**32 - 1}")
        if self.gpus_per_trial is not None and not (math.isfinite(self.gpus_per_trial) and self.gpus_per_trial >= 0):
            raise MaskproError(f"gpus_per_trial is {self.gpus_per_trial}; allowed: 0, a fraction such as 0.25, or more")
        if not (math.isfinite(self.cpus_per_trial) and self.cpus_per_trial > 0):
            raise MaskproError(f"cpus_per_trial is {self.cpus_per_trial}; allowed: a number above 0")

    @property
    def space_file(self) -> Path:
        """The search-space file, which a checked instance has."""
        assert self.space is not None
        return self.space

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return (self.results_dir / self.experiment).absolute()


@dataclass(frozen=True, kw_only=True)
class Search:
    """A checked search, ready to run: nothing of it needs Ray to be started.

    Attributes:
        dense_val_loss, initial_val_loss: held-out losses of the dense network and of the initial mask.
    """

    options: SearchOptions
    space: SearchSpace
    workload: Workload
    context: TrialContext
    num_trials: int
    dense_val_loss: float
    initial_val_loss: float

    def describe(self) -> dict[str, Any]:
        """The content of `experiment.json`."""
        context = {name: value for name, value in vars(self.context).items() if name != "workload"}
        options = {name: _stored_option(name, value) for name, value in asdict(self.options).items()}
        return {
            "format": EXPERIMENT_FORMAT,
            "options": options,
            "space": self.space.describe(),
            "workload": {
                "name": self.workload.name,
                "model": self.workload.model_source,
                "model_hash": model_hash(self.workload.model),
                "data": self.workload.data_source,
                "budgets": asdict(self.workload.budgets),
            },
            "num_trials": self.num_trials,
            "trial": context,
            "dense_val_loss": self.dense_val_loss,
            "initial_val_loss": self.initial_val_loss,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            "hardware": hardware(),
        }


def _stored_option(name: str, value: Any) -> Any:
    """An option as JSON; folders are made absolute, so that a search can be resumed from anywhere."""
    is_folder = isinstance(value, Path) or (name == "model" and value is not None and Path(value).is_dir())
    return str(Path(value).absolute()) if is_folder else value


def hardware() -> dict[str, Any]:
    """Processor, cores and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus}


def prepare_search(options: SearchOptions, *, resume: bool = False) -> Search:
    """Load and check everything a search needs, and judge the dense network and the initial mask.

    Raises:
        MaskproError: something the user gave is missing or not allowed, or (without `resume`) the folder exists.
    """
    if not resume:
        refuse_existing(options.folder, "experiment folder")
    space = load_space(options.space_file)
    num_trials = space.num_trials if options.num_trials is None else options.num_trials
    workload = open_workload(options.workload or space.workload, model=options.model, data=options.data)
    if options.num_generated is not None:
        workload = replace(workload, budgets=replace(workload.budgets, num_generated=options.num_generated))
    if options.frechet:  # a search of hours must not end in an evaluation that can't be made
        open_features(workload.features, device=torch.device("cpu"), inception_weights=options.inception_weights)
    # A space's budget is meant for the space's own workload.
    space_samples = space.max_samples if workload.name == space.workload else None
    max_samples = options.max_samples or space_samples or workload.budgets.max_samples
    workload = replace(workload, budgets=replace(workload.budgets, max_samples=max_samples))
    dense_val_loss, initial_val_loss = _reference_losses(workload, space)
    context = TrialContext(
        # Without the test images: no trial can see them.
        workload=replace(workload, images=replace(workload.images, test=workload.images.test[:0])),
        pattern=space.pattern,
        layout=space.layout,
        targets=space.targets,
        max_samples=max_samples,
        report_samples=math.ceil(max_samples / _REPORTS),
        seed=options.seed,
    )
    return Search(
        options=options,
        space=space,
        workload=workload,
        context=context,
        num_trials=num_trials,
        dense_val_loss=dense_val_loss,
        initial_val_loss=initial_val_loss,
    )


def initial_masked_model(workload: Workload, space: SearchSpace) -> MaskedModel:
    """A copy of the workload's network with the mask that every trial starts from."""
    return magnitude_masked_model(
        workload.model,
        pattern=NMPattern.parse(space.pattern),
        layout=parse_layout(space.layout),
        targets=space.targets,
    )


def _reference_losses(workload: Workload, space: SearchSpace) -> tuple[float, float]:
    validation = workload.held_out_samples("validation", torch.device("cpu"))
    masked = initial_masked_model(workload, space)
    losses = {
        "dense network": validation.mean_loss(workload.model),
        "initial mask": validation.mean_loss(masked.model),
    }
    for what, loss in losses.items():
        if not math.isfinite(loss):
            raise MaskproError(
                f"held-out loss of the {what} of {workload.model_source} is {loss}; allowed: a finite one (check --model)"
            )
    return losses["dense network"], losses["initial mask"]
