"""MaskTrainer: learns the logits of a masked model. Knows no Ray; its whole state is `state_dict`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.estimators import PARAMETRISATIONS, Sharpening, Tracker, leave_one_out, magnitude_prior, policy_gradient
from maskpro.graphs import GraphedPass
from maskpro.hidden_targets import HiddenTargets, fading
from maskpro.masked_model import MaskedModel
from maskpro.names import RELAXED, LearningRateDecay
from maskpro.objectives import (
    HeldOutMeans,
    HeldOutSamples,
    HeldOutValues,
    Objective,
    SampleValues,
    baseline_losses,
    predict_in,
)
from maskpro.pattern import PackedMask
from maskpro.precision import reproducible
from maskpro.rounding import (
    CodedSquares,
    FixedPoint,
    code_squares,
    fixed_point,
    from_coded_squares,
    from_fixed_point,
    pack_upper,
    round_to_bfloat16,
    unpack_upper,
)
from maskpro.trainer_config import TrainerConfig

# lr 1 moves a logit by about 0.1 a step, whatever the estimator.
LOGIT_STEP = 0.1

# Of `logits`: two positions in a group can then never change places by their priors.
_LARGEST_PRIOR = 0.49

# Share of the step size that is left, by the share of the budget that is used up.
_SCHEDULES: dict[LearningRateDecay, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}


# What a trainer knows of masks, as HeldOutMeans.
_MEANS = ("initial", "best", "lowest")
# Of a state.
_COUNTERS = (
    "num_samples_seen",
    "num_steps",
    "micro_batch_size",
    *_MEANS,
)

# Of which `statistics` takes quantiles and entropy.
_GROUPS_LOOKED_AT = 4_096


class _Batch(NamedTuple):
    """Samples of an objective and the dense network's outputs on them, if these are the target."""

    size: int
    samples: Any
    teacher: Tensor | None


class StoredLogits(NamedTuple):
    """What a checkpoint holds of logits and optimizer: coarsely, and what more there is for going on exactly."""

    rounded: FixedPoint
    exact: dict[str, Tensor]


class NonFiniteLossError(MaskproError):
    """A loss or a logit became NaN or infinite."""


class MaskTrainer:
    """Learns which weights to keep: `train` consumes calibration samples, `validate` judges the mode of the logits.

    Args:
        masked: the network; its current mask is the initial mask.
        teacher: the dense network's output per sample, in the config's precision; needed for the target "teacher".
        baseline: the initial mask's loss per sample, in the config's precision and against the same target; needed for
            policy_gradient.
        dense: the network without a mask, needed for hidden_targets; it is only looked at.
        initial: held-out loss and error of the initial mask, if they are known already.
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
        if config.target == "teacher" and teacher is None:
            raise MaskproError("target is teacher; allowed: only with the dense network's outputs (teacher)")
        if config.estimator == "policy_gradient" and baseline is None:
            raise MaskproError("estimator is policy_gradient; allowed: only with the initial mask's losses (baseline)")
        if config.hidden_targets and dense is None:
            raise MaskproError(f"hidden_targets is {config.hidden_targets}; allowed: 0 without the dense network (dense)")
        self.config = config
        self.masked = masked
        masked.model.eval()  # whatever the caller has done with it since it was masked: it is frozen
        self._objective = objective
        self._hidden: HiddenTargets | None = None
        if config.hidden_targets and dense is not None:
            self._hidden = HiddenTargets(dense, masked, objective, precision=config.precision)
        self._validation = validation
        self._teacher = teacher
        parametrisation = PARAMETRISATIONS[config.estimator]
        if config.estimator in RELAXED:
            parametrisation = partial(parametrisation, sharpening=Sharpening(config.annealing, config.final_temperature))
        self._parametrisation = parametrisation(masked.pattern)
        initial_mask = masked.mask[: len(masked.learned_base)].clone()
        prior = None
        if config.magnitude_prior:
            prior = magnitude_prior(masked.learned_base, config.magnitude_prior, _LARGEST_PRIOR * config.logits)
        self.logits = self._parametrisation.start(initial_mask, config.logits, prior).to(masked.base.dtype)
        if config.optimizer == "adam" or (config.optimizer == "auto" and config.estimator != "policy_gradient"):
            self._optimizer: torch.optim.Optimizer = torch.optim.Adam([self.logits], lr=1.0, betas=(0.9, 0.99), fused=True)
        else:
            self._optimizer = torch.optim.SGD([self.logits], lr=1.0)
        self._generator = torch.Generator(masked.base.device).manual_seed(config.seed)
        self._tracker = Tracker.start(masked.base.device)
        self._stored: StoredLogits | None = None  # of the state as it is
        self._baseline = baseline
        self._initial_mask = self._best_mask = self._reference = PackedMask(initial_mask)
        self.num_samples_seen = 0
        self.num_steps = 0
        self.micro_batch_size = config.batch_size
        self._uses_graphs = graphs and masked.base.is_cuda
        self._graphed: GraphedPass | None = None
        self._network: Any = torch.compile(masked.model) if config.compile else masked.model
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
            # The extremes are NaN where a value is, and take a thirtieth of the time of `isfinite` on all of them.
            if values.numel() and not torch.stack(torch.aminmax(values)).isfinite().all():
                lower = f"a lower lr than {self.config.lr:g}"
                allowed = lower if self.config.precision == "float32" else f"{lower}, or precision float32"
                raise NonFiniteLossError(f"{what} is not finite after {self.num_samples_seen} samples; allowed: {allowed}")
        return history

    def validate(self) -> HeldOutMeans:
        """Held-out loss and error of the mode of the logits; that mask becomes `best_mask` unless an earlier one is better.

        Masks are compared by their error, the squared difference from the dense network's output: it tells them apart
        where the loss, which the noise that is to be predicted dominates, can't. Better is what the samples can tell: by
        more than the standard error of the paired difference to the mask with the lowest error so far. Of masks that they
        can't tell apart the latest has learned most; the luckiest would be the lowest of many noisy values. `best_mask`
        starts as the initial mask, so that a run never ends worse than it began; `lowest` is of the validated masks alone,
        so that runs that made things worse can be told from runs that did nothing.

        The state is rounded first (`round_state`), as for a checkpoint, whether one is written or not.
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
        """What trackers show beside the losses: `changed_share`, `sparsity`, `entropy` and the logits' distribution.

        All of it is of the logits as they are now, not of `best_mask`.
        Of the masked layers' weights, sparsity is the share that the mask now set removes. Mean entropy (nats a group) and
        quantiles of the logits are those of at most 4,096 groups, evenly spread.
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
        self.logits.grad, loss = self._estimate_in_memory(indices)
        self._stored = None
        self._optimizer.param_groups[0]["lr"] = self._step_size()
        self._optimizer.step()
        self.num_samples_seen += count * masks
        self.num_steps += 1
        return loss

    def _estimate_in_memory(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the logits and the mean loss; where memory runs out, by smaller and smaller forward passes.

        The losses are averaged over all samples of the step in any case, so the result differs by float rounding alone.
        """
        estimate = self._policy_gradient if self.config.estimator == "policy_gradient" else self._backward
        generator_state = self._generator.get_state()
        tracker = self._tracker
        while True:
            try:
                with reproducible():
                    return estimate(indices)
            except torch.OutOfMemoryError:
                if self.micro_batch_size == 1:
                    raise
            # Beyond the except clause, whose exception keeps the failed pass's tensors alive.
            self._generator.set_state(generator_state)
            self._tracker = tracker
            self.micro_batch_size = max(1, self.micro_batch_size // 2)
            self._graphed = None
            if self.logits.is_cuda:
                torch.cuda.empty_cache()

    def _step_size(self) -> float:
        if self.config.raw_step:
            return self.config.lr
        size = LOGIT_STEP * self.config.lr * _SCHEDULES[self.config.lr_decay](self._progress)
        # Adam's bias correction makes ten times as much of it at first.
        if size > 0.1 * torch.finfo(self.logits.dtype).max:
            raise NonFiniteLossError(f"step size of lr {self.config.lr:g} is not finite in {self.logits.dtype}")
        return size

    @property
    def _progress(self) -> float:
        return self.num_samples_seen / self.config.budget_samples

    def _backward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        weight_gradient = self.masked.weight_gradient().zero_()
        draw = self._parametrisation.draw(self.logits, self._progress, self._generator)
        self.masked.set_mask(draw.mask)
        total = torch.zeros((), device=self.logits.device, dtype=self.logits.dtype)
        count = torch.full((), len(indices), dtype=total.dtype, device=total.device)
        hidden_weight = torch.full_like(count, self.config.hidden_targets * fading(self._progress))
        for batch in self._batches(indices):
            total += self._run(self._loss_and_backward, batch, count, hidden_weight)
        values = weight_gradient.mul_(self.masked.learned_base)
        gradient = self._parametrisation.gradient(self.logits, self._progress, draw, values)
        if self.config.optimizer == "sgd":
            gradient /= gradient.square().mean().sqrt().clamp(min=torch.finfo(gradient.dtype).tiny)
        return gradient, total

    @torch.no_grad()
    def _policy_gradient(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        masks, means = [], []
        batches = list(self._batches(indices))
        for _ in range(self.config.masks_per_step):
            masks.append(self._parametrisation.draw(self.logits, self._progress, self._generator).mask)
            self.masked.set_mask(masks[-1])
            means.append(torch.cat([self._run(self._losses, batch) for batch in batches]).mean())
        losses = torch.stack(means)
        advantages = self._advantages(losses, indices)
        n = self.masked.pattern.n
        gradient = policy_gradient(self.logits, masks[0], advantages[0], n)
        for mask, advantage in zip(masks[1:], advantages[1:], strict=True):
            gradient += policy_gradient(self.logits, mask, advantage, n)
        return gradient.div_(len(masks)) if len(masks) > 1 else gradient, losses.mean()

    def _advantages(self, losses: Tensor, indices: Tensor) -> Tensor:
        """What each mask's loss on the same samples, `[K]`, is better or worse than was to be expected, `[K]`."""
        config = self.config
        if config.masks_per_step > 1:
            advantages = leave_one_out(losses)
            for advantage in advantages:
                self._tracker = self._tracker.update(advantage, losses.mean())
            return self._tracker.rms_advantage(advantages)
        assert self._baseline is not None
        reference = self._baseline(indices).mean()
        residual = losses[0] - reference
        self._tracker = self._tracker.update(residual, reference)
        advantage = self._tracker.raw_advantage if config.raw_step else self._tracker.normalised_advantage
        taken = advantage(residual)
        if config.refresh_reference and self._tracker.reference_is_far():
            self._refresh(self.mode())
        return taken[None]

    def _refresh(self, reference: Tensor) -> None:
        """Compare with another mask (bool `[G, M]`) from now on."""
        self._reference = PackedMask(reference)
        self._tracker = Tracker.start(self.logits.device)
        self.masked.set_mask(reference)
        teacher = self._teacher if self.config.target == "teacher" else None
        network, precision = copy.deepcopy(self.masked.model), self.config.precision
        self._baseline = baseline_losses(network, self._objective, teacher, precision=precision)

    def _batches(self, indices: Tensor) -> Iterator[_Batch]:
        """The samples in batches that fit into memory, with the dense network's outputs where they are the target."""
        for part in indices.split(self.micro_batch_size):
            teacher = None
            # With hidden targets the dense network runs in the step anyway.
            if self.config.target == "teacher" and self._hidden is None:
                assert self._teacher is not None
                teacher = self._teacher(part)
            yield _Batch(len(part), self._objective.batch(part), teacher)

    def _losses(self, batch: Any, teacher: Tensor | None) -> Tensor:
        """Losses of the masked network on a batch, `[B]`, against the configured target."""
        # Compiling once more for every other size would take longer than what is left of the step.
        rows = len(batch if isinstance(batch, Tensor) else batch[0])
        network = self._network if rows == self.micro_batch_size else self.masked.model
        prediction = predict_in(self.config.precision, self._objective, network, batch).to(self.logits.dtype)
        if teacher is None:
            return self._objective.losses(prediction, batch)
        return self._objective.teacher_losses(prediction, teacher, batch)

    def _loss_and_backward(self, samples: Any, teacher: Tensor | None, count: Tensor, hidden_weight: Tensor) -> Tensor:
        """A batch's share of the mean loss of `count` samples; its gradient and the hidden targets' are added up."""
        if self._hidden is None:
            loss = self._losses(samples, teacher).sum() / count
            loss.backward()
            return loss.detach()
        dense, expected = self._hidden.dense(samples)
        with self._hidden.watched() as outputs:
            loss = self._losses(samples, dense if self.config.target == "teacher" else None).sum() / count
        hidden = self._hidden.losses(outputs, expected, samples).sum() / count
        (loss + hidden_weight * hidden).backward()
        return loss.detach()

    def _run(self, function: Callable[..., Tensor], batch: _Batch, *more: Tensor) -> Tensor:
        """The function of a batch and more, on a GPU as a CUDA graph where the batch is a whole one."""
        if self._uses_graphs and batch.size == self.micro_batch_size:
            if self._graphed is None:
                gradient = [] if function == self._losses else [self.masked.weight_gradient()]
                self._graphed = GraphedPass(gradient)
            return self._graphed(function, batch.samples, batch.teacher, *more)
        return function(batch.samples, batch.teacher, *more)

    def _judge(self, mask: Tensor) -> HeldOutValues:
        self.masked.set_mask(mask)
        values = self._validation.judge(self.masked.model)
        if not values.are_finite():
            raise NonFiniteLossError(f"held-out loss or error is not finite after {self.num_samples_seen} samples")
        return values

    def round_state(self) -> StoredLogits:
        """Round logits and moments to what `state_dict` can hold: a run is then the same whether it is resumed here or not.

        Only Adam's state is rounded. Without moments there is room for the logits as they are.

        Returns: what a checkpoint holds of logits and optimizer.
        """
        if self._stored is None:
            self._stored = self._rounded()
        return self._stored

    def _rounded(self) -> StoredLogits:
        # A generator of its own: the masks that are drawn don't depend on how often a run is validated.
        generator = torch.Generator(self.logits.device).manual_seed(self.config.seed + (self.num_samples_seen << 32))
        rounded = fixed_point(self.logits, generator)
        if not isinstance(self._optimizer, torch.optim.Adam):
            return StoredLogits(rounded, {"logits": self.logits})
        self.logits.copy_(from_fixed_point(rounded, self.logits))
        assert rounded.lower is not None
        exact = {"logits.lower": rounded.lower}
        state = self._optimizer.state[self.logits]
        if state:  # Adam has made a step
            mean = round_to_bfloat16(state["exp_avg"], generator)
            squares = code_squares(state["exp_avg_sq"], generator)
            state["exp_avg"].copy_(mean)
            state["exp_avg_sq"].copy_(from_coded_squares(squares))
            exact |= {"adam.step": state["step"], "adam.mean": mean}
            exact |= {f"adam.squares.{name}": value for name, value in squares._asdict().items()}
        return StoredLogits(rounded, exact)

    def state_dict(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """(tensors on the CPU, counters): all that a run needs to go on bit for bit on the same type of device.

        The tensors' parts (their bytes a weight, with a logit a weight, besides some kilobytes):

        - mask: `best_mask` (0.125), all that is needed of a run that has ended.
        - logits: with the one before, all that is needed to go on with coarser logits and new moments (0.875, and 0.125
          for a reference that is not the initial mask).
        - exact: the rest of logits and moments (4).

        The state itself is rounded to what they hold (`round_state`); the initial mask is the one of the trainer that
        loads it.
        """
        stored = self.round_state()
        logits = {
            "logits.upper": pack_upper(stored.rounded.upper),
            "logits.scale": stored.rounded.scale,
            "lowest_errors": self._lowest_errors,
            "generator": self._generator.get_state(),
            **{f"tracker.{name}": value for name, value in self._tracker._asdict().items()},
        }
        if self._reference is not self._initial_mask:
            logits["reference"] = self._reference.bits
        parts = {"mask": {"best_mask": self._best_mask.bits}, "logits": logits, "exact": stored.exact}
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {
            part: {name: value.detach().cpu().clone() for name, value in tensors.items()} for part, tensors in parts.items()
        }, counters

    def load_state_dict(self, parts: dict[str, dict[str, Tensor]], counters: dict[str, Any]) -> None:
        """Continue from a `state_dict` of a run with the same config, model and initial mask on the same type of device.

        Without the part `exact` with logits rounded to 1/64 of the largest one, and with an optimizer that starts anew.
        """
        logits, device = parts["logits"], self.logits.device
        if logits["generator"].shape != self._generator.get_state().shape:
            raise MaskproError(f"checkpoint is from another type of device; allowed: {device.type}")
        count = self.logits.numel()
        found = logits["logits.upper"].shape[1]
        if found != math.ceil(count / 8):
            raise MaskproError(f"checkpoint has about {8 * found} logits; allowed: {count}, as the model has")
        self._best_mask = self._initial_mask.of_bits(parts["mask"]["best_mask"])
        self._lowest_errors = logits["lowest_errors"]
        self._generator.set_state(logits["generator"])
        if "reference" in logits:
            self._refresh(self._initial_mask.of_bits(logits["reference"]).unpack())
        self._tracker = Tracker(*(logits[f"tracker.{name}"].to(device) for name in Tracker._fields))
        exact = {name: value.to(device) for name, value in parts.get("exact", {}).items()}
        upper = unpack_upper(logits["logits.upper"], count).to(device)
        rounded = FixedPoint(upper, exact.get("logits.lower"), logits["logits.scale"].to(device))
        self.logits.copy_(exact.get("logits", from_fixed_point(rounded, self.logits)))
        if "adam.mean" in exact:
            squares = CodedSquares(*(exact[f"adam.squares.{name}"] for name in CodedSquares._fields))
            state = {"step": exact["adam.step"], "exp_avg": exact["adam.mean"], "exp_avg_sq": from_coded_squares(squares)}
            self._optimizer.load_state_dict(
                {"state": {0: state}, "param_groups": self._optimizer.state_dict()["param_groups"]}
            )
        self._stored = None
        for name in _COUNTERS:
            value = counters[name]
            setattr(self, name, HeldOutMeans(*value) if name in _MEANS and value is not None else value)


def logit_statistics(logits: Tensor) -> dict[str, float]:
    """Mean, standard deviation and extremes of the logits."""
    return {name: getattr(logits, name)().item() for name in ("mean", "std", "min", "max")}
