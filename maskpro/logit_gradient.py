"""From samples to a gradient of the logits: masks are drawn, the network runs, and its losses compare the masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.estimators import Parametrisation, Tracker, leave_one_out, policy_gradient
from maskpro.graphs import GraphedPass
from maskpro.hidden_targets import HiddenTargets, fading
from maskpro.masked_model import MaskedModel
from maskpro.objectives import Objective, SampleValues, Shelf, baseline_losses, predict_in
from maskpro.pattern import PackedMask
from maskpro.precision import reproducible
from maskpro.recomputation import recomputable_blocks, recomputed
from maskpro.trainer_config import TrainerConfig


class Batch(NamedTuple):
    """Samples of an objective, and the dense network's outputs on them if these are the target."""

    size: int
    samples: Any
    teacher: Tensor | None


class LogitGradient:
    """Estimates the gradient of the logits, and the loss, on samples by a config's estimator.

    Args:
        parametrisation: what the logits are.
        initial_mask: the first reference that drawn masks are compared with (policy_gradient).
        teacher, baseline, dense, graphs: as `MaskTrainer` takes them.

    Attributes:
        generator: draws the masks.
        tracker, reference, baseline: for policy_gradient: moving averages, the mask that drawn masks are compared with, and
            the loss of that mask per sample.
        micro_batch_size: samples in a pass; fewer than the config's after memory has run out.
    """

    def __init__(
        self,
        config: TrainerConfig,
        *,
        masked: MaskedModel,
        objective: Objective,
        parametrisation: Parametrisation,
        initial_mask: PackedMask,
        teacher: SampleValues | None,
        baseline: SampleValues | None,
        dense: nn.Module | None,
        graphs: bool,
    ):
        if config.target == "teacher" and teacher is None:
            raise MaskproError("target is teacher; allowed: only with the dense network's outputs (teacher)")
        if config.estimator == "policy_gradient" and baseline is None:
            raise MaskproError("estimator is policy_gradient; allowed: only with the initial mask's losses (baseline)")
        if config.hidden_targets and dense is None:
            raise MaskproError(f"hidden_targets is {config.hidden_targets}; allowed: 0 without the dense network (dense)")
        self._config = config
        self._masked = masked
        self.objective = objective
        self._parametrisation = parametrisation
        self._teacher = teacher
        self.baseline = baseline
        self._initial_mask = self.reference = initial_mask
        self._hidden: HiddenTargets | None = None
        if config.hidden_targets and dense is not None:
            self._hidden = HiddenTargets(dense, masked, objective, precision=config.precision)
        self._blocks = recomputable_blocks(masked) if config.gradient_checkpointing else []
        self.generator = torch.Generator(masked.base.device).manual_seed(config.seed)
        self.tracker = Tracker.start(masked.base.device)
        self.micro_batch_size = config.batch_size
        self._uses_graphs = graphs and masked.base.is_cuda
        self._graphed: GraphedPass | None = None
        self._network: Any = torch.compile(masked.model) if config.compile else masked.model

    def estimate(self, logits: Tensor, progress: float, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the logits and the mean loss. If memory runs out, forward passes are made smaller.

        Losses are averaged over all samples of the step in any case, so results differ by float rounding alone.
        """
        estimate = self._policy_gradient if self._config.estimator == "policy_gradient" else self._backward
        generator_state = self.generator.get_state()
        tracker = self.tracker
        while True:
            try:
                with reproducible():
                    return estimate(logits, progress, indices)
            except torch.OutOfMemoryError:
                if self.micro_batch_size == 1:
                    raise
            # Not within the except clause, as the exception keeps the failed pass's tensors alive.
            self.generator.set_state(generator_state)
            self.tracker = tracker
            self.micro_batch_size = max(1, self.micro_batch_size // 2)
            self._graphed = None
            if self._masked.base.is_cuda:
                torch.cuda.empty_cache()

    def _backward(self, logits: Tensor, progress: float, indices: Tensor) -> tuple[Tensor, Tensor]:
        weight_gradient = self._masked.weight_gradient().zero_()
        draw = self._parametrisation.draw(logits, progress, self.generator)
        self._masked.set_mask(draw.mask)
        total = torch.zeros((), device=self._masked.base.device, dtype=self._masked.wide_dtype)
        count = torch.full((), len(indices), dtype=total.dtype, device=total.device)
        hidden_weight = torch.full_like(count, self._config.hidden_targets * fading(progress))
        for batch in self.batches(indices):
            total += self._run(self._loss_and_backward, batch, count, hidden_weight)
        values = weight_gradient.mul_(self._masked.learned_base).to(logits.dtype)
        gradient = self._parametrisation.gradient(logits, progress, draw, values)
        return normalised(gradient) if self._config.optimizer == "sgd" else gradient, total

    @torch.no_grad()
    def _policy_gradient(self, logits: Tensor, progress: float, indices: Tensor) -> tuple[Tensor, Tensor]:
        masks, means = [], []
        batches = list(self.batches(indices))
        for _ in range(self._config.masks_per_step):
            masks.append(self._parametrisation.draw(logits, progress, self.generator).mask)
            self._masked.set_mask(masks[-1])
            means.append(torch.cat([self._run(self.losses, batch) for batch in batches]).mean())
        losses = torch.stack(means)
        advantages = self._advantages(logits, losses, indices)
        n = self._masked.pattern.n
        gradient = policy_gradient(logits, masks[0], advantages[0], n)
        for mask, advantage in zip(masks[1:], advantages[1:], strict=True):
            gradient += policy_gradient(logits, mask, advantage, n)
        return gradient.div_(len(masks)) if len(masks) > 1 else gradient, losses.mean()

    def _advantages(self, logits: Tensor, losses: Tensor, indices: Tensor) -> Tensor:
        """Each mask's loss minus the expected loss on the same samples, `[K]`, scaled."""
        config = self._config
        if config.masks_per_step > 1:
            advantages = leave_one_out(losses)
            for advantage in advantages:
                self.tracker = self.tracker.update(advantage, losses.mean())
            return self.tracker.rms_advantage(advantages)
        assert self.baseline is not None
        reference = self.baseline(indices).mean()
        residual = losses[0] - reference
        self.tracker = self.tracker.update(residual, reference)
        advantage = self.tracker.raw_advantage if config.raw_step else self.tracker.normalised_advantage
        taken = advantage(residual)
        if config.refresh_reference and self.tracker.reference_is_far():
            self.refresh(self._parametrisation.mode(logits))
        return taken[None]

    def refresh(self, reference: Tensor) -> None:
        """Set another reference mask, bool `[G, M]`."""
        self.reference = PackedMask(reference)
        self.tracker = Tracker.start(self._masked.base.device)
        self.baseline = masked_losses(self._config, self._masked, self.reference, self.objective, self._teacher)

    def batches(self, indices: Tensor) -> Iterator[Batch]:
        """The samples in batches that fit into memory, with the dense network's outputs where they are the target."""
        for part in indices.split(self.micro_batch_size):
            teacher = None
            # With hidden targets the dense network runs in the step anyway.
            if self._config.target == "teacher" and self._hidden is None:
                assert self._teacher is not None
                teacher = self._teacher(part)
            yield Batch(len(part), self.objective.batch(part), teacher)

    def losses(self, batch: Any, teacher: Tensor | None) -> Tensor:
        """Losses of the masked network on a batch, `[B]`, against the configured target."""
        # Other sizes run uncompiled: compiling for them would take longer than the rest of the step.
        rows = len(batch if isinstance(batch, Tensor) else batch[0])
        network = self._network if rows == self.micro_batch_size else self._masked.model
        prediction = predict_in(self._config.precision, self.objective, network, batch).to(self._masked.wide_dtype)
        if teacher is None:
            return self.objective.losses(prediction, batch)
        return self.objective.teacher_losses(prediction, teacher, batch)

    def _loss_and_backward(self, samples: Any, teacher: Tensor | None, count: Tensor, hidden_weight: Tensor) -> Tensor:
        """A batch's share of the mean loss over `count` samples; its gradient, with the hidden targets', is accumulated."""
        if self._hidden is None:
            with recomputed(self._blocks):
                loss = self.losses(samples, teacher).sum() / count
            loss.backward()
            return loss.detach()
        dense, expected = self._hidden.dense(samples)
        with self._hidden.watched() as outputs, recomputed(self._blocks):
            loss = self.losses(samples, dense if self._config.target == "teacher" else None).sum() / count
        hidden = self._hidden.losses(outputs, expected, samples).sum() / count
        (loss + hidden_weight * hidden).backward()
        return loss.detach()

    def _run(self, function: Callable[..., Tensor], batch: Batch, *more: Tensor) -> Tensor:
        """The function of a batch and further tensors; whole batches on a GPU run as a CUDA graph."""
        if self._uses_graphs and batch.size == self.micro_batch_size:
            if self._graphed is None:
                gradient = [] if function == self.losses else [self._masked.weight_gradient()]
                self._graphed = GraphedPass(gradient)
            return self._graphed(function, batch.samples, batch.teacher, *more)
        return function(batch.samples, batch.teacher, *more)

    def state(self) -> dict[str, Tensor]:
        """State for an exact resume: the generator, the moving averages, and a reference other than the initial mask."""
        state = {
            "generator": self.generator.get_state(),
            **{f"tracker.{name}": value for name, value in self.tracker._asdict().items()},
        }
        if self.reference is not self._initial_mask:
            state["reference"] = self.reference.bits
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Resume from the tensors of a `state`; other tensors are ignored.

        Raises:
            MaskproError: the state is from another type of device.
        """
        device = self._masked.base.device
        if state["generator"].shape != self.generator.get_state().shape:
            raise MaskproError(f"checkpoint is from another type of device; allowed: {device.type}")
        self.generator.set_state(state["generator"])
        if "reference" in state:
            self.refresh(self._initial_mask.of_bits(state["reference"]).unpack())
        self.tracker = Tracker(*(state[f"tracker.{name}"].to(device) for name in Tracker._fields))


def masked_losses(
    config: TrainerConfig,
    masked: MaskedModel,
    mask: PackedMask,
    objective: Objective,
    teacher: SampleValues | None,
    shelf: Shelf | None = None,
) -> SampleValues:
    """The losses of a network under a mask, against a config's target.

    The mask is set on the network itself whenever a loss is computed, as a second network would take as much memory.
    """
    return baseline_losses(
        masked.model,
        objective,
        teacher if config.target == "teacher" else None,
        precision=config.precision,
        prepare=lambda: masked.set_mask(mask.unpack()),
        shelf=shelf,
        device=masked.base.device,
    )


def normalised(gradient: Tensor) -> Tensor:
    """The gradient, scaled in place to root mean square 1; zeros stay zeros."""
    tiny = torch.finfo(gradient.dtype).tiny
    # Squares of less than 1e-38 are zero in float32. A power of two rounds nothing.
    largest = gradient.abs().amax().clamp(min=tiny)
    gradient *= torch.frexp(largest).mantissa / largest
    return gradient.div_(gradient.square().mean().sqrt().clamp(min=tiny))
