"""Comparison of networks: dense, with an initial mask and with a learned mask."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskpro.errors import MaskproError
from maskpro.files import atomic_folder, write_json
from maskpro.machine.process import Say
from maskpro.mask_file import MaskFile
from maskpro.metrics import masked_copy
from maskpro.pattern import Layout, NMPattern
from maskpro.pipeline.masks import magnitude_mask_file
from maskpro.workload import Workload


def evaluate(
    workload: Workload,
    output: Path,
    *,
    learned: nn.Module,
    covered: Collection[str] | None = None,
    pattern: NMPattern,
    layout: Layout,
    initial: MaskFile | None = None,
    test_samples: int | None = None,
    options: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    device: torch.device,
    say: Say = print,
) -> dict[str, Any]:
    """Compare dense, initial (default: magnitude) and learned networks; pictures and `report.json` in `output`.

    An interrupted evaluation resumes from the folder `cache`.

    Args:
        covered: the learned mask's layers; the initial mask is limited to them. None: all layers that can have a mask.
        test_samples: samples for the losses and fidelity; None: the workload's.
        options: how networks are judged (`Workload.evaluation`).

    Raises:
        MaskproError: `initial` lacks one of these layers or removes more or fewer weights, or `output` exists.
    """
    if test_samples is not None:
        workload = replace(workload, budgets=replace(workload.budgets, test_samples=test_samples))
    evaluation = workload.evaluation(options or {})
    workload = evaluation.workload
    if initial is not None and initial.pattern.sparsity != pattern.sparsity:
        raise MaskproError(
            f"initial mask is {initial.pattern}, the learned one {pattern}; allowed: one that removes as many weights"
        )
    first = initial or magnitude_mask_file(workload, pattern=pattern, layout=layout, covered=covered)
    if covered is not None:
        first = _of_layers(first, covered, say)
    models = {
        "dense": workload.model,
        "initial": masked_copy(workload.model, first.masks, first.pattern, first.layout),
        "learned": learned,
    }
    with atomic_folder(output) as folder:
        compared = evaluation.evaluate(models, device=device, folder=folder, cache=cache, reference_cache=cache, say=say)
        report = evaluation.compare(compared, "learned")
        left = workload.dense_layers(first.masks, pattern=first.pattern, layout=first.layout)
        if left.layers:
            say(left.line())
        report["dense_layers"] = left.describe()
        report["parameters"] = {name: parameter_statistics(model) for name, model in models.items()}
        write_json(folder / "report.json", report)
    return report


def _of_layers(initial: MaskFile, covered: Collection[str], say: Say) -> MaskFile:
    """The initial mask limited to the learned mask's layers: otherwise the learned mask would gain by dense layers."""
    lacking = [name for name in covered if name not in initial.masks]
    if lacking:
        raise MaskproError(
            f"initial mask lacks {len(lacking)} of the learned mask's {len(covered)} layers, such as {lacking[0]}; "
            "allowed: one of the same layers (or none: the magnitude mask)"
        )
    further = len(initial.masks) - len(covered)
    if further:
        say(f"the initial mask is held to the learned mask's {len(covered)} layers; {further} others of it stay dense")
    return replace(initial, masks={name: mask for name, mask in initial.masks.items() if name in covered})


def parameter_statistics(model: nn.Module) -> dict[str, int]:
    """Number of parameters, and of nonzero ones."""
    parameters = list(model.parameters())
    nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in parameters)
    return {"total": sum(parameter.numel() for parameter in parameters), "nonzero": nonzero}
