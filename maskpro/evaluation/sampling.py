"""Image sampling with DDIM and DDPM. An image depends on (seed, index) alone: all its noise comes from a stream of its own,
and the batch changes its values only by float rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelScheduler
from torch import Tensor, nn

from maskpro.data import move, philox, to_uint8
from maskpro.errors import MaskproError
from maskpro.evaluation.timesteps import TimestepSpacing, resolve_spacing, sampling_timesteps
from maskpro.files import atomic_path
from maskpro.names import Precision
from maskpro.objectives import evaluation_mode
from maskpro.precision import autocast, parse_precision

Sampler = Literal["ddim", "ddpm"]

# Shift of the timesteps: DDIM's own schedule has none, and a shift leads ancestral sampling past the schedule's end.
STEPS_OFFSET = 0
# DDIM's eta: no noise is added after the start.
ETA = 0.0

# Variances for a network that predicts none; diffusers' other fixed one gives NaN.
_VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large")


def _ddim_step(scheduler: Any, prediction: Tensor, timestep: Tensor, sample: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """One deterministic step (Song et al. 2021, equation 12 with sigma 0)."""
    previous: Tensor = scheduler.step(prediction, timestep, sample, eta=ETA, return_dict=False)[0]
    return previous


def _ddpm_step(scheduler: Any, prediction: Tensor, timestep: Tensor, sample: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """One ancestral step (Ho et al. 2020, algorithm 2): `DDPMScheduler.step`, with the noise as an argument."""
    # The noise is drawn first: the CPU draws while a GPU still runs the network.
    drawn = noise() if timestep > 0 else 0.0
    mean: Tensor = scheduler.batch_step_no_noise(prediction, timestep, sample)
    variance = scheduler._get_variance(timestep)
    # diffusers returns the standard deviation for fixed_small_log, despite the name.
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


def check_sampling(scheduler: DDPMScheduler, sampler: Sampler, steps: int, spacing: TimestepSpacing | None = None) -> None:
    """Raise a MaskproError where a noise schedule can't be sampled in this way."""
    parse_sampler(sampler)
    largest, variance_type = scheduler.config["num_train_timesteps"], scheduler.config["variance_type"]
    if not 1 <= steps <= largest:
        raise MaskproError(f"sampling_steps is {steps}; allowed: 1 to {largest}, the steps of the model's noise schedule")
    sampling_timesteps(largest, steps, spacing)
    if sampler == "ddpm" and variance_type not in _VARIANCE_TYPES:
        raise MaskproError(
            f"variance_type of the model's noise schedule is {variance_type!r}; allowed with sampler ddpm: "
            f"{', '.join(_VARIANCE_TYPES)}"
        )


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """How images are sampled from a network. An index gives the same image in any place and any batch.

    Attributes:
        scheduler: the model's noise schedule; its config sets clipping and variance.
        shape: shape of an image.
        sampler: "ddim", deterministic (eta 0), or "ddpm", ancestral.
        spacing: spacing of the timesteps; None: chosen by the number of steps (`resolve_spacing`).
        batch_size: images made together; halved where memory runs out.
        precision: precision of the network's passes. bfloat16 is torch's autocast, and makes other images than float32.
        compile: let torch compile the network first, in about a minute; changes images by float rounding.

    Raises:
        MaskproError: the noise schedule can't be sampled in this way.
    """

    scheduler: DDPMScheduler
    shape: tuple[int, ...]
    sampler: Sampler = "ddim"
    steps: int
    spacing: TimestepSpacing | None = None
    seed: int
    batch_size: int
    precision: Precision = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_sampling(self.scheduler, self.sampler, self.steps, self.spacing)
        parse_precision(self.precision)

    @property
    def timesteps(self) -> list[int]:
        """The timesteps of the network's passes, the noisiest first."""
        return sampling_timesteps(self.scheduler.config["num_train_timesteps"], self.steps, self.spacing)

    @torch.no_grad()
    def images(self, model: nn.Module, indices: range) -> Tensor:
        """The images of `indices`, uint8 `[len(indices), *shape]` on the CPU."""
        network = torch.compile(model) if self.compile else model
        device = next(model.parameters()).device
        images: list[Tensor] = []
        made, batch_size = 0, self.batch_size
        with evaluation_mode(model), ThreadPoolExecutor(1) as ahead:
            while made < len(indices):
                try:
                    images.append(self._batch(network, indices[made : made + batch_size], device, ahead))
                except torch.OutOfMemoryError:
                    if batch_size == 1:
                        raise
                    batch_size = max(1, batch_size // 2)
                    continue
                made += len(images[-1])
        return torch.cat(images)

    @torch.no_grad()
    def first_step(self, model: nn.Module) -> Tensor:
        """The first image after the first step, `[1, *shape]`: a quick test that the network can be sampled from."""
        with ThreadPoolExecutor(1) as ahead:
            return self._sampled(model, range(1), next(model.parameters()).device, ahead, stop=1)

    def _batch(
        self, network: Callable[..., Any], indices: range, device: torch.device, ahead: ThreadPoolExecutor
    ) -> Tensor:
        # The last sample of a network that predicts the image is its output, in the network's memory layout.
        return to_uint8(self._sampled(network, indices, device, ahead)).cpu().contiguous()

    def _sampled(
        self,
        network: Callable[..., Any],
        indices: range,
        device: torch.device,
        ahead: ThreadPoolExecutor,
        stop: int | None = None,
    ) -> Tensor:
        """The samples after the first `stop` steps, or after all."""
        timesteps, step = self.timesteps, _SAMPLERS[self.sampler][1]
        sampling = _respaced(_SAMPLERS[self.sampler][0], self.scheduler, timesteps)
        streams = [philox(self.seed, index) for index in indices]
        sample = _draw(streams, self.shape).to(device)
        following = ahead.submit(_draw, streams, self.shape) if self.sampler == "ddpm" else None

        def noise() -> Tensor:
            # The CPU draws while the network runs.
            nonlocal following
            assert following is not None
            drawn = following.result()
            following = ahead.submit(_draw, streams, self.shape)
            return move(drawn, device)

        # The network's timesteps move at once: single moves would wait for the steps. The scheduler's stay on the CPU.
        for place, timestep in zip(sampling.timesteps[:stop], torch.tensor(timesteps[:stop], device=device), strict=True):
            with autocast(device, self.precision):
                prediction = network(sample, timestep, return_dict=False)[0]
            sample = step(sampling, prediction.to(sample.dtype), place, sample, noise)
        return sample


def schedule_values(scheduler: DDPMScheduler) -> dict[str, Any]:
    """A noise schedule's config with its betas as values, as other classes don't know all names of DDPM's schedules."""
    # diffusers' own entries are left out: one of them makes other classes take their own defaults instead.
    values = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return values | {"trained_betas": scheduler.betas.tolist(), "rescale_betas_zero_snr": False}


def _respaced(scheduler_class: Any, scheduler: DDPMScheduler, timesteps: Sequence[int]) -> Any:
    """A sampler's schedule that holds these timesteps alone and steps from each to the next one.

    diffusers' DDIM steps by a fixed stride, whatever the next timestep is. That is right for equal strides only. Here the
    schedule itself is cut down (Nichol and Dhariwal 2021, section 4), so the stride is 1 for any spacing.
    """
    respaced = scheduler_class.from_config(
        schedule_values(scheduler), timestep_spacing="leading", steps_offset=STEPS_OFFSET
    )
    respaced.alphas_cumprod = respaced.alphas_cumprod[torch.tensor(list(reversed(timesteps)))]
    respaced.register_to_config(num_train_timesteps=len(timesteps))
    respaced.set_timesteps(len(timesteps))
    return respaced


def sampling_protocol(plan: SamplingPlan) -> dict[str, Any]:
    """All that an image depends on besides model, noise schedule and noise, for the records."""
    return {
        "sampler": plan.sampler,
        "sampling_steps": plan.steps,
        "sampling_precision": plan.precision,
        "sampling_compiled": plan.compile,
        "timestep_spacing": resolve_spacing(plan.scheduler.config["num_train_timesteps"], plan.steps, plan.spacing),
        "first_timestep": plan.timesteps[0],
        "num_timesteps": len(plan.timesteps),
        "steps_offset": STEPS_OFFSET,
        "eta": ETA if plan.sampler == "ddim" else None,
    }


def _draw(streams: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Tensor:
    """The next standard normal noise of each stream, `[len(streams), *shape]`."""
    noise = np.empty((len(streams), *shape), dtype=np.float32)
    for stream, part in zip(streams, noise, strict=True):
        stream.standard_normal(dtype=np.float32, out=part)
    return torch.from_numpy(noise)


def save_grid(images: Tensor, path: Path, *, count: int = 64, smallest_side: int = 32) -> None:
    """Write the first `count` images (uint8 `[B, C, H, W]`) as one PNG grid; small ones are enlarged, unsmoothed."""
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    chosen = images[:count]
    scale = max(1, smallest_side // images.shape[-1])
    enlarged = chosen.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    grid = make_grid(enlarged, nrow=max(1, round(len(chosen) ** 0.5)), padding=2, pad_value=128)
    with atomic_path(path) as temporary:
        to_pil_image(grid).save(temporary)


def write_images(images: Tensor, indices: range, folder: Path) -> None:
    """Write every image (uint8 `[B, C, H, W]`) as `folder/<index>.png`, at its own size."""
    from torchvision.transforms.v2.functional import to_pil_image

    folder.mkdir(parents=True, exist_ok=True)
    for index, image in zip(indices, images, strict=True):
        to_pil_image(image).save(folder / f"{index:05d}.png")
