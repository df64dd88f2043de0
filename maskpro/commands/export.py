"""From a mask to the file that a runtime takes: `maskpro export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskpro.commands.running import results_first
from maskpro.errors import MaskproError
from maskpro.files import check_new
from maskpro.machine.process import one_line


@results_first
def export(
    source: Annotated[Path, typer.Argument(help="Mask file, or a compressed file of --to safetensors.")],
    to: Annotated[str, typer.Option("--to", help="diffusers, safetensors (compressed), torch-sparse or onnx.")],
    output: Annotated[Path, typer.Option("--output", "--output-dir", help="New file; of diffusers, new folder.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--original-model",
            help="Dense model of the mask: diffusers DDPM folder or hub name; default: digits.",
        ),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the weights in unet_ema/ beside the model's unet/.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the weights; default: a compressed file's own, else float32, or float16 in a compressed file."
        ),
    ] = None,
) -> None:
    """Write a masked diffusion network as a diffusers folder, a compressed file, for torch's 2:4 kernels, or as ONNX."""
    from maskpro.embedded import DIGITS_MODEL
    from maskpro.export.compressed import is_compressed, load_network
    from maskpro.export.formats import parse_format
    from maskpro.export.network import dtype_name, masked_network
    from maskpro.pipeline.masks import load_masks_of
    from maskpro.pretrained import load_pretrained

    chosen = parse_format(to)
    check_new(output, chosen.output)
    if is_compressed(source):
        if model is not None or ema:
            raise MaskproError(
                f"model or ema is given with compressed file {source}, which holds its network; allowed: neither"
            )
        network = load_network(source)
        wanted = chosen.dtype(dtype, network.dtype, to)
        if wanted != network.dtype:
            print(one_line(f"weights of {source} are {dtype_name(network.dtype)}, and become {dtype_name(wanted)}"))
    else:
        wanted = chosen.dtype(dtype, None, to)
        is_embedded = model in (None, "digits")
        dense = load_pretrained(str(DIGITS_MODEL) if is_embedded else str(model), ema=ema)
        name = "embedded digits DDPM" if is_embedded else str(model)
        for note in dense.notes:
            print(one_line(f"model {name}: {note}"))
        network = masked_network(dense, load_masks_of(dense.unet, name, source))
    chosen.write(network.cast(wanted), output, lambda line: print(one_line(line)))
