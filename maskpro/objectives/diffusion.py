"""The diffusion objective: per-sample MSE of the prediction, against what it predicts or against the dense network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.names import Precision
from maskpro.objectives import evaluation_mode, predict_in
from maskpro.samples import CalibrationSamples, DiffusionBatch

# Settings of `timestep_shares`: equal parts of the schedule, samples measured, and the share that stays uniform.
_PARTS = 32
_PILOT_SAMPLES = 512
_PILOT_BATCH = 64
_PILOT_SEED = 2**32 + 5
_UNIFORM_SHARE = 0.3

# Evaluations of a network that `timestep_shares` takes.
PILOT_EVALUATIONS = 2 * _PILOT_SAMPLES

# The scheduler's prediction type to what the network predicts, in words.
PREDICTED = {"epsilon": "noise", "sample": "image", "v_prediction": "velocity"}


class NoisyBatch(NamedTuple):
    """Network inputs: noisy images `[B, C, H, W]`, timesteps `[B]`, prediction targets, and weights of the losses `[B]`."""

    images: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor


class DiffusionObjective:
    """Prediction loss of DDPM on diffusion samples of images, by the scheduler's own definition of what is predicted.

    prediction_type epsilon: the noise (Ho et al. 2020, equation 14); sample: the image; v_prediction: the velocity
    (Salimans and Ho 2022, appendix D).

    Args:
        images: uint8 `[count, C, H, W]`.
        seed: seed of the samples.
        strata: number of samples in a held-out set; their timesteps are then stratified over the schedule.
        shares: share of the samples in each equal part of the schedule (`timestep_shares`); default: uniform.

    Raises:
        MaskproError: the scheduler's prediction_type is none of these.
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
        if prediction_type not in PREDICTED:
            raise MaskproError(
                f"prediction_type of the model's scheduler is {prediction_type!r}; allowed: {', '.join(PREDICTED)}"
            )
        # A copy, as a scheduler moves its tables to the device of its inputs.
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
        return self._noisy(self._samples.batch(indices))

    def at(self, timesteps: Tensor) -> NoisyBatch:
        """The first samples with these timesteps (`[B]`, int64) and their own weights."""
        batch = self._samples.batch(torch.arange(len(timesteps)))
        return self._noisy(replace(batch, timesteps=timesteps))

    def _noisy(self, batch: DiffusionBatch) -> NoisyBatch:
        images = self._scheduler.add_noise(batch.images, batch.noise, batch.timesteps)
        return NoisyBatch(images=images, timesteps=batch.timesteps, target=self._target(batch), weights=batch.weights)

    def _target(self, batch: DiffusionBatch) -> Tensor:
        """The prediction targets of the samples, `[B, C, H, W]`."""
        prediction_type = self._scheduler.config["prediction_type"]
        if prediction_type == "v_prediction":
            velocity: Tensor = self._scheduler.get_velocity(batch.images, batch.noise, batch.timesteps)
            return velocity
        return batch.images if prediction_type == "sample" else batch.noise

    def predict(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        """The network's prediction `[B, C, H, W]`."""
        prediction: Tensor = model(batch.images, batch.timesteps, return_dict=False)[0]
        return prediction

    def losses(self, prediction: Tensor, batch: NoisyBatch) -> Tensor:
        """MSE to the prediction target per sample, times the sample's weight, `[B]`."""
        return self.teacher_losses(prediction, batch.target, batch)

    def teacher_losses(self, prediction: Tensor, teacher: Tensor, batch: NoisyBatch) -> Tensor:
        """MSE to the dense network's prediction per sample, times the sample's weight, `[B]`."""
        return (prediction - teacher).square().flatten(1).mean(dim=1) * batch.weights

    def hidden_losses(self, hidden: Tensor, teacher: Tensor, batch: NoisyBatch) -> Tensor:
        """Mean squared difference of activations `[B, ...]` per sample, times the sample's weight, `[B]`."""
        return self.teacher_losses(hidden, teacher, batch)


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
    """The share of samples for each part of the noise schedule that keeps the variance of gradients low.

    Importance sampling: the variance is least if the density is proportional to the root mean square of a sample's
    gradient. This is largest at little noise, by a factor of 30 here. It is about proportional to what the initial mask
    adds to the loss. That is measured on 512 samples, in the precision of the training. A share stays uniform, because
    the profile flattens as the mask gets better.
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
