"""MaskTrainer: learns the logits of a masked model. Knows no Ray; its whole state is `state_dict`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.estimators import PARAMETRISATIONS, Sharpening, magnitude_prior
from maskpro.logit_gradient import LogitGradient
from maskpro.logit_state import StoredLogits, check_count, load_logits, round_logits
from maskpro.masked_model import MaskedModel
from maskpro.names import RELAXED, LearningRateDecay
from maskpro.objectives import HeldOutMeans, HeldOutSamples, HeldOutValues, Objective, SampleValues
from maskpro.pattern import PackedMask
from maskpro.rounding import pack_upper
from maskpro.trainer_config import TrainerConfig

# lr 1 moves a logit by about 0.1 a step, whatever the estimator. With Adam a gradient below its epsilon, 1e-8, moves its
# logit by less. The more weights a network has, the more of its gradients are that small.
LOGIT_STEP = 0.1

# Largest prior, as a share of `logits`: priors alone can then never swap two positions of a group.
_LARGEST_PRIOR = 0.49

# Remaining share of the step size, as a function of the share of the budget used up.
_SCHEDULES: dict[LearningRateDecay, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}


# Attributes with the held-out means of masks.
_MEANS = ("initial", "best", "lowest")
# Names of the counters in a state.
_COUNTERS = (
    "num_samples_seen",
    "num_steps",
    "micro_batch_size",
    *_MEANS,
)

# Groups that `statistics` takes quantiles and entropy of.
_GROUPS_LOOKED_AT = 4_096


class NonFiniteLossError(MaskproError):
    """A loss or a logit became NaN or infinite."""


class MaskTrainer:
    """Learns which weights to keep: `train` consumes calibration samples, `validate` judges the mode of the logits.

    Args:
        masked: the network; its current mask is the initial mask.
        teacher: the dense network's output per sample, in the config's precision; needed for the target "teacher".
        baseline: the initial mask's loss per sample, in the config's precision and against the same target; needed for
            policy_gradient.
        dense: the network without a mask, needed for hidden_targets; it is never changed.
        initial: held-out loss and error of the initial mask, if known already.
        graphs: on a GPU, record the passes of whole batches as CUDA graphs and replay them.
    """

    def __init__(
        self,
        config: TrainerConfig,
        *,
        masked: MaskedModel,
        objective: Objective,
        validation: HeldOutSamples,
        teacher: SampleValues | None = None,
        baseline: SampleValues | None = None,
        dense: nn.Module | None = None,
        initial: HeldOutMeans | None = None,
        graphs: bool = True,
    ):
        self.config = config
        self.masked = masked
        masked.model.eval()  # the caller may have changed the mode since it was masked
        self._validation = validation
        parametrisation = PARAMETRISATIONS[config.estimator]
        if config.estimator in RELAXED:
            parametrisation = partial(parametrisation, sharpening=Sharpening(config.annealing, config.final_temperature))
        self._parametrisation = parametrisation(masked.pattern)
        initial_mask = masked.mask[: len(masked.learned_base)].clone()
        self._initial_mask = self._best_mask = PackedMask(initial_mask)
        self._gradient = LogitGradient(
            config,
            masked=masked,
            objective=objective,
            parametrisation=self._parametrisation,
            initial_mask=self._initial_mask,
            teacher=teacher,
            baseline=baseline,
            dense=dense,
            graphs=graphs,
        )
        prior = None
        if config.magnitude_prior:
            prior = magnitude_prior(masked.learned_base, config.magnitude_prior, _LARGEST_PRIOR * config.logits)
        self.logits = self._parametrisation.start(initial_mask, config.logits, prior).to(masked.wide_dtype)
        if config.optimizer == "adam" or (config.optimizer == "auto" and config.estimator != "policy_gradient"):
            self._optimizer: torch.optim.Optimizer = torch.optim.Adam([self.logits], lr=1.0, betas=(0.9, 0.99), fused=True)
        else:
            self._optimizer = torch.optim.SGD([self.logits], lr=1.0)
        self._stored: StoredLogits | None = None  # the current state, once it has been rounded
        self.num_samples_seen = 0
        self.num_steps = 0
        self.initial = self._judge(initial_mask).means() if initial is None else initial
        self.best = self.initial
        self.lowest: HeldOutMeans | None = None
        self._lowest_errors = torch.empty(0, dtype=torch.float64)

    def train(self, num_samples: int) -> Tensor:
        """Consume exactly `num_samples` samples (the last step may be smaller); mean training loss of each step, float64.

        Raises:
            MaskproError: `num_samples` is not a multiple of masks_per_step.
            NonFiniteLossError: a loss or a logit was NaN or infinite.
        """
        if num_samples % self.config.masks_per_step:
            raise MaskproError(
                f"num_samples is {num_samples}; allowed: a multiple of masks_per_step, {self.config.masks_per_step}"
            )
        end = min(self.num_samples_seen + num_samples, self.config.budget_samples)
        losses = []
        while self.num_samples_seen < end:
            losses.append(self._step(end))
        history = torch.stack(losses).double().cpu() if losses else torch.empty(0, dtype=torch.float64)
        for what, values in (("training loss", history), ("a logit", self.logits)):
            # One NaN makes the extremes NaN; they take a thirtieth of the time of `isfinite` on all values.
            if values.numel() and not torch.stack(torch.aminmax(values)).isfinite().all():
                lower = f"a lower lr than {self.config.lr:g}"
                allowed = lower if self.config.precision == "float32" else f"{lower}, or precision float32"
                raise NonFiniteLossError(f"{what} is not finite after {self.num_samples_seen} samples; allowed: {allowed}")
        return history

    def validate(self) -> HeldOutMeans:
        """Held-out loss and error of the mode of the logits; that mask becomes `best_mask` unless an earlier one is better.

        Masks are compared by their error, the difference from the dense network's output. The loss can't tell them
        apart, because the noise to be predicted dominates it. A mask is as good as the one with the lowest error so far if
        its error exceeds that by at most the standard error of the paired difference. Of equally good masks the latest is
        kept: it has learned most, while the lowest of many noisy errors is the luckiest. `best_mask` starts as the initial
        mask, so a run never ends worse than it began. `lowest` covers the validated masks alone, so that runs that made
        things worse differ from runs that did nothing.

        The state is rounded first (`round_state`), whether a checkpoint is written or not.
        """
        self.round_state()
        mask = self.mode()
        values = self._judge(mask)
        means = values.means()
        is_lowest = self.lowest is None or means.error < self.lowest.error
        difference = values.errors - (values.errors if is_lowest else self._lowest_errors)
        as_good = is_lowest or difference.mean() <= difference.std(correction=0) / math.sqrt(len(difference))
        if is_lowest:
            self.lowest, self._lowest_errors = means, values.errors
        if as_good and means.error < self.initial.error:
            self.best, self._best_mask = means, PackedMask(mask)
        return means

    @property
    def micro_batch_size(self) -> int:
        """Samples in a forward pass; fewer than the config's after memory has run out."""
        return self._gradient.micro_batch_size

    @micro_batch_size.setter
    def micro_batch_size(self, value: int) -> None:
        self._gradient.micro_batch_size = value

    @property
    def finished(self) -> bool:
        """True when the budget is used up."""
        return self.num_samples_seen >= self.config.budget_samples

    def mode(self) -> Tensor:
        """The mask that the logits stand for now, bool `[G, M]`."""
        return self._parametrisation.mode(self.logits)

    @property
    def initial_mask(self) -> Tensor:
        """The mask that the run began with, bool `[G, M]`."""
        return self._initial_mask.unpack()

    @property
    def best_mask(self) -> Tensor:
        """The mask that `validate` has kept, bool `[G, M]`."""
        return self._best_mask.unpack()

    def entropies(self) -> Tensor:
        """Entropy of each group's mask distribution in nats, `[G]`."""
        generator = torch.Generator(self.logits.device).manual_seed(self.config.seed)
        return self._parametrisation.entropy(self.logits, generator)

    def changed_share(self, mask: Tensor | None = None) -> float:
        """Share of the initially kept positions that a mask (bool `[G, M]`; default: the mode of the logits) drops."""
        initial = self.initial_mask
        dropped = initial & ~(self.mode() if mask is None else mask)
        return (dropped.sum() / initial.sum()).item()

    def statistics(self) -> dict[str, float]:
        """Figures for trackers beside the losses: `changed_share`, `sparsity`, `entropy` and the logits' distribution.

        All describe the logits as they are now, not `best_mask`. Sparsity is the share of the masked layers' weights that
        the mask set now removes. Mean entropy (nats a group) and quantiles of the logits are those of at most 4,096 groups,
        evenly spread.
        """
        spread = self.logits[:: math.ceil(len(self.logits) / _GROUPS_LOOKED_AT)]
        generator = torch.Generator(spread.device).manual_seed(self.config.seed)
        quantiles = spread.float().quantile(torch.tensor([0.05, 0.5, 0.95], device=spread.device)).tolist()
        return {
            "changed_share": self.changed_share(),
            "sparsity": 1 - (self.masked.mask.sum() / self.masked.mask.numel()).item(),
            "entropy": self._parametrisation.entropy(spread, generator).mean().item(),
            **{f"logits/{name}": value for name, value in logit_statistics(self.logits).items()},
            **{f"logits/{name}": value for name, value in zip(("q05", "q50", "q95"), quantiles, strict=True)},
        }

    def _step(self, end: int) -> Tensor:
        """One update of the logits; returns the mean training loss (a scalar on the device)."""
        config = self.config
        masks = config.masks_per_step
        first, count = self.num_samples_seen // masks, min(config.step_samples, end - self.num_samples_seen) // masks
        indices = torch.arange(first, first + count) % config.dataset_size
        self.logits.grad = None  # two of them would be in memory otherwise
        self.logits.grad, loss = self._gradient.estimate(self.logits, self._progress, indices)
        self._stored = None
        self._optimizer.param_groups[0]["lr"] = self._step_size()
        self._optimizer.step()
        self.num_samples_seen += count * masks
        self.num_steps += 1
        return loss

    def _step_size(self) -> float:
        if self.config.raw_step:
            return self.config.lr
        size = LOGIT_STEP * self.config.lr * _SCHEDULES[self.config.lr_decay](self._progress)
        # Adam's bias correction multiplies it by ten at first.
        if size > 0.1 * torch.finfo(self.logits.dtype).max:
            raise NonFiniteLossError(f"step size of lr {self.config.lr:g} is not finite in {self.logits.dtype}")
        return size

    @property
    def _progress(self) -> float:
        return self.num_samples_seen / self.config.budget_samples

    def _judge(self, mask: Tensor) -> HeldOutValues:
        self.masked.set_mask(mask)
        values = self._validation.judge(self.masked.model)
        if not values.are_finite():
            raise NonFiniteLossError(f"held-out loss or error is not finite after {self.num_samples_seen} samples")
        return values

    def round_state(self) -> StoredLogits:
        """Round logits and moments to what `state_dict` can hold: a run is then the same whether it is resumed here or not.

        Only Adam's state is rounded. Without moments a checkpoint has room for the exact logits.

        Returns: what a checkpoint holds of logits and optimizer.
        """
        if self._stored is None:
            self._stored = self._rounded()
        return self._stored

    def _rounded(self) -> StoredLogits:
        # A separate generator: the masks drawn must not depend on how often a run is validated.
        generator = torch.Generator(self.logits.device).manual_seed(self.config.seed + (self.num_samples_seen << 32))
        return round_logits(self.logits, self._optimizer, generator)

    def state_dict(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """(tensors on the CPU, counters): all that a run needs to resume bit for bit on the same type of device.

        The tensors come in parts. Their bytes per weight, for one logit a weight and up to some kilobytes:

        - mask: `best_mask` (0.125). A run that has ended needs no more.
        - logits: coarse logits (0.875, and 0.125 for a reference other than the initial mask). With the part before, a run
          can resume with coarser logits and new moments.
        - exact: the rest of logits and moments (4).

        The state itself is rounded to these (`round_state`). The initial mask is not among them; the trainer that loads
        them has it.
        """
        stored = self.round_state()
        logits = {
            "logits.upper": pack_upper(stored.rounded.upper),
            "logits.scale": stored.rounded.scale,
            "lowest_errors": self._lowest_errors,
            **self._gradient.state(),
        }
        parts = {"mask": {"best_mask": self._best_mask.bits}, "logits": logits, "exact": stored.exact}
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {
            part: {name: value.detach().cpu().clone() for name, value in tensors.items()} for part, tensors in parts.items()
        }, counters

    def load_state_dict(self, parts: dict[str, dict[str, Tensor]], counters: dict[str, Any]) -> None:
        """Resume from a `state_dict` of a run with the same config, model and initial mask on the same type of device.

        Without the part `exact`, logits are rounded to 1/64 of the largest one, and the optimizer starts anew.
        """
        coarse = parts["logits"]
        check_count(self.logits, coarse["logits.upper"])
        self._gradient.load_state(coarse)
        self._best_mask = self._initial_mask.of_bits(parts["mask"]["best_mask"])
        self._lowest_errors = coarse["lowest_errors"]
        load_logits(self.logits, self._optimizer, coarse, parts.get("exact", {}))
        self._stored = None
        for name in _COUNTERS:
            value = counters[name]
            setattr(self, name, HeldOutMeans(*value) if name in _MEANS and value is not None else value)


def logit_statistics(logits: Tensor) -> dict[str, float]:
    """Mean, standard deviation and extremes of the logits."""
    return {name: getattr(logits, name)().item() for name in ("mean", "std", "min", "max")}
