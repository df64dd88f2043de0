"""The diffusion objective: per-sample MSE of the noise prediction, against the noise or against the dense network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.objectives import evaluation_mode, predict_in
from maskpro.precision import Precision
from maskpro.samples import CalibrationSamples

# Of `timestep_shares`: equal parts of the schedule, samples that tell them apart, and what stays uniform.
_PARTS = 32
_PILOT_SAMPLES = 512
_PILOT_BATCH = 64
_PILOT_SEED = 2**32 + 5
_UNIFORM_SHARE = 0.3

# Evaluations of a network that `timestep_shares` takes.
PILOT_EVALUATIONS = 2 * _PILOT_SAMPLES


class NoisyBatch(NamedTuple):
    """Network inputs: noisy images `[B, C, H, W]`, timesteps `[B]`, the noise in them, and the losses' weights `[B]`."""

    images: Tensor
    timesteps: Tensor
    noise: Tensor
    weights: Tensor


class DiffusionObjective:
    """Noise-prediction loss of DDPM (Ho et al. 2020, equation 14) on diffusion samples of images.

    Args:
        images: uint8 `[count, C, H, W]`.
        seed: of the samples.
        strata: number of samples of a held-out set, whose timesteps are then stratified over the schedule.
        shares: of the samples in each equal part of the schedule (`timestep_shares`); default: uniform.

    Raises:
        MaskproError: the scheduler's prediction_type is not epsilon.
    """

    def __init__(
        self,
        scheduler: DDPMScheduler,
        images: Tensor,
        *,
        seed: int,
        device: torch.device,
        strata: int | None = None,
        shares: Sequence[float] | None = None,
    ):
        prediction_type = scheduler.config["prediction_type"]
        if prediction_type != "epsilon":
            raise MaskproError(f"prediction_type of the model's scheduler is {prediction_type!r}; allowed: epsilon")
        # A copy: it moves its tables to the device of what it mixes.
        self._scheduler = copy.deepcopy(scheduler)
        self._samples = CalibrationSamples(
            images,
            num_train_timesteps=scheduler.config["num_train_timesteps"],
            seed=seed,
            strata=strata,
            shares=shares,
            device=device,
        )

    def batch(self, indices: Tensor) -> NoisyBatch:
        """The samples of `indices` (`[B]`, int64, on the CPU), on the objective's device."""
        batch = self._samples.batch(indices)
        images = self._scheduler.add_noise(batch.images, batch.noise, batch.timesteps)
        return NoisyBatch(images=images, timesteps=batch.timesteps, noise=batch.noise, weights=batch.weights)

    def predict(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        """Predicted noise `[B, C, H, W]`."""
        prediction: Tensor = model(batch.images, batch.timesteps, return_dict=False)[0]
        return prediction

    def losses(self, prediction: Tensor, batch: NoisyBatch) -> Tensor:
        """MSE to the noise per sample, times the sample's weight, `[B]`."""
        return self.teacher_losses(prediction, batch.noise, batch)

    def teacher_losses(self, prediction: Tensor, teacher: Tensor, batch: NoisyBatch) -> Tensor:
        """MSE to the dense network's prediction per sample, times the sample's weight, `[B]`."""
        return (prediction - teacher).square().flatten(1).mean(dim=1) * batch.weights


@torch.no_grad()
def timestep_shares(
    dense: nn.Module,
    initial: nn.Module,
    scheduler: DDPMScheduler,
    images: Tensor,
    *,
    device: torch.device,
    precision: Precision = "float32",
) -> tuple[float, ...]:
    """How often each part of the noise schedule is to be sampled, for gradients that vary little.

    Importance sampling: the variance is least where the density goes with the root mean square of a sample's gradient. That
    is largest at little noise, by a factor of 30 here, and goes about with what the initial mask adds to the loss, which is
    measured on 512 samples, in the precision of the training. A share stays uniform, since the profile flattens while the
    mask gets better.
    """
    objective = DiffusionObjective(scheduler, images, seed=_PILOT_SEED, device=device, strata=_PILOT_SAMPLES)
    sums, counts = torch.zeros(_PARTS, dtype=torch.float64), torch.zeros(_PARTS, dtype=torch.float64)
    for indices in torch.arange(_PILOT_SAMPLES).split(_PILOT_BATCH):
        batch = objective.batch(indices)
        with evaluation_mode(dense), evaluation_mode(initial):
            teacher, prediction = (predict_in(precision, objective, model, batch) for model in (dense, initial))
        losses = objective.teacher_losses(prediction, teacher, batch).double().cpu()
        parts = batch.timesteps.cpu() * _PARTS // scheduler.config["num_train_timesteps"]
        sums.index_add_(0, parts, losses)
        counts.index_add_(0, parts, torch.ones_like(losses))
    means = sums / counts.clamp(min=1)
    total = means.sum()
    if not total > 0:
        return (1 / _PARTS,) * _PARTS
    return tuple((_UNIFORM_SHARE / _PARTS + (1 - _UNIFORM_SHARE) * means / total).tolist())
