"""Objectives: per-sample losses of a network on calibration samples, against the data or against the dense network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Samples computed together wherever a value per sample is kept: fixed, so that the value never depends on the caller.
_BLOCK = 64


class Objective(Protocol):
    """What mask learning needs of a task; a batch is whatever the objective makes of sample indices.

    Every sample is a pure function of its index, whatever batch it is in.
    """

    def batch(self, indices: Tensor) -> Any:
        """The samples of `indices` (`[B]`, int64), on the objective's device."""

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """The network's output `[B, ...]`."""

    def losses(self, prediction: Tensor, batch: Any) -> Tensor:
        """Loss per sample, `[B]`, against the data."""

    def teacher_losses(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Loss per sample, `[B]`, against the dense network's output `[B, ...]`."""


class HeldOutSamples:
    """The first `size` samples of an objective, kept: every model is judged by its losses on the same data."""

    def __init__(self, objective: Objective, size: int):
        self._objective = objective
        self._batches = [objective.batch(indices) for indices in torch.arange(size).split(_BLOCK) if len(indices)]

    @torch.no_grad()
    def losses(self, model: nn.Module) -> Tensor:
        """Loss of every sample against the data, `[size]`, float64 on the CPU."""
        objective = self._objective
        parts = [objective.losses(objective.predict(model, batch), batch).double() for batch in self._batches]
        return torch.cat(parts).cpu()

    def mean_loss(self, model: nn.Module) -> float:
        """Mean loss over the set."""
        return self.losses(model).mean().item()

    def first(self, size: int) -> HeldOutSamples:
        """The first of these samples, at least `size` of them where there are so many."""
        part = HeldOutSamples(self._objective, 0)
        part._batches = self._batches[: num_blocks(size)]
        return part


class SampleValues:
    """A value per calibration sample (a teacher's output, a baseline loss), computed once and kept.

    `compute` maps indices `[64]` to values `[64, ...]`; it is called on whole, aligned blocks, so a value is a function of
    its index alone, whoever asks first and with whatever batch size.

    Args:
        known: values `[K * 64, ...]` of the first samples, computed elsewhere in the same way.
        device: where the values are wanted; needed with `known`.
    """

    def __init__(
        self, compute: Callable[[Tensor], Tensor], known: Tensor | None = None, device: torch.device | None = None
    ):
        self._compute = compute
        self._known = known
        self._device = device
        self._blocks: dict[int, Tensor] = {}

    def __call__(self, indices: Tensor) -> Tensor:
        """Values `[B, ...]` of the samples of `indices` `[B]`."""
        if self._known is not None and indices.max() < len(self._known):
            return self._known[indices].to(self._device)
        return torch.stack([self._block(index // _BLOCK)[index % _BLOCK] for index in indices.tolist()])

    def blocks(self, start: int, stop: int) -> Tensor:
        """Values of the blocks `start` to `stop - 1`, `[(stop - start) * 64, ...]` on the CPU."""
        return torch.cat([self._block(number).cpu() for number in range(start, stop)])

    def _block(self, number: int) -> Tensor:
        if number not in self._blocks:
            with torch.no_grad():
                self._blocks[number] = self._compute(torch.arange(number * _BLOCK, (number + 1) * _BLOCK))
        return self._blocks[number]


def num_blocks(samples: int) -> int:
    """Blocks of SampleValues that hold the first `samples` samples."""
    return -(-samples // _BLOCK)


def teacher_outputs(
    dense: nn.Module, objective: Objective, *, known: Tensor | None = None, device: torch.device | None = None
) -> SampleValues:
    """The dense network's outputs on an objective's samples; `known` and `device` as in SampleValues."""
    return SampleValues(lambda indices: objective.predict(dense, objective.batch(indices)), known, device)


def baseline_losses(
    initial: nn.Module,
    objective: Objective,
    teacher: SampleValues | None,
    *,
    known: Tensor | None = None,
    device: torch.device | None = None,
) -> SampleValues:
    """The losses of the network with its initial mask, against the teacher's outputs or (None) the data."""

    def compute(indices: Tensor) -> Tensor:
        batch = objective.batch(indices)
        prediction = objective.predict(initial, batch)
        if teacher is None:
            return objective.losses(prediction, batch)
        return objective.teacher_losses(prediction, teacher(indices))

    return SampleValues(compute, known, device)
