"""MaskTrainer: learns the logits of a masked model. Knows no Ray; its whole state is `state_dict`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from maskpro.distribution import mode, sample
from maskpro.errors import MaskproError
from maskpro.estimators import ESTIMATORS, EstimatorName, Tracker, policy_gradient, straight_through
from maskpro.masked_model import MaskedModel
from maskpro.objectives import HeldOutSamples, Objective, SampleValues

Target = Literal["teacher", "noise"]
LearningRateDecay = Literal["linear", "constant"]

# lr 1 moves a logit by about 0.1 a step, whatever the estimator.
LOGIT_STEP = 0.1


class NonFiniteLossError(MaskproError):
    """A loss or a logit became NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Settings of one run of mask learning.

    Attributes:
        lr: step size in units of 0.1 of a logit: Adam's step for straight_through, the step on the normalised advantage
            for policy_gradient; with `raw_step` the spec's own learning rate (no factor, no normalisation, no decay).
        logits: magnitude of the initial logits (logits = magnitude * initial mask).
        batch_size: calibration samples in one forward pass (fewer where memory runs out, with the same result).
        dataset_size: number of calibration samples; the run goes through them again and again.
        budget_samples: calibration samples until the end of the run (repeats counted).
        gradient_accumulation_steps: forward passes averaged into one update.
        estimator: straight_through or policy_gradient.
        target: what the network is compared with in training: the dense network's output (teacher), or the data, which for
            diffusion is the noise (noise).
        lr_decay: linear to zero over the budget, or constant.
        raw_step: policy_gradient exactly as in the spec.
        seed: of the sampled masks.
    """

    lr: float = 1.0
    logits: float = 3.0
    batch_size: int = 32
    dataset_size: int = 512
    budget_samples: int = 25_200
    gradient_accumulation_steps: int = 1
    estimator: EstimatorName = "straight_through"
    target: Target = "teacher"
    lr_decay: LearningRateDecay = "linear"
    raw_step: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lr", "logits"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise MaskproError(f"{name} is {value!r}; allowed: a number above 0")
        for name in ("batch_size", "dataset_size", "budget_samples", "gradient_accumulation_steps"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise MaskproError(f"{name} is {value!r}; allowed: a whole number of at least 1")
        if not 0 <= self.seed < 2**32:
            raise MaskproError(f"seed is {self.seed}; allowed: 0 to {2**32 - 1}")
        if self.batch_size > self.dataset_size:
            raise MaskproError(f"batch_size is {self.batch_size}; allowed: at most dataset_size, {self.dataset_size}")
        for name, allowed in (
            ("estimator", ESTIMATORS),
            ("target", get_args(Target)),
            ("lr_decay", get_args(LearningRateDecay)),
        ):
            if getattr(self, name) not in allowed:
                raise MaskproError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.raw_step and self.estimator != "policy_gradient":
            raise MaskproError(f"raw_step is True with estimator {self.estimator}; allowed: with policy_gradient only")


class MaskTrainer:
    """Learns which weights to keep: `train` consumes calibration samples, `validate` judges the mode of the logits.

    Args:
        masked: the network; its current mask is the initial mask.
        teacher: the dense network's output per sample; needed for the target "teacher".
        baseline: the initial mask's loss per sample, against the same target; needed for policy_gradient.
        initial_val_loss: held-out loss of the initial mask, if it is known already.
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
        initial_val_loss: float | None = None,
    ):
        if config.target == "teacher" and teacher is None:
            raise MaskproError("target is teacher; allowed: only with the dense network's outputs (teacher)")
        if config.estimator == "policy_gradient" and baseline is None:
            raise MaskproError("estimator is policy_gradient; allowed: only with the initial mask's losses (baseline)")
        self.config = config
        self.masked = masked
        self._objective = objective
        self._validation = validation
        self._teacher = teacher
        self._n = masked.pattern.n
        self._initial_mask = masked.mask.clone()[: len(masked.learned_base)]
        self.logits = config.logits * self._initial_mask.to(masked.base.dtype)
        if config.estimator == "straight_through":
            self._optimizer: torch.optim.Optimizer = torch.optim.Adam([self.logits], lr=1.0, betas=(0.9, 0.99))
        else:
            self._optimizer = torch.optim.SGD([self.logits], lr=1.0)
        self._generator = torch.Generator(masked.base.device).manual_seed(config.seed)
        self._tracker = Tracker.start(masked.base.device)
        self._baseline = baseline
        self.num_samples_seen = 0
        self.num_steps = 0
        self.micro_batch_size = config.batch_size
        self.initial_val_loss = self._held_out_loss(self._initial_mask) if initial_val_loss is None else initial_val_loss
        self.best_mask = self._initial_mask.clone()
        self.best_val_loss = self.initial_val_loss
        self.lowest_val_loss: float | None = None

    def train(self, num_samples: int) -> Tensor:
        """Consume exactly `num_samples` samples (the last step may be smaller); mean training loss of each step, float64.

        Raises:
            NonFiniteLossError: a loss or a logit was NaN or infinite.
        """
        end = min(self.num_samples_seen + num_samples, self.config.budget_samples)
        losses = []
        while self.num_samples_seen < end:
            losses.append(self._step(end))
        history = torch.stack(losses).double().cpu() if losses else torch.empty(0, dtype=torch.float64)
        for what, values in (("training loss", history), ("a logit", self.logits)):
            if not values.isfinite().all():
                raise NonFiniteLossError(f"{what} is not finite after {self.num_samples_seen} samples")
        return history

    def validate(self) -> float:
        """Held-out loss of the mode of the logits; remembers it if it is the best so far.

        `best_mask` starts as the initial mask, so that a run never ends worse than it began; `lowest_val_loss` is of the
        validated masks alone, so that runs that made things worse can be told from runs that did nothing.
        """
        mask = mode(self.logits, self._n)
        loss = self._held_out_loss(mask)
        self.lowest_val_loss = loss if self.lowest_val_loss is None else min(self.lowest_val_loss, loss)
        if loss < self.best_val_loss:
            self.best_val_loss, self.best_mask = loss, mask
        return loss

    @property
    def finished(self) -> bool:
        """True when the budget is used up."""
        return self.num_samples_seen >= self.config.budget_samples

    def changed_share(self) -> float:
        """Share of the initially kept positions that the mode of the logits no longer keeps."""
        dropped = self._initial_mask & ~mode(self.logits, self._n)
        return (dropped.sum() / self._initial_mask.sum()).item()

    def _step(self, end: int) -> Tensor:
        """One update of the logits; returns the mean training loss (a scalar on the device)."""
        config = self.config
        count = min(config.batch_size * config.gradient_accumulation_steps, end - self.num_samples_seen)
        indices = torch.arange(self.num_samples_seen, self.num_samples_seen + count) % config.dataset_size
        self.logits.grad, loss = self._estimate_in_memory(indices)
        self._optimizer.param_groups[0]["lr"] = self._step_size()
        self._optimizer.step()
        self.num_samples_seen += count
        self.num_steps += 1
        return loss

    def _estimate_in_memory(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the logits and the mean loss; where memory runs out, by smaller and smaller forward passes.

        The losses are averaged over all samples of the step in any case, so the result differs by float rounding alone.
        """
        estimate = self._straight_through if self.config.estimator == "straight_through" else self._policy_gradient
        generator_state = self._generator.get_state()
        tracker = self._tracker
        while True:
            try:
                return estimate(indices)
            except torch.OutOfMemoryError:
                if self.micro_batch_size == 1:
                    raise
            # Beyond the except clause, whose exception keeps the failed pass's tensors alive.
            self._generator.set_state(generator_state)
            self._tracker = tracker
            self.micro_batch_size = max(1, self.micro_batch_size // 2)
            if self.logits.is_cuda:
                torch.cuda.empty_cache()

    def _step_size(self) -> float:
        if self.config.raw_step:
            return self.config.lr
        left = 1 - self.num_samples_seen / self.config.budget_samples if self.config.lr_decay == "linear" else 1.0
        size = LOGIT_STEP * self.config.lr * left
        # Adam's bias correction makes ten times as much of it at first.
        if size > 0.1 * torch.finfo(self.logits.dtype).max:
            raise NonFiniteLossError(f"step size of lr {self.config.lr:g} is not finite in {self.logits.dtype}")
        return size

    def _straight_through(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        weight_gradient = self.masked.weight_gradient().zero_()
        self.masked.set_mask(sample(self.logits, self._n, self._generator))
        total = torch.zeros((), device=self.logits.device)
        for losses in self._losses(indices):
            loss = losses.sum() / len(indices)
            loss.backward()
            total += loss.detach()
        return straight_through(self.logits, self.masked.learned_base, weight_gradient, self._n), total

    @torch.no_grad()
    def _policy_gradient(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        assert self._baseline is not None
        mask = sample(self.logits, self._n, self._generator)
        self.masked.set_mask(mask)
        loss = torch.cat(list(self._losses(indices))).mean()
        residual = loss - self._baseline(indices).mean()
        self._tracker = self._tracker.update(residual)
        advantage = self._tracker.raw_advantage if self.config.raw_step else self._tracker.normalised_advantage
        return policy_gradient(self.logits, mask, advantage(residual)), loss

    def _losses(self, indices: Tensor) -> Iterator[Tensor]:
        """Losses of the masked network on the samples, one batch after the other, against the configured target."""
        objective = self._objective
        for part in indices.split(self.micro_batch_size):
            batch = objective.batch(part)
            prediction = objective.predict(self.masked.model, batch)
            if self.config.target == "teacher":
                assert self._teacher is not None
                yield objective.teacher_losses(prediction, self._teacher(part))
            else:
                yield objective.losses(prediction, batch)

    def _held_out_loss(self, mask: Tensor) -> float:
        self.masked.set_mask(mask)
        loss = self._validation.mean_loss(self.masked.model)
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"held-out loss is not finite after {self.num_samples_seen} samples")
        return loss

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors on the CPU, counters): all that a run needs to go on bit for bit on the same type of device."""
        tensors = {
            "logits": self.logits,
            "initial_mask": self._initial_mask,
            "best_mask": self.best_mask,
            "generator": self._generator.get_state(),
            **{f"tracker.{name}": value for name, value in self._tracker._asdict().items()},
            **{f"optimizer.{name}": value for name, value in self._optimizer_state().items()},
        }
        counters = {
            "num_samples_seen": self.num_samples_seen,
            "num_steps": self.num_steps,
            "micro_batch_size": self.micro_batch_size,
            "best_val_loss": self.best_val_loss,
            "lowest_val_loss": self.lowest_val_loss,
            "initial_val_loss": self.initial_val_loss,
        }
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}, counters

    def load_state_dict(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Continue from a `state_dict` of a run with the same config and model on the same type of device."""
        if tensors["logits"].shape != self.logits.shape:
            raise MaskproError(
                f"logits of the checkpoint have shape {list(tensors['logits'].shape)}; allowed: {list(self.logits.shape)}"
            )
        if tensors["generator"].shape != self._generator.get_state().shape:
            raise MaskproError(f"checkpoint is from another type of device; allowed: {self.logits.device.type}")
        device = self.logits.device
        self.logits.copy_(tensors["logits"])
        self._initial_mask = tensors["initial_mask"].to(device)
        self.best_mask = tensors["best_mask"].to(device)
        self._generator.set_state(tensors["generator"])
        self._tracker = Tracker(*(tensors[f"tracker.{name}"].to(device) for name in Tracker._fields))
        names = [name for name in tensors if name.startswith("optimizer.")]
        if names:
            state = {name.removeprefix("optimizer."): tensors[name] for name in names}
            self._optimizer.load_state_dict(
                {"state": {0: state}, "param_groups": self._optimizer.state_dict()["param_groups"]}
            )
        for name, value in counters.items():
            setattr(self, name, value)

    def _optimizer_state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self._optimizer.state_dict()["state"].get(0, {})
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
