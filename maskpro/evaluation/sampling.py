"""Image sampling with DDIM and DDPM. An image depends on (seed, index) alone: all its noise comes from one stream of its
own, and the batch it is made in changes its values by no more than float rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelScheduler
from torch import Tensor, nn

from maskpro.data import philox, to_uint8
from maskpro.errors import MaskproError
from maskpro.files import atomic_path

Sampler = Literal["ddim", "ddpm"]

# Spacing alone moves FID by about 1: "leading" is DDIM's uniform schedule (Song et al. 2021, appendix D.3), pinned.
TIMESTEP_SPACING = "leading"
# DDIM's own schedule is not shifted; a shift leads ancestral sampling past the end of the noise schedule.
STEPS_OFFSET = 0
# Of DDIM: no noise is added after the start.
ETA = 0.0

# What DDPM can sample from a network that predicts no variance; diffusers' other fixed one gives NaN.
_VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large")


def _ddim_step(scheduler: Any, prediction: Tensor, timestep: Tensor, sample: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """One deterministic step (Song et al. 2021, equation 12 with sigma 0)."""
    previous: Tensor = scheduler.step(prediction, timestep, sample, eta=ETA, return_dict=False)[0]
    return previous


def _ddpm_step(scheduler: Any, prediction: Tensor, timestep: Tensor, sample: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """One ancestral step (Ho et al. 2020, algorithm 2): `DDPMScheduler.step`, with noise that is handed in."""
    # Drawn first: on a GPU the network is still at work while the CPU draws.
    drawn = noise() if timestep > 0 else 0.0
    mean: Tensor = scheduler.batch_step_no_noise(prediction, timestep, sample)
    variance = scheduler._get_variance(timestep)
    # diffusers' name is misleading: for fixed_small_log it returns the standard deviation.
    deviation: Tensor = variance if scheduler.variance_type == "fixed_small_log" else variance**0.5
    return mean + deviation * drawn


_SAMPLERS: dict[Sampler, tuple[Any, Callable[..., Tensor]]] = {
    "ddim": (DDIMScheduler, _ddim_step),
    "ddpm": (DDPMParallelScheduler, _ddpm_step),
}


def parse_sampler(text: str) -> Sampler:
    """The sampler of that name."""
    for sampler in _SAMPLERS:
        if text == sampler:
            return sampler
    raise MaskproError(f"sampler is {text!r}; allowed: {', '.join(_SAMPLERS)}")


def check_sampling(scheduler: DDPMScheduler, sampler: Sampler, steps: int) -> None:
    """Raise a MaskproError where a noise schedule can't be sampled so."""
    parse_sampler(sampler)
    largest, variance_type = scheduler.config["num_train_timesteps"], scheduler.config["variance_type"]
    if not 1 <= steps <= largest:
        raise MaskproError(f"sampling_steps is {steps}; allowed: 1 to {largest}, the steps of the model's noise schedule")
    if sampler == "ddpm" and variance_type not in _VARIANCE_TYPES:
        raise MaskproError(
            f"variance_type of the model's noise schedule is {variance_type!r}; allowed with sampler ddpm: "
            f"{', '.join(_VARIANCE_TYPES)}"
        )


def sampling_protocol(sampler: Sampler, steps: int) -> dict[str, Any]:
    """What an image depends on besides model, noise schedule and noise, for the records."""
    return {
        "sampler": sampler,
        "sampling_steps": steps,
        "timestep_spacing": TIMESTEP_SPACING,
        "steps_offset": STEPS_OFFSET,
        "eta": ETA if sampler == "ddim" else None,
    }


@torch.no_grad()
def generate(
    model: nn.Module,
    scheduler: DDPMScheduler,
    *,
    shape: tuple[int, ...],
    indices: range,
    sampler: Sampler = "ddim",
    steps: int,
    seed: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """The images of `indices`, uint8 `[len(indices), *shape]` on the CPU.

    Args:
        scheduler: the model's noise schedule; clipping and variance are as its config says.
        sampler: "ddim", deterministic (eta 0), or "ddpm", ancestral.
        progress: called after each batch with the number of its images.

    Raises:
        MaskproError: the noise schedule can't be sampled so.
    """
    check_sampling(scheduler, sampler, steps)
    device = next(model.parameters()).device
    scheduler_class, step = _SAMPLERS[sampler]
    sampling = scheduler_class.from_config(scheduler.config, timestep_spacing=TIMESTEP_SPACING, steps_offset=STEPS_OFFSET)
    sampling.set_timesteps(steps)
    images = []
    for start in range(0, len(indices), batch_size):
        noise = _noise_streams(indices[start : start + batch_size], shape, seed, device)
        sample = noise()
        for timestep in sampling.timesteps:
            prediction = model(sample, timestep, return_dict=False)[0]
            sample = step(sampling, prediction, timestep, sample, noise)
        images.append(to_uint8(sample).cpu())
        if progress is not None:
            progress(len(sample))
    return torch.cat(images)


def _noise_streams(indices: range, shape: tuple[int, ...], seed: int, device: torch.device) -> Callable[[], Tensor]:
    """A function whose calls give the next standard normal noise `[len(indices), *shape]`, each image's from its stream."""
    streams = [philox(seed, index) for index in indices]

    def draw() -> Tensor:
        noise = np.empty((len(streams), *shape), dtype=np.float32)
        for stream, part in zip(streams, noise, strict=True):
            stream.standard_normal(dtype=np.float32, out=part)
        return torch.from_numpy(noise).to(device)

    return draw


def save_grid(images: Tensor, path: Path, *, count: int = 64, smallest_side: int = 32) -> None:
    """Write the first `count` images (uint8 `[B, C, H, W]`) as one PNG grid; small images are enlarged, unsmoothed."""
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    chosen = images[:count]
    scale = max(1, smallest_side // images.shape[-1])
    enlarged = chosen.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    grid = make_grid(enlarged, nrow=max(1, round(len(chosen) ** 0.5)), padding=2, pad_value=128)
    with atomic_path(path) as temporary:
        to_pil_image(grid).save(temporary)


def write_images(images: Tensor, folder: Path) -> None:
    """Write every image (uint8 `[B, C, H, W]`) as `folder/<index>.png`, at its own size."""
    from torchvision.transforms.v2.functional import to_pil_image

    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        to_pil_image(image).save(folder / f"{index:05d}.png")
