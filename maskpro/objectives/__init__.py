"""Objectives: per-sample losses of a network on calibration samples, against the data or against the dense network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from maskpro.data import move

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


class HeldOutSamples:
    """The first `size` samples of an objective, kept in `batches`: every model is judged by its losses on the same data."""

    def __init__(self, objective: Objective, size: int):
        self._objective = objective
        self.batches = [objective.batch(indices) for indices in torch.arange(size).split(_BLOCK) if len(indices)]

    @torch.no_grad()
    def losses(self, model: nn.Module) -> Tensor:
        """Loss of every sample against the data, `[size]`, float64 on the CPU."""
        objective = self._objective
        parts = [objective.losses(objective.predict(model, batch), batch).double() for batch in self.batches]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> list[Tensor]:
        """The network's outputs, a tensor `[64, ...]` a batch; the dense network's are a `teacher` of `teacher_losses`."""
        return [self._objective.predict(model, batch) for batch in self.batches]

    @torch.no_grad()
    def teacher_losses(self, model: nn.Module, teacher: list[Tensor]) -> Tensor:
        """Loss of every sample against the dense network's `outputs`, `[size]`, float64 on the CPU."""
        objective = self._objective
        parts = [
            objective.teacher_losses(objective.predict(model, batch), outputs, batch).double()
            for batch, outputs in zip(self.batches, teacher, strict=True)
        ]
        return torch.cat(parts).cpu()

    def mean_loss(self, model: nn.Module) -> float:
        """Mean loss over the set."""
        return self.losses(model).mean().item()

    def first(self, size: int) -> HeldOutSamples:
        """The first of these samples, at least `size` of them where there are so many."""
        part = HeldOutSamples(self._objective, 0)
        part.batches = self.batches[: -(-size // _BLOCK)]
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
    dense: nn.Module, objective: Objective, *, shelf: Shelf | None = None, device: torch.device | None = None
) -> SampleValues:
    """The dense network's outputs on an objective's samples; `shelf` and `device` as in SampleValues."""
    return SampleValues(lambda indices: objective.predict(dense, objective.batch(indices)), shelf, device)


def baseline_losses(
    initial: nn.Module,
    objective: Objective,
    teacher: SampleValues | None,
    *,
    shelf: Shelf | None = None,
    device: torch.device | None = None,
) -> SampleValues:
    """The losses of the network with its initial mask, against the teacher's outputs or (None) the data."""

    def compute(indices: Tensor) -> Tensor:
        batch = objective.batch(indices)
        prediction = objective.predict(initial, batch)
        if teacher is None:
            return objective.losses(prediction, batch)
        return objective.teacher_losses(prediction, teacher(indices), batch)

    return SampleValues(compute, shelf, device)
