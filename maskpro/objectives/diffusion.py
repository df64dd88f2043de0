"""The diffusion objective: per-sample MSE of the noise prediction, against the noise or against the dense network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from maskpro.data import CalibrationSamples, move
from maskpro.errors import MaskproError


class NoisyBatch(NamedTuple):
    """Network inputs: noisy images `[B, C, H, W]`, timesteps `[B]`, and the noise in them."""

    images: Tensor
    timesteps: Tensor
    noise: Tensor


class DiffusionObjective:
    """Noise-prediction loss of DDPM (Ho et al. 2020, equation 14) on diffusion samples of images.

    Args:
        images: uint8 `[count, C, H, W]`.
        seed: of the samples.
        strata: number of samples of a held-out set, whose timesteps are then stratified over the schedule.

    Raises:
        MaskproError: the scheduler's prediction_type is not epsilon.
    """

    def __init__(
        self, scheduler: DDPMScheduler, images: Tensor, *, seed: int, device: torch.device, strata: int | None = None
    ):
        prediction_type = scheduler.config["prediction_type"]
        if prediction_type != "epsilon":
            raise MaskproError(f"prediction_type of the model's scheduler is {prediction_type!r}; allowed: epsilon")
        self._scheduler = scheduler
        self._device = device
        self._samples = CalibrationSamples(
            images, num_train_timesteps=scheduler.config["num_train_timesteps"], seed=seed, strata=strata
        )

    def batch(self, indices: Tensor) -> NoisyBatch:
        """The samples of `indices` (`[B]`, int64), on the objective's device."""
        batch = self._samples.batch(indices)
        # Mixed on the CPU, so that the input's bits do not depend on the device type.
        images = self._scheduler.add_noise(batch.images, batch.noise, batch.timesteps)
        return NoisyBatch(
            images=move(images, self._device),
            timesteps=move(batch.timesteps, self._device),
            noise=move(batch.noise, self._device),
        )

    def predict(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        """Predicted noise `[B, C, H, W]`."""
        prediction: Tensor = model(batch.images, batch.timesteps, return_dict=False)[0]
        return prediction

    def losses(self, prediction: Tensor, batch: NoisyBatch) -> Tensor:
        """MSE to the noise per sample, `[B]`."""
        return self.teacher_losses(prediction, batch.noise)

    def teacher_losses(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """MSE to the dense network's prediction per sample, `[B]`."""
        return (prediction - teacher).square().flatten(1).mean(dim=1)
