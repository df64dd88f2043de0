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

from maskpro.dense_curve import sensitive_first
from maskpro.dense_layers import DenseLayers, multiply_adds
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
from maskpro.tuning.shared import TrialContext, initial_masked, mask_format
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
        warm_start: (parameters, value, source, reports, share or None) of another experiment's trials, of a new search.
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
    warm_start: tuple[tuple[dict[str, Any], float, str, list[tuple[int, float]], float | None], ...] = ()
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
        return _asked_scheduler(self.options, self.space)

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
            **({"dense_order": dict(self.context.dense_order)} if "num_dense" in self.space.param_space else {}),
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


def load_search(
    options: SearchOptions,
    space: SearchSpace,
    *,
    planned: tuple[Plan, ...],
    num_trials: int,
    dense_order: Mapping[str, float] | None = None,
) -> Search:
    """A search whose trials are decided on, with its model and data.

    Args:
        dense_order: as an experiment's record has it; None: it is found out where the space has num_dense.
    """
    scheduler = _asked_scheduler(options, space)
    if len(space.objectives) > 1 and scheduler != "none":
        raise MaskproError(
            f"scheduler is {scheduler_name(scheduler)} together with a choice of num_dense; allowed: none (early stopping "
            "can't judge two objectives, the error and the share that stays sparse)"
        )
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
    workload.check_timesteps(space.choices("timesteps", TrainerConfig().timesteps))
    sizes = {part: getattr(options, part) for part in ("selection_samples", "test_samples") if getattr(options, part)}
    workload = replace(workload, budgets=replace(workload.budgets, **sizes))
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
    _check_formats(space, context)
    for masks in space.choices("masks_per_step", 1):
        if max_samples % masks or report_samples % masks:
            raise MaskproError(
                f"masks_per_step is {masks}; allowed: a divisor of max_samples, {max_samples}, and of the samples between "
                f"two reports, {report_samples} (max_samples / num_reports)"
            )
    evaluation.check(options.evaluation_device)
    for precision in space.choices("precision", TrainerConfig().precision):
        check_precision(precision, options.evaluation_device)
    if "num_dense" in space.param_space:
        order = _dense_order(options, space, context) if dense_order is None else dense_order
        context = _with_dense_layers(space, context, order)
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


def _asked_scheduler(options: SearchOptions, space: SearchSpace) -> Scheduler:
    return options.scheduler or (None if options.only_seed_points else space.scheduler) or "none"


def _check_formats(space: SearchSpace, context: TrialContext) -> None:
    """Raise where one of the formats leaves a target no layer."""
    for targets in (space.targets, *(split_targets(text) for text in space.choices("targets", None))):
        for form in context.formats if targets else ():
            _masked(context, form, targets)


def _masked(context: TrialContext, form: MaskFormat, targets: tuple[str, ...] = ("all",)) -> MaskedModel:
    pattern, layout = NMPattern.parse(form.pattern), parse_layout(form.layout)
    return MaskedModel(
        copy.deepcopy(context.workload.model), pattern=pattern, layout=layout, targets=targets, dense=form.dense
    )


def _dense_order(options: SearchOptions, space: SearchSpace, context: TrialContext) -> dict[str, float]:
    """The learned layers of the first format, the most sensitive first, with their shares of the multiply-adds."""
    # A copy: to judge it moves a network to the device.
    workload = replace(context.workload, model=copy.deepcopy(context.workload.model))
    workload.check_passes(workload.model, torch.device("cpu"))
    targets = split_targets(space.choices("targets", None)[0]) or space.targets
    initial = initial_masked(context, workload.model, context.formats[0], targets)
    _check_num_dense(space, sum(layer.learned for layer in initial.layers))
    order = sensitive_first(workload, initial, device=options.evaluation_device, say=say_aside)
    costs = multiply_adds(context.workload.model, context.workload.run_once)
    return {name: costs.get(name, 0) / max(1, sum(costs.values())) for name in order}


def _check_num_dense(space: SearchSpace, num_layers: int) -> None:
    most = max(space.choices("num_dense", 0))
    if most >= num_layers:
        raise MaskproError(
            f"num_dense is {most}; allowed: at most {num_layers - 1}, one less than the layers that would be learned"
        )


def _with_dense_layers(space: SearchSpace, context: TrialContext, order: Mapping[str, float]) -> TrialContext:
    """The context with a format for each num_dense, the smallest first.

    Raises:
        MaskproError: a num_dense is too large, or none leaves as much sparse as the promoted trial shall have.
    """
    _check_num_dense(space, len(order))
    context = replace(context, dense_order=order)
    counts = sorted(set(space.choices("num_dense", 0)))
    forms = tuple(
        mask_format(context, form._asdict() | {"num_dense": count}) for form in context.formats for count in counts
    )
    context = replace(context, formats=forms)
    _check_formats(space, context)
    if len(space.objectives) == 1:
        return context
    costs = multiply_adds(context.workload.model, context.workload.run_once)
    shares = {
        form: sum(costs.get(layer.name, 0) for layer in _masked(context, form).layers) / max(1, sum(costs.values()))
        for form in forms
    }
    if space.min_sparse_share is not None and max(shares.values()) < space.min_sparse_share:
        largest = math.floor(1e4 * max(shares.values())) / 1e4
        raise MaskproError(
            f"min_sparse_share is {space.min_sparse_share}, which no num_dense reaches; allowed: at most {largest}"
        )
    return replace(context, sparse_shares=shares)


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
