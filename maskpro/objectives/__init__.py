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

# Samples computed together for kept values per sample. It is fixed, so a value never depends on the caller.
_BLOCK = 64
# Samples in a part of a table that processes share.
PART = 16 * _BLOCK


class Objective(Protocol):
    """What mask learning needs of a task. A batch is a tensor or a named tuple of tensors, made from sample indices.

    Every sample is a pure function of its index and does not depend on its batch.
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
        """Mean squared difference of activations `[B, ...]` from the dense network's, `[B]`, weighted like losses."""


def predict_in(precision: Precision, objective: Objective, model: nn.Module, batch: Any) -> Tensor:
    """The network's output `[B, ...]` from a pass in this precision; a bfloat16 output is returned as float32."""
    device = (batch if isinstance(batch, Tensor) else batch[0]).device
    with autocast(device, precision):
        prediction = objective.predict(model, batch)
    return prediction.float() if precision == "bfloat16" else prediction


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context in which a network is in evaluation mode, whatever its mode before.

    Its output then depends on its input alone, and BatchNorm's averages stay unchanged.
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
    """Values of a network on each held-out sample, `[size]`, float64 on the CPU.

    Attributes:
        losses: losses against the data.
        errors: errors against the dense network's output; for diffusion the mean squared difference.
    """

    losses: Tensor
    errors: Tensor

    def means(self) -> HeldOutMeans:
        """Means over the samples."""
        return HeldOutMeans(self.losses.mean().item(), self.errors.mean().item())

    def are_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(self.losses.isfinite().all() and self.errors.isfinite().all())


class HeldOutSamples:
    """The first `size` samples of an objective, kept in `batches`: every model is judged on the same data.

    Args:
        dense: the errors' target is this network's outputs on the samples; they are computed here, once.
        precision: precision of all networks' passes. If only the dense one ran in float32, bfloat16's rounding would count
            as error.
        keep: keep the outputs; otherwise `dense` runs again for each model, and must not be changed.
    """

    @torch.no_grad()
    def __init__(
        self, objective: Objective, size: int, dense: nn.Module, precision: Precision = "float32", *, keep: bool = True
    ):
        self._objective = objective
        self._precision = precision
        self._dense = dense
        self.batches = [objective.batch(indices) for indices in torch.arange(size).split(_BLOCK) if len(indices)]
        self._outputs: list[Tensor | None] = [self._output(batch) if keep else None for batch in self.batches]

    @torch.no_grad()
    def judge(self, model: nn.Module) -> HeldOutValues:
        """Loss and error of every sample, from one forward pass each."""
        objective, losses, errors = self._objective, [], []
        with evaluation_mode(model):
            for batch, output in zip(self.batches, self._outputs, strict=True):
                prediction = predict_in(self._precision, objective, model, batch)
                losses.append(objective.losses(prediction, batch).double())
                teacher = self._output(batch) if output is None else output
                errors.append(objective.teacher_losses(prediction, teacher, batch).double())
        return HeldOutValues(torch.cat(losses).cpu(), torch.cat(errors).cpu())

    def _output(self, batch: Any) -> Tensor:
        with evaluation_mode(self._dense):
            return predict_in(self._precision, self._objective, self._dense, batch)

    def first(self, size: int) -> HeldOutSamples:
        """The first of these samples: at least `size`, or all."""
        part = copy.copy(self)
        count = -(-size // _BLOCK)
        part.batches, part._outputs = self.batches[:count], self._outputs[:count]
        return part


class Shelf(Protocol):
    """Parts of a table of sample values that processes share; part k holds the `PART` samples from k * PART on."""

    def get(self, part: int) -> Tensor | None:
        """The values `[PART, ...]` on the CPU, read-only; None if no process has left them."""

    def put(self, part: int, values: Tensor) -> None:
        """Leave the values `[PART, ...]`, on the CPU, for others."""


class SampleValues:
    """A value per calibration sample (a teacher's output, a baseline loss), computed once and kept.

    `compute` maps indices `[64]` to values `[64, ...]`. It is called on whole, aligned blocks, so a value is a function of
    its index alone, whatever the caller and its batch size.

    Args:
        compute: an attribute as well, which may be replaced by another function with the same values.
        shelf: values are looked up there before they are computed, and left there for other processes.
        device: device of the values; needed with `shelf`.
        keep: keep the values; otherwise they are computed at each call, for its samples alone.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        shelf: Shelf | None = None,
        device: torch.device | None = None,
        *,
        keep: bool = True,
    ):
        self.compute = compute
        self._keep = keep
        self._shelf = shelf
        self._device = device
        self._blocks: dict[int, Tensor] = {}

    def __call__(self, indices: Tensor) -> Tensor:
        """Values `[B, ...]` of the samples of `indices` `[B]`."""
        if not self._keep:
            with torch.no_grad():
                return self.compute(indices)
        # Runs of neighbours are copied together: on a GPU each copy launches a kernel.
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
        return self.compute(torch.arange(number * _BLOCK, (number + 1) * _BLOCK))


def teacher_outputs(
    dense: nn.Module,
    objective: Objective,
    *,
    precision: Precision = "float32",
    shelf: Shelf | None = None,
    device: torch.device | None = None,
    keep: bool = True,
) -> SampleValues:
    """The dense network's outputs on an objective's samples, from passes in a precision.

    `shelf`, `device` and `keep` as in SampleValues.
    """

    def compute(indices: Tensor) -> Tensor:
        with evaluation_mode(dense):
            return predict_in(precision, objective, dense, objective.batch(indices))

    return SampleValues(compute, shelf, device, keep=keep)


def baseline_losses(
    initial: nn.Module,
    objective: Objective,
    teacher: SampleValues | None,
    *,
    precision: Precision = "float32",
    prepare: Callable[[], None] = lambda: None,
    shelf: Shelf | None = None,
    device: torch.device | None = None,
) -> SampleValues:
    """The losses of the network with its initial mask, against the teacher's outputs or (None) the data.

    Their precision is that of the losses they are compared with, so its rounding cancels. `prepare` is called before the
    network runs: it sets the initial mask on a network that has others between.
    """

    def compute(indices: Tensor) -> Tensor:
        prepare()
        batch = objective.batch(indices)
        with evaluation_mode(initial):
            prediction = predict_in(precision, objective, initial, batch)
        if teacher is None:
            return objective.losses(prediction, batch)
        return objective.teacher_losses(prediction, teacher(indices), batch)

    return SampleValues(compute, shelf, device)
