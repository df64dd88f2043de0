"""All workloads: each bundles a model, its data, its judging and budgets under a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from maskpro.errors import MaskproError
from maskpro.machine.process import Say
from maskpro.option_groups import ReadingOptions, TextOptions
from maskpro.workload import Workload, WorkloadKind
from maskpro.workloads.causal_lm import TextJudging, load_causal_lm_network, open_causal_lm
from maskpro.workloads.judging import ImageJudging, is_features_file
from maskpro.workloads.opening import load_network, open_diffusion

DEFAULT_WORKLOAD = "digits"


def _diffusion(name: str) -> WorkloadKind:
    return WorkloadKind(
        open=partial(open_diffusion, name),
        load=partial(load_network, name),
        opening=ReadingOptions,
        judging=ImageJudging,
        is_file=is_features_file,
        packages=("torchvision", "diffusers", "torch-fidelity"),
    )


WORKLOADS: dict[str, WorkloadKind] = {name: _diffusion(name) for name in ("digits", "cifar10")}
WORKLOADS["causal_lm"] = WorkloadKind(
    open=open_causal_lm,
    load=load_causal_lm_network,
    opening=TextOptions,
    judging=TextJudging,
    packages=("transformers",),
)


def workload_kind(name: str) -> WorkloadKind:
    """The kind of the workload of that name: how it is opened and judged."""
    if name not in WORKLOADS:
        raise MaskproError(f"workload is {name!r}; allowed: {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def open_workload(
    name: str,
    *,
    model: str | None = None,
    data: Path | None = None,
    options: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    say: Say | None = None,
) -> Workload:
    """Load a workload's model and data, or those named by `model` (folder or hub name) and `data` (folder).

    Args:
        options: options of its kind's `opening`.
        cache: folder for data that don't fit into memory.
        say: receives the progress of reading, and what was read, passed over and converted.

    Raises:
        MaskproError: unknown workload or option, or a model or data set that can't be loaded or doesn't fit.
    """
    kind = workload_kind(name)
    return kind.open(model, data, kind.opening(**_known(name, kind.opening, options or {})), cache, say)


def workload_options(
    name: str, *groups: Any, further: Mapping[str, tuple[Any, Any]] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checked options of a workload: those for opening it, and those for judging its networks.

    Args:
        groups: dataclasses of options; some may belong to other kinds of workload or to none.
        further: name to value and default of further options.

    Raises:
        MaskproError: an option of another kind was given, or a value is not allowed.
    """
    kind = workload_kind(name)
    every = {option for one in WORKLOADS.values() for part in (one.opening, one.judging) for option in option_names(part)}
    given = {item.name: (getattr(group, item.name), item.default) for group in groups for item in fields(group)}
    given = {option: pair for option, pair in given.items() if option in every} | dict(further or {})
    allowed = (*option_names(kind.opening), *option_names(kind.judging))
    for option, (value, default) in given.items():
        if option not in allowed and value != default:
            raise MaskproError(f"{option} is {value} with workload {name}; allowed: {', '.join(allowed) or 'no options'}")
    opening, judging = (
        {option: value for option, (value, _) in given.items() if option in option_names(part)}
        for part in (kind.opening, kind.judging)
    )
    kind.opening(**opening)
    kind.judging(**judging)
    return opening, judging


def option_names(part: type) -> tuple[str, ...]:
    """Names of the options in a part (`opening` or `judging`) of a `WorkloadKind`."""
    return tuple(field.name for field in fields(part))


def names_a_file(option: str, value: Any) -> bool:
    """Whether an option of any workload names a file; records then hold its absolute path."""
    return any(kind.is_file(option, value) for kind in WORKLOADS.values())


def _known(name: str, part: type, options: Mapping[str, Any]) -> Mapping[str, Any]:
    for option, value in options.items():
        if option not in option_names(part):
            raise MaskproError(f"{option} is {value} with workload {name}; allowed: {', '.join(option_names(part))}")
    return options
