"""Image sampling with DDIM. The noise of an image depends on (seed, index) alone; the batch it is made in changes its
values by no more than float rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from maskpro.data import philox, to_uint8
from maskpro.files import atomic_path

# Spacing alone moves FID by about 1: "leading" is DDIM's uniform schedule (Song et al. 2021, appendix D.3), pinned.
TIMESTEP_SPACING = "leading"


@torch.no_grad()
def generate(
    model: nn.Module,
    scheduler: DDPMScheduler,
    *,
    shape: tuple[int, ...],
    count: int,
    steps: int,
    seed: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Images 0 to count - 1, uint8 `[count, *shape]` on the CPU, by deterministic DDIM (eta 0).

    Args:
        progress: called after each batch with the number of images made so far.
    """
    device = next(model.parameters()).device
    ddim = DDIMScheduler.from_config(scheduler.config, timestep_spacing=TIMESTEP_SPACING)
    images = []
    for indices in torch.arange(count).split(batch_size):
        noise = [philox(seed, index).standard_normal(shape, dtype=np.float32) for index in indices.tolist()]
        sample = torch.from_numpy(np.stack(noise)).to(device)
        ddim.set_timesteps(steps)
        for timestep in ddim.timesteps:
            prediction = model(sample, timestep, return_dict=False)[0]
            sample = ddim.step(prediction, timestep, sample, eta=0.0, return_dict=False)[0]
        images.append(to_uint8(sample).cpu())
        if progress is not None:
            progress(int(indices[-1]) + 1)
    return torch.cat(images)


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
