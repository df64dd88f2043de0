"""Makes the embedded assets: `python -m maskpro.embedded.build` (about ten minutes on two cores).

Trains a small DDPM on the digits' training images (EMA weights are kept) and a digits classifier, and writes both into
this folder. This is a program of its own, so it may seed torch's global generator: module initialisers take no other.
"""

from __future__ import annotations

import math
import time

import torch
import typer
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from maskpro.data import to_model_range
from maskpro.embedded import DIGITS_CLASSIFIER, DIGITS_MODEL
from maskpro.embedded.classifier import DigitsClassifier
from maskpro.files import write_json
from maskpro.images import digits_images, labelled_digits
from maskpro.pretrained import WEIGHTS_RECORD
from maskpro.samples import CalibrationSamples, DiffusionBatch


def digits_unet() -> UNet2DModel:
    """The architecture of the embedded DDPM: the hub CIFAR-10 model's block types at 8x8, 0.7M parameters."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )


@torch.no_grad()
def held_out_loss(model: nn.Module, scheduler: DDPMScheduler, batch: DiffusionBatch) -> float:
    """Mean noise MSE over a batch."""
    noisy = scheduler.add_noise(batch.images, batch.noise, batch.timesteps)
    return functional.mse_loss(model(noisy, batch.timesteps).sample, batch.noise).item()


def train_denoiser(
    model: UNet2DModel, images: Tensor, held_out: Tensor, *, steps: int, generator: torch.Generator
) -> DDPMPipeline:
    """DDPM training (Ho et al. 2020, algorithm 1) of `model`, with AdamW, cosine decay and EMA; batch 128."""
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    num_timesteps = scheduler.config["num_train_timesteps"]
    samples = CalibrationSamples(held_out, num_train_timesteps=num_timesteps, seed=1, strata=1200)
    held_out_batch = samples.batch(torch.arange(1200))
    ema = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    train, started = to_model_range(images), time.monotonic()
    for step in range(1, steps + 1):
        clean = train[torch.randint(len(train), (128,), generator=generator)]
        timesteps = torch.randint(num_timesteps, (128,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        loss = functional.mse_loss(model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.step(model.parameters())
        if step % 500 == 0 or step == steps:
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            print(
                f"step {step} of {steps}, {time.monotonic() - started:.0f} s: training batch {loss.item():.4f}, "
                f"held-out (EMA) {held_out_loss(model, scheduler, held_out_batch):.4f}",
                flush=True,
            )
            ema.restore(model.parameters())
    ema.copy_to(model.parameters())
    return DDPMPipeline(unet=model, scheduler=scheduler)


def train_classifier(images: Tensor, labels: Tensor, *, steps: int, generator: torch.Generator) -> DigitsClassifier:
    """Cross-entropy training on images shifted by up to one pixel; batch 128."""
    classifier = DigitsClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(steps):
        chosen = torch.randint(len(images), (128,), generator=generator)
        shifts = (torch.randint(3, (2,), generator=generator) - 1).tolist()
        loss = functional.cross_entropy(classifier(images[chosen].roll(shifts, dims=(2, 3))), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier.eval()


def main(steps: int = 4500, classifier_steps: int = 2000, seed: int = 0) -> None:
    """Train and write the embedded digits DDPM and classifier."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = labelled_digits()
    splits = digits_images()
    train_count = len(splits.train)
    classifier = train_classifier(images[:train_count], labels[:train_count], steps=classifier_steps, generator=generator)
    with torch.no_grad():
        correct = classifier(splits.test).argmax(1) == labels[-len(splits.test) :]
    print(f"classifier: {correct.float().mean().item():.1%} of the test images right")
    save_file(classifier.state_dict(), DIGITS_CLASSIFIER)
    pipeline = train_denoiser(digits_unet(), splits.train, splits.validation, steps=steps, generator=generator)
    pipeline.save_pretrained(DIGITS_MODEL)
    write_json(DIGITS_MODEL / WEIGHTS_RECORD, {"ema": True})


if __name__ == "__main__":
    typer.run(main)
