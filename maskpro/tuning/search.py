"""A search before it runs: everything loaded and checked that needs no Ray."""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from maskpro.dense_layers import DenseLayers
from maskpro.doctor import understood
from maskpro.errors import MaskproError
from maskpro.files import why_unwritable
from maskpro.initial_masks import parse_initial_mask
from maskpro.machine.hardware import hardware
from maskpro.machine.process import say_aside
from maskpro.masked_model import MaskedModel
from maskpro.pattern import NMPattern, parse_layout
from maskpro.precision import check_precision
from maskpro.preflight import Preflight, check_record, run_preflight
from maskpro.runs import MaskFormat
from maskpro.schedule.early_stopping import Scheduler, scheduler_name
from maskpro.schedule.remnants import refuse_begun
from maskpro.schedule.rungs import MIN_COMPLETED
from maskpro.schedule.searcher import Searcher, searcher_name
from maskpro.schedule.state import Plan
from maskpro.search_options import SearchOptions
from maskpro.trainer_config import TrainerConfig
from maskpro.tuning.shared import TrialContext
from maskpro.tuning.space import SearchSpace, load_space
from maskpro.tuning.trainable import split_targets
from maskpro.workload import Workload
from maskpro.workload_evaluation import Evaluation
from maskpro.workloads import open_workload, workload_kind, workload_options

EXPERIMENT_FORMAT = 5
_PACKAGES = ("maskpro", "torch", "ray", "optuna", "pandas")


@dataclass(frozen=True, kw_only=True)
class Search:
    """A checked search, ready to run: nothing of it needs Ray to be started.

    Attributes:
        planned: the trials that are run first, as they stand.
        num_trials: of the search when it is new; a history knows better.
        preflight: what was measured of the first format of the space.
        warm_start: (parameters, value, source, reports) of another experiment's trials; of a new search only.
        judged_by: what judges beside the held-out samples, as the evaluation says it.
        is_replay: True for a search that follows another one's history: it stops trials where that one did.
        min_completed: least number of trials that run to their full budget.
    """

    options: SearchOptions
    space: SearchSpace
    workload: Workload
    context: TrialContext
    planned: tuple[Plan, ...]
    num_trials: int
    preflight: Preflight
    warm_start: tuple[tuple[dict[str, Any], float, str, list[tuple[int, float]]], ...] = ()
    judged_by: Mapping[str, Any] = field(default_factory=dict)
    is_replay: bool = False
    min_completed: int = MIN_COMPLETED

    @property
    def dense_layers(self) -> DenseLayers:
        """That the first format of the space leaves without a mask."""
        return self.preflight.dense

    def understood(self) -> dict[str, str]:
        """What `maskpro doctor` shows, with this search's budget of a trial."""
        form = self.context.formats[0]
        pattern, layout = NMPattern.parse(form.pattern), parse_layout(form.layout)
        return understood(self.workload, self.preflight, self.evaluation, pattern=pattern, layout=layout)

    @property
    def evaluation(self) -> Evaluation:
        """How the networks are judged in the end."""
        return self.workload.evaluation(workload_options(self.workload.name, self.options)[1])

    @property
    def scheduler(self) -> Scheduler:
        """What stops trials early; a replay is run as it stands."""
        return "none" if self.is_replay else self._asked_scheduler

    @property
    def _asked_scheduler(self) -> Scheduler:
        """What stops trials early, or did in the search that is done again; seed points alone are run as they stand."""
        named = self.options.scheduler or (None if self.options.only_seed_points else self.space.scheduler)
        return named or "none"

    @property
    def restarts(self) -> bool:
        """Whether each rung is a run of its own; other early stopping than asha has no rungs."""
        return self.space.promotion == "restart" and self._asked_scheduler == "asha"

    @property
    def searcher(self) -> Searcher:
        """What suggests trials."""
        return self.options.searcher or self.space.searcher

    def describe(self) -> dict[str, Any]:
        """The content of `experiment.json`: enough to run the search again."""
        context = {
            name: getattr(self.context, name) for name in ("max_samples", "report_samples", "seed", "validation_precision")
        }
        packages = (*_PACKAGES, *workload_kind(self.workload.name).packages)
        return {
            "format": EXPERIMENT_FORMAT,
            "options": self.options.describe(),
            "space": self.space.describe(),
            "workload": self.workload.describe() | {"dense_layers": self.dense_layers.describe()},
            "judged_by": dict(self.judged_by),
            "searcher": searcher_name(self.searcher),
            "scheduler": scheduler_name(self.scheduler),
            "num_trials": self.num_trials,
            "planned": [asdict(plan) for plan in self.planned],
            "is_replay": self.is_replay,
            "min_completed": self.min_completed,
            "trial": context,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "hardware": hardware(),
        }


def prepare_search(options: SearchOptions) -> Search:
    """Load and check everything that a new search needs.

    Raises:
        MaskproError: something the user gave is missing or not allowed, or the folder exists.
    """
    refuse_begun(options.folder)
    _check_places(options)
    space = load_space(options.space_file)
    planned = _seed_plans(options, space)
    num_trials = space.num_trials if options.num_trials is None else options.num_trials
    if options.only_seed_points:
        if options.num_trials is not None:
            raise MaskproError(
                f"num_trials is {num_trials} together with only_seed_points; allowed: only_seed_points alone"
            )
        num_trials = len(planned)
    if num_trials < len(planned):
        raise MaskproError(
            f"num_trials is {num_trials}; allowed: at least the {len(planned)} seed points (choose some with --seed-points)"
        )
    return load_search(options, space, planned=planned, num_trials=num_trials)


def _check_places(options: SearchOptions) -> None:
    """Raise where the results, or checkpoints in a folder, can't be written; nothing is left behind."""
    for name, place in (("results_dir", options.results_dir), ("storage_path", options.storage_path)):
        if place is None or "://" in str(place):
            continue
        problem = why_unwritable(Path(place).absolute())
        if problem:
            raise MaskproError(f"{name} is {place}, which can't be written ({problem}); allowed: a writable folder")


def load_search(options: SearchOptions, space: SearchSpace, *, planned: tuple[Plan, ...], num_trials: int) -> Search:
    """A search whose trials are decided on, with its model and data."""
    name = options.workload or space.workload
    opening, judging = workload_options(name, options)
    workload = open_workload(
        name,
        model=options.model,
        data=options.data,
        options=opening,
        cache=options.results_dir.absolute(),
        say=say_aside,
    )
    given = {part: getattr(options, part) for part in ("selection_samples", "test_samples")}
    given_sizes = {part: size for part, size in given.items() if size is not None}
    workload = replace(workload, budgets=replace(workload.budgets, **given_sizes))
    evaluation = workload.evaluation(judging)
    workload = evaluation.workload
    judged_by = evaluation.judged_by()
    # A space's budget is meant for the space's own workload.
    space_samples = space.max_samples if workload.name == space.workload else None
    max_samples = options.max_samples or space_samples or workload.budgets.max_samples
    report_samples = math.ceil(max_samples / space.num_reports)
    workload = replace(workload, budgets=replace(workload.budgets, max_samples=max_samples, report_samples=report_samples))
    evaluation = workload.evaluation(judging)
    context = _context(options, space, workload, max_samples)
    for targets in (space.targets, *(split_targets(text) for text in space.choices("targets", None))):
        for form in context.formats if targets else ():
            MaskedModel(
                copy.deepcopy(workload.model),
                pattern=NMPattern.parse(form.pattern),
                layout=parse_layout(form.layout),
                targets=targets,
                dense=form.dense,
            )
    for masks in space.choices("masks_per_step", 1):
        if max_samples % masks or report_samples % masks:
            raise MaskproError(
                f"masks_per_step is {masks}; allowed: a divisor of max_samples, {max_samples}, and of the samples between "
                f"two reports, {report_samples} (max_samples / num_reports)"
            )
    evaluation.check(options.evaluation_device)
    for precision in space.choices("precision", TrainerConfig().precision):
        check_precision(precision, options.evaluation_device)
    form = context.formats[0]
    found = run_preflight(
        workload,
        pattern=NMPattern.parse(form.pattern),
        layout=parse_layout(form.layout),
        dense=form.dense,
        evaluation=evaluation,
        device=torch.device("cuda" if torch.cuda.is_available() and options.gpus_per_trial != 0 else "cpu"),
    )
    search = Search(
        options=options,
        space=space,
        workload=workload,
        context=context,
        planned=planned,
        num_trials=num_trials,
        judged_by=judged_by,
        preflight=found,
    )
    check_record(workload, search.describe)
    return search


def _context(options: SearchOptions, space: SearchSpace, workload: Workload, max_samples: int) -> TrialContext:
    return TrialContext(
        workload=workload.without_test(),
        pattern=space.pattern,
        layout=space.layout,
        initial_mask=parse_initial_mask(space.initial_mask),
        targets=space.targets,
        max_samples=max_samples,
        report_samples=workload.budgets.report_samples,
        seed=options.seed,
        formats=tuple(
            MaskFormat(pattern, layout, initial_mask, options.dense or ())
            for pattern in space.choices("pattern", space.pattern)
            for layout in space.choices("layout", space.layout)
            for initial_mask in space.choices("initial_mask", space.initial_mask)
        ),
        table_samples=min(max(space.choices("dataset_size", TrainerConfig().dataset_size)), max_samples),
        timesteps=space.choices("timesteps", TrainerConfig().timesteps),
        precisions=space.choices("precision", TrainerConfig().precision),
        dense=options.dense or (),
        rung_lr_exponent=space.rung_lr_exponent,
        storage=f"{options.storage_path}/{options.experiment}" if options.storage_path else f"{options.folder}/trials",
        cpus=options.cpus_per_trial,
    )


def _seed_plans(options: SearchOptions, space: SearchSpace) -> tuple[Plan, ...]:
    numbers = range(1, len(space.seed_points) + 1)
    chosen = tuple(numbers) if options.seed_points is None else options.seed_points
    for number in chosen:
        if number not in numbers or chosen.count(number) > 1:
            raise MaskproError(f"seed_points holds {number}; allowed: each of the numbers 1 to {len(numbers)} once")
    if options.only_seed_points and not chosen:
        raise MaskproError("only_seed_points is given with a space that has none; allowed: a space with seed points")
    return tuple(
        Plan(params=space.seed_points[number - 1], source=f"seed point {number}", seed=options.seed) for number in chosen
    )
