"""From a loss to a gradient of the logits. Pure functions; all state is passed in.

- `policy_gradient` (MaskPro, arXiv 2506.12876): forward passes only; one scalar, the advantage, times the score.
- `straight_through`: one backward pass; the loss's gradient at every position, kept or not, carried to the logits through
  the inclusion probabilities.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from maskpro.distribution import inclusion_gradient, score

EstimatorName = Literal["straight_through", "policy_gradient"]
ESTIMATORS: tuple[EstimatorName, ...] = get_args(EstimatorName)

_TRACKER_DECAY = 0.99


class Tracker(NamedTuple):
    """Moving averages of the loss residual: mean (the spec's delta), square, and number of updates; float64 scalars."""

    mean: Tensor
    square: Tensor
    updates: Tensor

    @classmethod
    def start(cls, device: torch.device) -> Tracker:
        """Zero averages."""
        return cls(*(torch.zeros((), dtype=torch.float64, device=device) for _ in range(3)))

    def update(self, residual: Tensor) -> Tracker:
        """delta <- 0.99 delta + 0.01 r, and the same for r^2."""
        residual = residual.double()
        return Tracker(
            mean=_TRACKER_DECAY * self.mean + (1 - _TRACKER_DECAY) * residual,
            square=_TRACKER_DECAY * self.square + (1 - _TRACKER_DECAY) * residual.square(),
            updates=self.updates + 1,
        )

    def raw_advantage(self, residual: Tensor) -> Tensor:
        """r - delta, with delta already updated by r (as upstream's code; the paper's figure updates it after)."""
        return residual - self.mean.to(residual.dtype)

    def normalised_advantage(self, residual: Tensor) -> Tensor:
        """(r - mean) / std with bias-corrected averages: its scale is the same for every model and batch size.

        A departure from the paper; it makes the step size transferable. Zero while the averages hold a single value.
        """
        correction = 1 - _TRACKER_DECAY**self.updates
        mean = self.mean / correction
        variance = self.square / correction - mean.square()
        advantage = (residual.double() - mean) / variance.clamp(min=1e-24).sqrt()
        return torch.where(self.updates > 1, advantage, torch.zeros_like(advantage)).to(residual.dtype)


def policy_gradient(logits: Tensor, mask: Tensor, advantage: Tensor) -> Tensor:
    """advantage * d log p(mask | logits) / d logits, `[G, M]`, from one sampled mask `[G, M]` and a scalar advantage."""
    return advantage * score(logits, mask)


def straight_through(logits: Tensor, base: Tensor, weight_gradient: Tensor, n: int) -> Tensor:
    """d/d logits of sum_i g_i pi_i(logits), `[G, M]`, with g = base * d loss / d (base * mask) at every position.

    Linear-space straight-through: the sampled mask is used forward, its expectation pi (the inclusion probabilities)
    backward.
    """
    return inclusion_gradient(logits, n, base * weight_gradient)
