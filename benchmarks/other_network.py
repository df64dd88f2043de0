"""Trains another DDPM of the digits, for `benchmarks.search_value --model`: three levels, attention at each of them.

python -m benchmarks.other_network FOLDER      # about five minutes on one core
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers.models.unets.unet_2d import UNet2DModel

from maskpro.commands.running import run_command
from maskpro.embedded.build import train_denoiser
from maskpro.files import write_json
from maskpro.images import digits_images
from maskpro.pretrained import WEIGHTS_RECORD


def main(
    folder: Annotated[Path, typer.Argument(help="Where the diffusers folder is written.")],
    steps: Annotated[int, typer.Option(help="Training steps.")] = 2_500,
    seed: Annotated[int, typer.Option(help="Seed of weights, noise and order.")] = 0,
) -> None:
    """Train the network and write it as a diffusers folder."""
    torch.manual_seed(seed)  # module initialisers take no other generator
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32, 64),
        down_block_types=("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3,
        norm_num_groups=8,
        attention_head_dim=8,
    )
    splits = digits_images()
    generator = torch.Generator().manual_seed(seed)
    train_denoiser(model, splits.train, splits.validation, steps=steps, generator=generator).save_pretrained(folder)
    write_json(folder / WEIGHTS_RECORD, {"ema": True})


if __name__ == "__main__":
    run_command(main)
