"""The settings of one run of mask learning: what `maskpro train` takes, and what a search space may fix or search.

Importing this module imports no torch, so the commands' help is quick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from maskpro.errors import MaskproError
from maskpro.names import (
    RELAXED,
    Annealing,
    EstimatorName,
    LearningRateDecay,
    OptimizerName,
    Precision,
    Target,
    Timesteps,
)
from maskpro.options import check_options, option, options_of

# Group of settings that belong to a run rather than to a way of learning: a search sets them.
_OF_A_RUN = "run"

# Bounds beyond which perturbed logits divided by the temperature would leave float32's range.
_LARGEST_LOGITS, _COLDEST = 1e6, 1e-6


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Settings of one run of mask learning.

    Attributes:
        lr: step size in units of 0.1 of a logit; with Adam gradients below its epsilon, 1e-8, move theirs by less. With SGD
            the gradient is scaled to root mean square 1 over all logits; for policy_gradient it is that of the normalised
            advantage. With `raw_step` it is the spec's own learning rate (no factor, no normalisation, no decay).
        logits: logits = magnitude * initial mask.
        magnitude_prior: magnitude_prior * log(|w| / mean |w| of the group) is added to the initial logits, within
            +-0.49 * logits, so their mode is still the initial mask.
        batch_size: samples in a pass; fewer where memory runs out, with the same result.
        dataset_size: the run goes through these samples again and again.
        budget_samples: calibration samples until the end of the run; repeats count, and each sample once for each mask.
        hidden_targets: the training loss is loss + weight * (1 - share of the budget used up)^2 * hidden loss (see
            `HiddenTargets`). The dense network then runs in every step.
        timesteps: how the objective draws the samples' timesteps. With importance each sample is weighted
            (`timestep_shares`).
        lr_decay: linear or by half a cosine to zero over the budget, or constant.
        masks_per_step: from 2 on, each mask's loss is compared with the mean of the others on the same batch
            (leave-one-out) instead of with the initial mask's.
        refresh_reference: for policy_gradient with one mask a step. Once the loss is half of the initial mask's, the mode
            of the logits replaces the initial mask in the residual.
        raw_step: policy_gradient exactly as in the spec; not with Adam.
        precision: precision of the passes, also those of teacher, baseline and `timestep_shares`; bfloat16 is torch's
            autocast. Logits and losses stay in float32. Held-out samples have a precision of their own.
        compile: compiling takes about a minute; then a GPU is 1.5 to 2 times as fast. Results change by float rounding.
        gradient_checkpointing: blocks' activations are computed again in the backward pass (`recomputation`); the results
            are the same.
        seed: seed of the calibration samples and sampled masks.

    Raises:
        MaskproError: a setting that is not allowed, or not together with another one.
    """

    TITLE: ClassVar[str] = "learning"

    lr: float = option(1.0, "Step size, in units of 0.1 of a logit (with raw_step: as in the paper).")
    logits: float = option(3.0, "Magnitude of the initial logits.")
    magnitude_prior: float = option(0.0, "How much the weights' sizes add to their initial logits.")
    batch_size: int = option(32, "Calibration samples in one forward pass.", least=1)
    dataset_size: int = option(512, "Calibration samples.", least=1)
    budget_samples: int = 25_200
    gradient_accumulation_steps: int = option(1, "Forward passes averaged into one update.", least=1)
    estimator: EstimatorName = option(
        "straight_through",
        "straight_through, relaxed_subset, gumbel_softmax (MaskLLM) or policy_gradient (MaskPro, forward passes only).",
    )
    target: Target = option(
        "teacher", "teacher (the dense network's output), or noise or data (what the data say: noise, image, next token)."
    )
    hidden_targets: float = option(0.0, "Weight of the dense network's block outputs as further targets; 0: none.")
    timesteps: Timesteps = option(
        "uniform", "uniform, or more often where the initial mask adds more to the loss (importance)."
    )
    lr_decay: LearningRateDecay = option("linear", "linear, cosine or constant.")
    optimizer: OptimizerName = option("auto", "adam or sgd; auto: sgd for policy_gradient, adam for the others.")
    annealing: Annealing = option(
        "geometric", "Fall of the temperature of relaxed_subset and gumbel_softmax: geometric, or linear (MaskLLM's)."
    )
    final_temperature: float = option(
        0.05, "Last temperature of relaxed_subset and gumbel_softmax, which begin at 4; MaskLLM's is 0.05."
    )
    masks_per_step: int = option(1, "Masks compared on each batch (policy_gradient).", least=1)
    refresh_reference: bool = option(False, "Replace the initial mask once the loss is half of its own (policy_gradient).")
    raw_step: bool = option(False, "The paper's own update (policy_gradient).")
    precision: Precision = option("float32", "Precision of the networks' passes in training: float32 or bfloat16.")
    compile: bool = option(False, "Let torch compile these passes first (on a GPU).")
    gradient_checkpointing: bool = option(
        False, "Compute blocks again in the backward pass, which takes less memory and more time (not policy_gradient)."
    )
    seed: int = option(0, "Seed of calibration samples and sampled masks.", groups=(_OF_A_RUN,))

    def __post_init__(self) -> None:
        check_options(self)
        if not (isinstance(self.budget_samples, int) and self.budget_samples >= 1):
            raise MaskproError(f"budget_samples is {self.budget_samples!r}; allowed: a whole number of at least 1")
        for name in ("lr", "logits", "final_temperature"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise MaskproError(f"{name} is {value!r}; allowed: a number above 0")
        if self.logits > _LARGEST_LOGITS:
            raise MaskproError(f"logits is {self.logits}; allowed: a number above 0, up to {_LARGEST_LOGITS:g}")
        if self.final_temperature < _COLDEST:
            raise MaskproError(f"final_temperature is {self.final_temperature}; allowed: a number of at least {_COLDEST:g}")
        for name in ("magnitude_prior", "hidden_targets"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise MaskproError(f"{name} is {value!r}; allowed: a number of at least 0")
        for name in ("hidden_targets", "gradient_checkpointing"):
            if (value := getattr(self, name)) and (self.estimator == "policy_gradient" or self.compile):
                what = "estimator policy_gradient" if self.estimator == "policy_gradient" else "compile"
                raise MaskproError(
                    f"{name} is {value} with {what}; allowed: {'0' if name == 'hidden_targets' else 'False'}"
                )
        if not 0 <= self.seed < 2**32:
            raise MaskproError(f"seed is {self.seed}; allowed: 0 to {2**32 - 1}")
        if self.batch_size > self.dataset_size:
            raise MaskproError(f"batch_size is {self.batch_size}; allowed: at most dataset_size, {self.dataset_size}")
        for name, plain in (("annealing", "geometric"), ("final_temperature", 0.05)):
            if (value := getattr(self, name)) != plain and self.estimator not in RELAXED:
                allowed = " or ".join(RELAXED)
                raise MaskproError(f"{name} is {value} with estimator {self.estimator}; allowed: with {allowed} only")
        for name, plain in (("raw_step", False), ("refresh_reference", False), ("masks_per_step", 1)):
            if getattr(self, name) != plain and self.estimator != "policy_gradient":
                value = getattr(self, name)
                raise MaskproError(f"{name} is {value} with estimator {self.estimator}; allowed: with policy_gradient only")
        if self.raw_step and self.optimizer == "adam":
            raise MaskproError("raw_step is True with optimizer adam; allowed: sgd or auto (the spec's step is plain SGD)")
        if self.masks_per_step > 1 and (self.raw_step or self.refresh_reference):
            raise MaskproError(
                f"masks_per_step is {self.masks_per_step} with raw_step or refresh_reference; allowed: 1 (they compare a "
                "mask with a reference, not with the other masks)"
            )
        if self.budget_samples % self.masks_per_step:
            raise MaskproError(
                f"masks_per_step is {self.masks_per_step}; allowed: a divisor of budget_samples, {self.budget_samples}"
            )

    @property
    def step_samples(self) -> int:
        """Samples in a whole step; each counts once for each mask."""
        return self.batch_size * self.gradient_accumulation_steps * self.masks_per_step


# The settings that a search may fix or search, in their order.
HYPERPARAMETERS = tuple(item.name for item, known in options_of(TrainerConfig) if _OF_A_RUN not in known.groups)
