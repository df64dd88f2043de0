"""A workload around any network, for benchmarks of speed, which judge nothing."""

from __future__ import annotations

from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from maskpro.images import ImageSplits
from maskpro.workloads.diffusion import DiffusionWorkload, ImageBudgets


def made_up_workload(network: UNet2DModel, scheduler: DDPMScheduler, images: Tensor) -> DiffusionWorkload:
    """The network with the same images, uint8 `[count, C, H, W]`, in every split; each held-out set is one sample."""
    return DiffusionWorkload(
        name="made up",
        model=network,
        scheduler=scheduler,
        images=ImageSplits(train=images, validation=images, test=images),
        features="none",
        budgets=ImageBudgets(
            max_samples=1,
            report_samples=1,
            validation_samples=1,
            selection_samples=1,
            test_samples=2,
            num_generated=2,
            sampling_steps=1,
        ),
        model_source="made up",
        data_source="made up",
        ema="none",
    )
