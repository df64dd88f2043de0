"""A run of mask learning, built in one place: from a workload, settings, a format and a seed to a `MaskTrainer`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from maskpro.initial_masks import InitialMaskMethod, one_shot_mask
from maskpro.logit_gradient import masked_losses
from maskpro.mask_file import MaskFile
from maskpro.masked_model import MaskedModel
from maskpro.names import Precision
from maskpro.objectives import (
    HeldOutMeans,
    HeldOutSamples,
    Objective,
    SampleValues,
    Shelf,
    teacher_outputs,
)
from maskpro.pattern import NMPattern, PackedMask, parse_layout
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig
from maskpro.workload import Workload


class MaskFormat(NamedTuple):
    """All that an initial mask depends on; `dense` are parts of the names of layers that have none by choice."""

    pattern: str
    layout: str
    initial_mask: InitialMaskMethod = "magnitude"
    dense: tuple[str, ...] = ()


def table_name(config: TrainerConfig, form: MaskFormat | None = None) -> Hashable:
    """Name of a table: the losses of a format's initial mask, or without a format the dense network's outputs.

    Only the policy gradient reads the losses.
    """
    if form is None or config.estimator != "policy_gradient":
        return "teacher", config.timesteps, config.precision
    return form, config.target, config.timesteps, config.precision


def no_shelf(name: Hashable, seed: int) -> Shelf | None:
    """No shelf: for runs that leave no tables for other processes."""
    return None


@dataclass(kw_only=True)
class RunCache:
    """What runs of one workload on one device share. A part that is not given is made when the first run needs it.

    Attributes:
        validation_precision: precision of the passes on validation samples; None: that of each run's training.
        validation: the held-out samples that drive a run, by precision.
        shares: shares of the samples' parts where `timesteps` is importance, by precision.
        initial: held-out figures of initial masks, where they are known.
        shelf: gives the place of the table of a name and seed that processes share; None where there is no such place.
        tables: the dense network's outputs and the initial masks' losses on the calibration samples of one seed.
    """

    validation_precision: Precision | None = None
    validation: dict[Precision, HeldOutSamples] = field(default_factory=dict)
    shares: dict[Precision, tuple[float, ...]] = field(default_factory=dict)
    initial: dict[MaskFormat, HeldOutMeans] = field(default_factory=dict)
    shelf: Callable[[Hashable, int], Shelf | None] = no_shelf
    tables: dict[Hashable, SampleValues] = field(default_factory=dict)
    _tables_seed: int | None = None

    def validation_of(self, workload: Workload, device: torch.device, precision: Precision) -> HeldOutSamples:
        """The validation samples of a run whose training is in this precision."""
        chosen = self.validation_precision or precision
        if chosen not in self.validation:
            self.validation[chosen] = workload.held_out_samples("validation", device, chosen)
        return self.validation[chosen]

    def objective_of(
        self, workload: Workload, config: TrainerConfig, device: torch.device, initial: nn.Module | None = None
    ) -> Objective:
        """The calibration samples of a run; missing shares are measured with the initial mask."""
        shares = None
        if config.timesteps == "importance":
            if config.precision not in self.shares:
                assert initial is not None
                self.shares[config.precision] = workload.importance_shares(initial, device, config.precision)
            shares = self.shares[config.precision]
        return workload.training_objective(seed=config.seed, device=device, shares=shares)

    def teacher_of(
        self,
        workload: Workload,
        dense: nn.Module,
        config: TrainerConfig,
        objective: Objective,
        device: torch.device,
    ) -> SampleValues:
        """The dense network's outputs on a run's calibration samples; `dense` is the workload's network on the device."""
        precision, keep = config.precision, workload.keeps_outputs(config.dataset_size)
        if not keep:
            return teacher_outputs(dense, objective, precision=precision, keep=False)

        def make(shelf: Shelf | None) -> SampleValues:
            return teacher_outputs(dense, objective, precision=precision, shelf=shelf, device=device)

        return self._table(table_name(config), config.seed, make)

    def baseline_of(
        self,
        masked: MaskedModel,
        form: MaskFormat,
        config: TrainerConfig,
        objective: Objective,
        teacher: SampleValues,
    ) -> SampleValues:
        """The losses of the network with a format's initial mask, set now, on a run's calibration samples."""
        make = partial(masked_losses, config, masked, PackedMask(masked.mask), objective, teacher)
        table = self._table(table_name(config, form), config.seed, make)
        table.compute = make().compute  # by this run's network: an earlier run's would never be freed
        return table

    def _table(self, name: Hashable, seed: int, make: Callable[[Shelf | None], SampleValues]) -> SampleValues:
        if self._tables_seed != seed:  # the tables of all seeds would be too large to keep
            self.tables, self._tables_seed = {}, seed
        if name not in self.tables:
            self.tables[name] = make(self.shelf(name, seed))
        return self.tables[name]


def initial_masked(
    workload: Workload, dense: nn.Module, form: MaskFormat, *, seed: int, targets: tuple[str, ...] = ("all",)
) -> MaskedModel:
    """A copy of the dense network with its initial mask. The mask depends neither on the targets nor on the device.

    Args:
        seed: seed of random masks, and of the samples that Wanda and SparseGPT look at.
        targets: the layers that are learned.
    """
    pattern, layout = NMPattern.parse(form.pattern), parse_layout(form.layout)
    masked = MaskedModel(copy.deepcopy(dense), pattern=pattern, layout=layout, dense=form.dense)
    mask = one_shot_mask(
        masked,
        form.initial_mask,
        objective=workload.training_objective(seed=seed, device=masked.base.device),
        generator=torch.Generator().manual_seed(seed),
    )
    if targets != ("all",):
        layer_masks = masked.layer_masks(mask)
        masked = MaskedModel(copy.deepcopy(dense), pattern=pattern, layout=layout, targets=targets, dense=form.dense)
        mask = masked.groups(layer_masks)
    masked.set_mask(mask)
    return masked


def given_masked(dense: nn.Module, masks: MaskFile, *, targets: tuple[str, ...] = ("all",)) -> MaskedModel:
    """A copy of the dense network with the masks of a file; the layers that the file leaves out stay dense."""
    covered = masks.masks.keys()
    model = copy.deepcopy(dense)
    masked = MaskedModel(model, pattern=masks.pattern, layout=masks.layout, targets=targets, covered=covered)
    masked.set_mask(masked.groups(masks.masks))
    return masked


def build_trainer(
    workload: Workload,
    config: TrainerConfig,
    form: MaskFormat,
    *,
    seed: int,
    device: torch.device,
    targets: tuple[str, ...] = ("all",),
    masks: MaskFile | None = None,
    cache: RunCache | None = None,
    kind: type[MaskTrainer] = MaskTrainer,
) -> MaskTrainer:
    """The trainer of a run: its masked network, calibration samples, teacher, baseline and validation.

    Args:
        config: its seed is the seed of the calibration samples and of the masks drawn.
        seed: seed of the initial mask, the same for all trials of a search.
        targets: the layers that are learned; the others keep their initial mask.
        masks: initial masks, of this format, in place of the format's one-shot mask.
        cache: what this run shares with others; None: nothing.
        kind: MaskTrainer or a subclass.

    Raises:
        MaskproError: a target that matches nothing, or a pattern that fits no layer.
    """
    cache = RunCache() if cache is None else cache
    dense = workload.model.to(device)
    if masks is None:
        masked = initial_masked(workload, dense, form, seed=seed, targets=targets)
    else:
        masked = given_masked(dense, masks, targets=targets)
    masked.share_weights(dense)
    validation = cache.validation_of(workload, device, config.precision)
    objective = cache.objective_of(workload, config, device, masked.model)
    teacher = cache.teacher_of(workload, dense, config, objective, device)
    baseline = None
    if config.estimator == "policy_gradient" and masks is None:
        baseline = cache.baseline_of(masked, form, config, objective, teacher)
    elif config.estimator == "policy_gradient":
        baseline = masked_losses(config, masked, PackedMask(masked.mask), objective, teacher)
    return kind(
        config,
        masked=masked,
        objective=objective,
        validation=validation,
        teacher=teacher,
        baseline=baseline,
        dense=dense,
        initial=cache.initial.get(form) if masks is None else None,
    )
