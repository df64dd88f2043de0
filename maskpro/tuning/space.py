"""Search-space files: plain Python that reads as a table, checked name by name."""

from __future__ import annotations

import itertools
import json
import runpy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Domain, Float, Integer

from maskpro.errors import MaskproError
from maskpro.estimators import PARAMETRISATIONS
from maskpro.initial_masks import parse_initial_mask
from maskpro.pattern import NMPattern, parse_layout
from maskpro.schedule.early_stopping import PROMOTIONS, Scheduler, check_scheduler, scheduler_name
from maskpro.schedule.history import METRIC, SHARE
from maskpro.schedule.searcher import Searcher, check_searcher, contains, searcher_name
from maskpro.search_options import check_space_file
from maskpro.trainer_config import HYPERPARAMETERS, TrainerConfig
from maskpro.workloads import WORKLOADS

# What a space may search or fix: the trainer's settings, less those that the search itself sets, and the mask's format.
FORMAT = ("pattern", "layout", "initial_mask", "targets", "num_dense")
SEARCHABLE = (*HYPERPARAMETERS, *FORMAT)
_REQUIRED = ("param_space", "seed_points")


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A checked search space.

    Attributes:
        source: the text of its file.
        param_space: parameter name to Ray Tune domain or fixed value.
        seed_points: points that are run first, exactly as they stand; each names every searched parameter.
        seed_point_names: their names, for reports.
        pattern, layout, initial_mask, targets: of every trial, unless param_space has them.
        max_samples: budget of a trial in calibration samples; None: the workload's.
        num_reports: of a trial that runs to the end; early stopping judges first at the first.
        reduction_factor: of early stopping: one in so many is promoted, and the next rung lies so many times higher.
        promotion: whether a promoted trial resumes from its checkpoint ("resume"), or is trained anew with the next rung as
            its budget ("restart").
        rung_lr_exponent: with "restart", a run of a rung has lr * (max_samples / its budget) to this power.
        min_sparse_share: least share of multiply-adds in layers with a mask that the promoted trial shall have; None: any.
        searcher, scheduler: what suggests trials, and what stops them early: names, or the user's own Optuna objects.
    """

    source: str
    param_space: dict[str, Any]
    seed_points: tuple[dict[str, Any], ...]
    seed_point_names: tuple[str, ...]
    workload: str
    pattern: str
    layout: str
    initial_mask: str
    targets: tuple[str, ...]
    num_trials: int
    max_samples: int | None
    num_reports: int
    reduction_factor: int
    promotion: str
    rung_lr_exponent: float
    min_sparse_share: float | None
    searcher: Searcher
    scheduler: Scheduler

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters that are searched, as Optuna samples them."""
        return {name: _distribution(name, domain) for name, domain in self.domains.items()}

    @property
    def fixed(self) -> dict[str, Any]:
        """The parameters that are the same in every trial."""
        return {name: value for name, value in self.param_space.items() if not isinstance(value, Domain)}

    def choices(self, name: str, default: Any) -> tuple[Any, ...]:
        """All values, or the bounds of the values, that a trial's setting can have."""
        return _extremes(name, self.param_space.get(name, default))

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metrics that are searched for: where several num_dense are allowed, the share that stays sparse as well."""
        return (METRIC, SHARE) if len(set(self.choices("num_dense", 0))) > 1 else (METRIC,)

    @property
    def domains(self) -> dict[str, Domain]:
        """The parameters that are searched."""
        return {name: value for name, value in self.param_space.items() if isinstance(value, Domain)}

    def describe(self) -> dict[str, Any]:
        """The space as JSON-able values."""
        described = {item.name: getattr(self, item.name) for item in fields(self)}
        described |= {
            "targets": list(self.targets),
            "searcher": searcher_name(self.searcher),
            "scheduler": scheduler_name(self.scheduler),
        }
        described["param_space"] = {
            name: json.loads(distribution_to_json(_distribution(name, value))) if isinstance(value, Domain) else value
            for name, value in self.param_space.items()
        }
        return described


_OPTIONAL: dict[str, Any] = {
    "workload": "digits",
    "pattern": "2:4",
    "layout": "channel",
    "initial_mask": "magnitude",
    "targets": ("all",),
    "num_trials": 12,
    "max_samples": None,
    "num_reports": 27,
    "reduction_factor": 3,
    "promotion": "resume",
    "rung_lr_exponent": 0.0,
    "min_sparse_share": None,
    "searcher": "optuna",
    "scheduler": "asha",
}


def load_space(path: Path) -> SearchSpace:
    """Run a space file and check what it defines.

    Raises:
        MaskproError: the file is missing or not Python, lacks a name, or holds a value that is not allowed.
    """
    check_space_file(path)
    try:
        defined = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise MaskproError(f"space file {path} can't be run: {type(error).__name__}: {error}") from error
    values = {
        name: value
        for name, value in defined.items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and name != "annotations"
        and (name in (*_REQUIRED, "searcher") or not callable(value))
    }
    for name in _REQUIRED:
        if name not in values:
            raise MaskproError(f"space file {path} does not define {name}; it needs {' and '.join(_REQUIRED)}")
    unknown = values.keys() - set(_REQUIRED) - _OPTIONAL.keys()
    if unknown:
        raise MaskproError(
            f"space file {path} defines {sorted(unknown)[0]}, which means nothing here; "
            f"allowed: {', '.join([*_REQUIRED, *_OPTIONAL])}, and names that begin with _"
        )
    try:
        return _checked_space(path.read_text(encoding="utf-8-sig"), _OPTIONAL | values)
    except UnicodeDecodeError as error:  # Python itself takes what a comment in its first lines names
        raise MaskproError(f"space file {path} is not in UTF-8 ({error}); allowed: a file in UTF-8") from error
    except MaskproError as error:
        raise MaskproError(f"space file {path}: {error}") from error


def _checked_space(source: str, values: dict[str, Any]) -> SearchSpace:
    param_space, seed_points = values["param_space"], values["seed_points"]
    if callable(param_space):
        raise MaskproError("param_space is a function; allowed: a dictionary (conditional spaces are not searched)")
    if not isinstance(param_space, Mapping) or not param_space:
        raise MaskproError(f"param_space is {param_space!r}; allowed: a dictionary with at least one parameter")
    for name, value in param_space.items():
        _check_parameter(name, value)
    NMPattern.parse(str(values["pattern"]))
    parse_layout(values["layout"])
    parse_initial_mask(values["initial_mask"])
    if not isinstance(values["workload"], str) or values["workload"] not in WORKLOADS:
        raise MaskproError(f"workload is {values['workload']!r}; allowed: {', '.join(WORKLOADS)}")
    check_searcher(values["searcher"])
    check_scheduler(values["scheduler"])
    if values["promotion"] not in PROMOTIONS:
        raise MaskproError(f"promotion is {values['promotion']!r}; allowed: {' or '.join(PROMOTIONS)}")
    exponent = values["rung_lr_exponent"]
    if isinstance(exponent, bool) or not isinstance(exponent, int | float) or not 0 <= exponent <= 1:
        raise MaskproError(f"rung_lr_exponent is {exponent!r}; allowed: a number from 0 to 1")
    if exponent and values["promotion"] != "restart":
        raise MaskproError(
            f"rung_lr_exponent is {exponent} with promotion {values['promotion']!r}, where no rung has a run of its own; "
            "allowed: promotion 'restart'"
        )
    for name, least in (("num_trials", 1), ("max_samples", 1), ("num_reports", 1), ("reduction_factor", 2)):
        value = values[name]
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not (is_whole and value >= least) and not (name == "max_samples" and value is None):
            raise MaskproError(f"{name} is {value!r}; allowed: a whole number of at least {least}")
    targets = values["targets"].split() if isinstance(values["targets"], str) else values["targets"]
    if not (isinstance(targets, list | tuple) and targets and all(isinstance(part, str) and part for part in targets)):
        raise MaskproError(f"targets is {targets!r}; allowed: a part of layer names, or a list of them")
    if not any(isinstance(value, Domain) for value in param_space.values()):
        raise MaskproError("param_space searches nothing; allowed: at least one tune domain, such as tune.choice([1.0])")
    if not isinstance(seed_points, list | tuple):
        raise MaskproError(f"seed_points is {seed_points!r}; allowed: a list of dictionaries")
    points = tuple(_check_seed_point(number, point, param_space) for number, point in enumerate(seed_points, 1))
    _check_together(param_space, values["pattern"])
    space = SearchSpace(
        source=source,
        param_space=dict(param_space),
        seed_points=points,
        seed_point_names=tuple(str(point.get("name", number)) for number, point in enumerate(seed_points, 1)),
        targets=tuple(targets),
        **{name: values[name] for name in _OPTIONAL if name != "targets"},
    )
    share = space.min_sparse_share
    is_share = isinstance(share, float | int) and not isinstance(share, bool) and 0 <= share <= 1
    if share is not None and not (is_share and len(space.objectives) > 1):
        raise MaskproError(f"min_sparse_share is {share!r}; allowed: None, or with a choice of num_dense 0 to 1")
    return space


def _check_parameter(name: str, value: Any) -> None:
    if name not in SEARCHABLE:
        raise MaskproError(f"param_space has an unknown parameter {name!r}; allowed: {', '.join(SEARCHABLE)}")
    if name == "num_dense" and isinstance(value, Domain) and not isinstance(value, Categorical):
        raise MaskproError(
            f"param_space['num_dense'] is a tune domain of the kind {type(value).__name__}; allowed: a whole number, or "
            "tune.choice of some (the initial mask of each is judged once)"
        )
    if isinstance(value, Categorical) and not value.categories:
        raise MaskproError(f"param_space[{name!r}] is an empty choice; allowed: at least one value")
    if isinstance(value, Float | Integer) and not value.lower < value.upper:
        raise MaskproError(
            f"param_space[{name!r}] has the empty range {value.lower} to {value.upper}; allowed: lower < upper"
        )
    for bound in _extremes(name, value):
        _check_value(f"param_space[{name!r}]", name, bound)


def _distribution(name: str, domain: Domain) -> BaseDistribution:
    """The domain as Optuna will sample it; its bounds are both included."""
    try:
        (distribution,) = OptunaSearch.convert_search_space({name: domain}).values()
    except ValueError as error:
        raise MaskproError(
            f"param_space[{name!r}] can't be searched ({error}); allowed: tune.uniform, quniform, loguniform, randint, "
            "qrandint, lograndint, choice, or a fixed value"
        ) from error
    checked: BaseDistribution = distribution
    return checked


def _extremes(name: str, value: Any) -> tuple[Any, ...]:
    """All choices, both bounds, or the fixed value of a parameter."""
    if not isinstance(value, Domain):
        return (value,)
    distribution = _distribution(name, value)
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    return (distribution.low, distribution.high)


def _check_value(where: str, name: str, value: Any) -> None:
    """Check one value by the trainer's own rules, with everything else at ease."""
    if isinstance(value, Mapping) and not isinstance(value, Domain):
        raise MaskproError(f"{where} is {dict(value)!r}; allowed: one value or one tune domain (nothing nested)")
    if name in FORMAT:
        _check_format(where, name, value)
        return
    others: dict[str, Any] = {"dataset_size": 10**9} if name == "batch_size" else {"batch_size": 1}
    if name == "masks_per_step" and isinstance(value, int) and value > 0:
        others["budget_samples"] = value
    if name in ("raw_step", "refresh_reference", "masks_per_step"):
        others["estimator"] = "policy_gradient"
    if name in ("annealing", "final_temperature"):
        others["estimator"] = "gumbel_softmax"
    try:
        TrainerConfig(**others | {name: value})
    except MaskproError as error:
        raise MaskproError(f"{where}: {error}") from error


def _check_format(where: str, name: str, value: Any) -> None:
    try:
        if name == "num_dense":
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise MaskproError(f"{name} is {value!r}; allowed: a whole number of at least 0")
        elif not isinstance(value, str) or not value.strip():
            raise MaskproError(f"{name} is {value!r}; allowed: a text")
        elif name == "pattern":
            NMPattern.parse(value)
        elif name == "layout":
            parse_layout(value)
        elif name == "initial_mask":
            parse_initial_mask(value)
    except MaskproError as error:
        raise MaskproError(f"{where}: {error}") from error


def _check_seed_point(number: int, point: Any, param_space: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(point, Mapping):
        raise MaskproError(f"seed point {number} is {point!r}; allowed: a dictionary")
    searched = {name: value for name, value in param_space.items() if isinstance(value, Domain)}
    given = {name: value for name, value in point.items() if name != "name"}
    for name in sorted(searched.keys() ^ given.keys()):
        problem = "does not name" if name in searched else "names, beside the searched parameters,"
        raise MaskproError(f"seed point {number} {problem} {name}; allowed: exactly {', '.join(searched)}")
    for name, value in given.items():
        _check_value(f"seed point {number}", name, value)
        distribution = _distribution(name, searched[name])
        if not contains(distribution, value):
            allowed = _extremes(name, searched[name])
            is_choice = isinstance(searched[name], Categorical)
            listed = ", ".join(map(str, allowed)) if is_choice else f"{allowed[0]} to {allowed[1]}"
            if (step := getattr(distribution, "step", None)) not in (None, 1):
                listed += f" in steps of {step}"
            raise MaskproError(f"seed point {number} has {name} = {value!r}, outside param_space; allowed: {listed}")
    return given


def _check_together(param_space: Mapping[str, Any], space_pattern: str) -> None:
    """Whatever is drawn must be allowed together, or trials would fail by chance."""
    values = {**asdict(TrainerConfig()), "pattern": space_pattern, **param_space}
    dependent = (
        "estimator",
        "annealing",
        "final_temperature",
        "hidden_targets",
        "gradient_checkpointing",
        "compile",
        "raw_step",
        "refresh_reference",
        "masks_per_step",
        "optimizer",
    )
    choices = [_extremes(name, values[name]) for name in (*dependent, "pattern")]
    for *settings, pattern in itertools.product(*choices):
        given = dict(zip(dependent, settings, strict=True))
        estimator = given["estimator"]
        try:
            TrainerConfig(**given, budget_samples=given["masks_per_step"])
            PARAMETRISATIONS[estimator](NMPattern.parse(pattern))
        except MaskproError as error:
            raise MaskproError(f"param_space allows what can't go together: {error} (estimator {estimator})") from error
    largest = max(_extremes("batch_size", values["batch_size"]))
    smallest = min(_extremes("dataset_size", values["dataset_size"]))
    if largest > smallest:
        raise MaskproError(
            f"param_space allows batch_size {largest} with dataset_size {smallest}; "
            "allowed: batch_size at most dataset_size"
        )
