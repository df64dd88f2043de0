"""Networks from elsewhere: `maskpro convert`."""

from __future__ import annotations

from typing import Annotated

import typer

from maskpro.commands.inputs import Output
from maskpro.commands.running import results_first
from maskpro.errors import ModelNotFoundError
from maskpro.files import atomic_folder, check_new
from maskpro.machine.process import one_line
from maskpro.options import expanded


@results_first
@expanded
def convert(
    source: Annotated[
        str, typer.Argument(help="Original DDPM checkpoint, a training script's folder, or a diffusers one.")
    ],
    output_dir: Output,
    ema: Annotated[
        bool | None,
        typer.Option(
            "--ema/--raw",
            help="Which weights to take of both; what to record of the only ones. Default: EMA, where known.",
        ),
    ] = None,
    sample_size: Annotated[
        int | None, typer.Option(help="Height of the images of an original checkpoint; default: from its attention.")
    ] = None,
) -> None:
    """Convert a DDPM to a diffusers folder of safetensors that records whether its weights are EMA."""
    from maskpro.conversion import read_network
    from maskpro.pretrained import EMA_NOT_RECORDED, save_pipeline

    check_new(output_dir, "output folder")
    try:
        pretrained = read_network(source, ema=ema, sample_size=sample_size)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(str(error).replace("--model", "SOURCE")) from error  # as it is called here
    with atomic_folder(output_dir) as folder:
        save_pipeline(folder, pretrained.unet, pretrained.scheduler, ema=pretrained.ema)
    for note in pretrained.notes:
        print(one_line(f"{source}: {note}"))
    if pretrained.ema == EMA_NOT_RECORDED:
        print("whether these are EMA weights is not recorded; --ema or --raw records it")
    print(f"converted, {pretrained.ema}: {output_dir}")
