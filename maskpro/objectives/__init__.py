"""Objectives: per-sample losses of a network on calibration samples, against the data or against the dense network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from maskpro.data import move
from maskpro.names import Precision
from maskpro.precision import autocast

# Samples computed together wherever a value per sample is kept: fixed, so that the value never depends on the caller.
_BLOCK = 64
# Samples of a part of a table that processes share.
PART = 16 * _BLOCK


class Objective(Protocol):
    """What mask learning needs of a task; a batch, a tensor or a named tuple of tensors, is made of sample indices.

    Every sample is a pure function of its index, whatever batch it is in.
    """

    def batch(self, indices: Tensor) -> Any:
        """The samples of `indices` (`[B]`, int64), on the objective's device."""

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """The network's output `[B, ...]`."""

    def losses(self, prediction: Tensor, batch: Any) -> Tensor:
        """Loss per sample, `[B]`, against the data."""

    def teacher_losses(self, prediction: Tensor, teacher: Tensor, batch: Any) -> Tensor:
        """Loss per sample, `[B]`, against the dense network's output `[B, ...]`."""

    def hidden_losses(self, hidden: Tensor, teacher: Tensor, batch: Any) -> Tensor:
        """Mean squared difference of activations `[B, ...]` from the dense network's per sample, `[B]`, weighted alike."""


def predict_in(precision: Precision, objective: Objective, model: nn.Module, batch: Any) -> Tensor:
    """The network's output `[B, ...]`, from a pass in this precision; that of a pass in bfloat16 comes as float32."""
    device = (batch if isinstance(batch, Tensor) else batch[0]).device
    with autocast(device, precision):
        prediction = objective.predict(model, batch)
    return prediction.float() if precision == "bfloat16" else prediction


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within it a network is in evaluation mode, whatever the caller left it in: its output depends on its input alone, and
    BatchNorm's averages stay as they are.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class HeldOutMeans(NamedTuple):
    """Means over held-out samples: `loss` against the data, `error` against the dense network's output."""

    loss: float
    error: float


class HeldOutValues(NamedTuple):
    """What a network comes to on each held-out sample, `[size]`, float64 on the CPU.

    Attributes:
        losses: against the data.
        errors: against the dense network's output; for diffusion the mean squared difference.
    """

    losses: Tensor
    errors: Tensor

    def means(self) -> HeldOutMeans:
        """Over the samples."""
        return HeldOutMeans(self.losses.mean().item(), self.errors.mean().item())

    def are_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(self.losses.isfinite().all() and self.errors.isfinite().all())


class HeldOutSamples:
    """The first `size` samples of an objective, kept in `batches`: every model is judged on the same data.

    Args:
        dense: the network whose outputs on these samples are the target of the errors; they are computed here, once.
        precision: of all networks' passes. With the dense one alone in float32, bfloat16's rounding would count as error.
    """

    @torch.no_grad()
    def __init__(self, objective: Objective, size: int, dense: nn.Module, precision: Precision = "float32"):
        self._objective = objective
        self._precision = precision
        self.batches = [objective.batch(indices) for indices in torch.arange(size).split(_BLOCK) if len(indices)]
        with evaluation_mode(dense):
            self._outputs = [predict_in(precision, objective, dense, batch) for batch in self.batches]

    @torch.no_grad()
    def judge(self, model: nn.Module) -> HeldOutValues:
        """Loss and error of every sample, from one forward pass each."""
        objective, losses, errors = self._objective, [], []
        with evaluation_mode(model):
            for batch, output in zip(self.batches, self._outputs, strict=True):
                prediction = predict_in(self._precision, objective, model, batch)
                losses.append(objective.losses(prediction, batch).double())
                errors.append(objective.teacher_losses(prediction, output, batch).double())
        return HeldOutValues(torch.cat(losses).cpu(), torch.cat(errors).cpu())

    def first(self, size: int) -> HeldOutSamples:
        """The first of these samples, at least `size` of them where there are so many."""
        part = copy.copy(self)
        count = -(-size // _BLOCK)
        part.batches, part._outputs = self.batches[:count], self._outputs[:count]
        return part


class Shelf(Protocol):
    """Where processes leave parts of a table of sample values for each other; part k is of `PART` samples from k * PART."""

    def get(self, part: int) -> Tensor | None:
        """The values `[PART, ...]` on the CPU, if somebody has left them; they are only read."""

    def put(self, part: int, values: Tensor) -> None:
        """Leave the values `[PART, ...]`, on the CPU, for others."""


class SampleValues:
    """A value per calibration sample (a teacher's output, a baseline loss), computed once and kept.

    `compute` maps indices `[64]` to values `[64, ...]`; it is called on whole, aligned blocks, so a value is a function of
    its index alone, whoever asks first and with whatever batch size.

    Args:
        shelf: where values are looked for before they are computed, and left for others.
        device: where values are wanted; needed with `shelf`.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], shelf: Shelf | None = None, device: torch.device | None = None):
        self._compute = compute
        self._shelf = shelf
        self._device = device
        self._blocks: dict[int, Tensor] = {}

    def __call__(self, indices: Tensor) -> Tensor:
        """Values `[B, ...]` of the samples of `indices` `[B]`."""
        # By runs of neighbours rather than one by one: on a GPU each is a kernel to launch.
        starts_a_run = (indices.diff() != 1) | (indices[1:] % _BLOCK == 0)
        runs = indices.tensor_split(starts_a_run.nonzero().flatten() + 1)
        rows = ((int(run[0]), len(run)) for run in runs if len(run))
        values = torch.cat([self._block(first // _BLOCK).narrow(0, first % _BLOCK, count) for first, count in rows])
        return values if self._device is None else move(values, self._device)

    def _block(self, number: int) -> Tensor:
        if number not in self._blocks:
            if self._shelf is None:
                self._blocks[number] = self._computed(number)
            else:
                part, size = number * _BLOCK // PART, PART // _BLOCK
                values = self._shelf.get(part)
                if values is None:
                    made = [self._computed(block) for block in range(part * size, (part + 1) * size)]
                    values = torch.cat(made).cpu()
                    self._shelf.put(part, values)
                self._blocks.update(enumerate(values.split(_BLOCK), start=part * size))
        return self._blocks[number]

    @torch.no_grad()
    def _computed(self, number: int) -> Tensor:
        return self._compute(torch.arange(number * _BLOCK, (number + 1) * _BLOCK))


def teacher_outputs(
    dense: nn.Module,
    objective: Objective,
    *,
    precision: Precision = "float32",
    shelf: Shelf | None = None,
    device: torch.device | None = None,
) -> SampleValues:
    """The dense network's outputs on an objective's samples, from passes in a precision.

    `shelf` and `device` as in SampleValues.
    """

    def compute(indices: Tensor) -> Tensor:
        with evaluation_mode(dense):
            return predict_in(precision, objective, dense, objective.batch(indices))

    return SampleValues(compute, shelf, device)


def baseline_losses(
    initial: nn.Module,
    objective: Objective,
    teacher: SampleValues | None,
    *,
    precision: Precision = "float32",
    shelf: Shelf | None = None,
    device: torch.device | None = None,
) -> SampleValues:
    """The losses of the network with its initial mask, against the teacher's outputs or (None) the data.

    In the precision of the passes whose losses they are compared with; its rounding then cancels.
    """

    def compute(indices: Tensor) -> Tensor:
        batch = objective.batch(indices)
        with evaluation_mode(initial):
            prediction = predict_in(precision, objective, initial, batch)
        if teacher is None:
            return objective.losses(prediction, batch)
        return objective.teacher_losses(prediction, teacher(indices), batch)

    return SampleValues(compute, shelf, device)
