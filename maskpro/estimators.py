"""From a loss to a gradient of the logits. Pure functions and stateless parametrisations; all state is passed in.

- `policy_gradient` (MaskPro, arXiv 2506.12876): forward passes only; one scalar, the advantage, times the score.
- `straight_through`: one backward pass; the loss's gradient at every position, kept or not, carried to the logits through
  the inclusion probabilities.
- `gumbel_softmax` (MaskLLM, Fang et al., arXiv 2409.17481): one backward pass through a relaxed mask, a mixture of all
  C(M, N) masks of a group, sharpened until the end of the run. It has a logit for each mask, not for each weight.
- `relaxed_subset` (the name: Xie and Ermon, arXiv 1901.10517): one backward pass through a relaxed mask in MaskPro's linear
  space. The relaxed mask is the inclusion probabilities of perturbed logits, sharpened until the end of the run.

A parametrisation defines what the logits of an estimator are, how they make a mask, and how a gradient reaches them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from maskpro.distribution import (
    check_enumerable,
    entropy,
    estimate_inclusion_gradient,
    inclusion_gradient,
    mode,
    perturb,
    sample,
    score,
)
from maskpro.names import Annealing, EstimatorName
from maskpro.pattern import NMPattern
from maskpro.relaxation import relaxed_inclusion, relaxed_inclusion_gradient

_TRACKER_DECAY = 0.99

# Largest number of sets of positions (`most_sets`) for straight-through to sum over all masks of a group. With the 70 of
# 4:8 a step takes ten times as long as with the estimate.
_EXACT_SETS = 16

# MaskLLM's temperature at the start. Its scale of the logits, 100 to 500 with logits near 0.01, corresponds to 1 to 5 here.
_FIRST_TEMPERATURE = 4.0
_SCALES = (1.0, 5.0)


@dataclass(frozen=True)
class Sharpening:
    """How relaxed masks become sharp over a run.

    Attributes:
        annealing: fall of the temperature, from 4 to the final one: geometric, or linear as in MaskLLM.
        final_temperature: the last temperature; MaskLLM's is 0.05.
    """

    annealing: Annealing = "geometric"
    final_temperature: float = 0.05

    def at(self, progress: float) -> tuple[float, float]:
        """(temperature, scale of the logits) at a share of the budget; the scale grows linearly from 1 to 5."""
        hot, cold = _FIRST_TEMPERATURE, self.final_temperature
        (first, last) = _SCALES
        temperature = hot * (cold / hot) ** progress if self.annealing == "geometric" else hot + (cold - hot) * progress
        return temperature, first + (last - first) * progress


class Tracker(NamedTuple):
    """Moving averages of the loss residual (the spec's delta), its square and the reference's loss; number of updates.

    All are float64 scalars. The residual is the loss minus the reference's loss; the reference is the initial mask.
    """

    mean: Tensor
    square: Tensor
    reference: Tensor
    updates: Tensor

    @classmethod
    def start(cls, device: torch.device) -> Tracker:
        """Zero averages."""
        return cls(*(torch.zeros((), dtype=torch.float64, device=device) for _ in range(4)))

    def update(self, residual: Tensor, reference: Tensor) -> Tracker:
        """delta <- 0.99 delta + 0.01 r, and the same for r^2 and the reference's loss."""
        residual = residual.double()
        return Tracker(
            mean=self.mean.lerp(residual, 1 - _TRACKER_DECAY),
            square=self.square.lerp(residual.square(), 1 - _TRACKER_DECAY),
            reference=self.reference.lerp(reference.double(), 1 - _TRACKER_DECAY),
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

    def rms_advantage(self, advantage: Tensor) -> Tensor:
        """Advantages of mean zero, such as those of `leave_one_out`, divided by their root mean square."""
        scale = (self.square / (1 - _TRACKER_DECAY**self.updates)).clamp(min=1e-24).sqrt()
        return (advantage.double() / scale).to(advantage.dtype)

    def reference_is_far(self) -> Tensor:
        """True once f(m) > f(m0) / 2 fails on average; MaskPro's proof of convergence requires this inequality."""
        return self.mean <= -self.reference / 2


def magnitude_prior(base: Tensor, strength: float, bound: float) -> Tensor:
    """strength * log(|w| / mean |w| of its group), `[G, M]`, within +-bound.

    Positions whose weights are nearly equal in size are then swapped more often than positions where a small weight would
    replace a large one.
    """
    sizes = base.abs()
    ratio = (sizes / sizes.mean(dim=1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(min=1e-6)
    return (strength * ratio.log()).clamp(-bound, bound)


def policy_gradient(logits: Tensor, mask: Tensor, advantage: Tensor, n: int | None = None) -> Tensor:
    """advantage * d log p(mask | logits) / d logits, `[G, M]`, from one sampled mask `[G, M]` and a scalar advantage.

    `n` as in `distribution.score`.
    """
    return score(logits, mask, n, advantage)


def leave_one_out(losses: Tensor) -> Tensor:
    """Each loss minus the mean of the others, `[K]` with K >= 2: an unbiased baseline (Kool et al. 2019)."""
    return (losses - losses.mean()) * len(losses) / (len(losses) - 1)


class Draw(NamedTuple):
    """The factors of the weights in a step, `[G, M]`, bool or relaxed to float, and what `gradient` needs of the draw."""

    mask: Tensor
    context: Tensor | None = None


class Parametrisation(Protocol):
    """What the logits are. `progress` is the share of the run's budget that is used up, 0 to 1."""

    def start(self, initial_mask: Tensor, magnitude: float, prior: Tensor | None = None) -> Tensor:
        """Logits `[G, K]` whose mode is the initial mask (bool `[G, M]`); `prior` `[G, M]` is added to weights' logits."""

    def mode(self, logits: Tensor) -> Tensor:
        """The mask that is most likely kept in the end, bool `[G, M]`."""

    def entropy(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Entropy of each group's mask distribution in nats, `[G]`."""

    def draw(self, logits: Tensor, progress: float, generator: torch.Generator) -> Draw:
        """A random mask."""

    def gradient(self, logits: Tensor, progress: float, draw: Draw, values: Tensor) -> Tensor:
        """Gradient of the logits `[G, K]`; `values` is base * d loss / d (base * mask) at every position, `[G, M]`."""


@dataclass(frozen=True)
class LinearSpace:
    """A logit a weight (MaskPro's linear space); masks are drawn without replacement."""

    pattern: NMPattern

    def start(self, initial_mask: Tensor, magnitude: float, prior: Tensor | None = None) -> Tensor:
        """Magnitude at kept positions, 0 elsewhere, plus the prior."""
        kept = magnitude * initial_mask.float()
        return kept if prior is None else kept + prior

    def mode(self, logits: Tensor) -> Tensor:
        """The n largest logits."""
        return mode(logits, self.pattern.n)

    def entropy(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Entropy of the masks drawn; with more than 70 masks a group an unbiased estimate."""
        return entropy(logits, self.pattern.n, generator)

    def draw(self, logits: Tensor, progress: float, generator: torch.Generator) -> Draw:
        """A mask of the distribution."""
        if self._is_exact:
            return Draw(sample(logits, self.pattern.n, generator))
        noisy = perturb(logits, generator)
        return Draw(mode(noisy, self.pattern.n), noisy)

    def gradient(self, logits: Tensor, progress: float, draw: Draw, values: Tensor) -> Tensor:
        """Straight-through: d/d logits of sum_i values_i pi_i(logits), pi the inclusion probabilities.

        The forward pass uses the sampled mask, the backward pass its expectation pi. pi is exact with n = 2 or up to 16
        sets of positions (`most_sets`); otherwise it is an unbiased estimate from the noise of the draw.
        """
        if self._is_exact:
            return inclusion_gradient(logits, self.pattern.n, values)
        assert draw.context is not None
        return estimate_inclusion_gradient(logits, self.pattern.n, draw.context, values)

    @property
    def _is_exact(self) -> bool:
        return self.pattern.n == 2 or self.pattern.most_sets <= _EXACT_SETS


@dataclass(frozen=True)
class RelaxedLinearSpace(LinearSpace):
    """A logit a weight; masks are relaxed (`relaxed_inclusion`), annealed over the run's budget."""

    sharpening: Sharpening = field(default_factory=Sharpening)

    def entropy(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """That of the masks at the end of the annealing."""
        return entropy(self.sharpening.at(1.0)[1] * logits, self.pattern.n, generator)

    def draw(self, logits: Tensor, progress: float, generator: torch.Generator) -> Draw:
        """pi((scale * logits + Gumbel noise) / temperature). Each row sums to n; at low temperature it is a drawn mask."""
        temperature, scale = self.sharpening.at(progress)
        sharpened = perturb(scale * logits, generator).div_(temperature)
        return Draw(relaxed_inclusion(sharpened, self.pattern.n), sharpened)

    def gradient(self, logits: Tensor, progress: float, draw: Draw, values: Tensor) -> Tensor:
        """Gradient through the inclusion probabilities of the draw."""
        temperature, scale = self.sharpening.at(progress)
        assert draw.context is not None
        return relaxed_inclusion_gradient(draw.context, self.pattern.n, values).mul_(scale / temperature)


class CandidateSpace:
    """A logit for each mask of a group (MaskLLM); masks are relaxed to mixtures, annealed over the run's budget.

    Raises:
        MaskproError: a group has more than 70 masks.
    """

    def __init__(self, pattern: NMPattern, sharpening: Sharpening | None = None):
        check_enumerable(pattern)
        self._sharpening = sharpening or Sharpening()
        self._n = pattern.n
        self._candidates = pattern.candidates()

    def start(self, initial_mask: Tensor, magnitude: float, prior: Tensor | None = None) -> Tensor:
        """Magnitude at the initial mask, less for masks that share fewer positions (MaskLLM's prior).

        A position that is not shared costs 2 / n of the magnitude; priors count by 2 / n as well.
        """
        positions = magnitude * initial_mask.float() if prior is None else magnitude * initial_mask + prior
        return positions @ self._masks(positions).t() / (self._n / 2) - magnitude

    def mode(self, logits: Tensor) -> Tensor:
        """The mask with the largest logit."""
        return self._candidates.to(logits.device)[logits.argmax(dim=1)]

    def entropy(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """That of the masks at the end of the annealing."""
        log_p = (self._sharpening.at(1.0)[1] * logits).log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1)

    def draw(self, logits: Tensor, progress: float, generator: torch.Generator) -> Draw:
        """The mixture softmax((scale * logits + Gumbel noise) / temperature) of all masks."""
        temperature, scale = self._sharpening.at(progress)
        shares = (perturb(scale * logits, generator) / temperature).softmax(dim=1)
        return Draw(shares @ self._masks(logits), shares)

    def gradient(self, logits: Tensor, progress: float, draw: Draw, values: Tensor) -> Tensor:
        """Gradient through the mixture's softmax."""
        temperature, scale = self._sharpening.at(progress)
        shares = draw.context
        assert shares is not None
        slopes = values @ self._masks(logits).t()
        return scale / temperature * shares * (slopes - (shares * slopes).sum(dim=1, keepdim=True))

    def _masks(self, like: Tensor) -> Tensor:
        return self._candidates.to(like.device, like.dtype if like.is_floating_point() else torch.float32)


PARAMETRISATIONS: dict[EstimatorName, Callable[..., Parametrisation]] = {
    "straight_through": LinearSpace,
    "relaxed_subset": RelaxedLinearSpace,
    "gumbel_softmax": CandidateSpace,
    "policy_gradient": LinearSpace,
}
