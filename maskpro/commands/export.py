"""From a mask to the file that a runtime takes, and what it gains there: `maskpro export` and `bench-export`."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from maskpro.commands.inputs import Device
from maskpro.commands.running import results_first
from maskpro.errors import MaskproError
from maskpro.files import atomic_path, check_new
from maskpro.machine.process import one_line

_Source = Annotated[Path, typer.Argument(help="Mask file, or a compressed file of export --to safetensors.")]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--original-model",
        help="Dense model of the mask: folder or hub name; default: the workload's embedded one.",
    ),
]
_Workload = Annotated[
    str, typer.Option("--workload", "--dataset", help="Kind of the model: digits or cifar10 (diffusers), or causal_lm.")
]
_Ema = Annotated[bool, typer.Option("--ema", help="Take the weights in unet_ema/ beside the model's unet/.")]


@results_first
def export(
    source: _Source,
    to: Annotated[
        str, typer.Option("--to", help="diffusers, transformers, safetensors (compressed), torch-sparse or onnx.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "--output-dir", help="New file; of diffusers and transformers, new folder.")
    ],
    workload: _Workload = "digits",
    model: _Model = None,
    ema: _Ema = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the weights; default: a compressed file's own, else float32, or float16 in a compressed file."
        ),
    ] = None,
) -> None:
    """Write a masked network as its library's folder, a compressed file, for torch's 2:4 kernels, or as ONNX."""
    from maskpro.export.compressed import is_compressed
    from maskpro.export.formats import check_library, parse_format
    from maskpro.export.network import dtype_name

    chosen = parse_format(to)
    check_new(output, chosen.output)
    found = is_compressed(source)
    if not found:
        chosen.dtype(dtype, None, to)  # an error before the model is read
    network = _network(source, workload, model, ema)
    check_library(network, to)
    wanted = chosen.dtype(dtype, network.dtype if found else None, to)
    if found and wanted != network.dtype:
        print(one_line(f"weights of {source} are {dtype_name(network.dtype)}, and become {dtype_name(wanted)}"))
    chosen.write(network.cast(wanted), output, lambda line: print(one_line(line)))


@results_first
def bench_export(
    source: _Source,
    model: _Model = None,
    ema: _Ema = False,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of weights and activations: float16 or bfloat16.")] = "float16",
    batch_sizes: Annotated[str, typer.Option(help="Images at a time, with blanks between the numbers.")] = "1 16 64",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also time square layers, which show from which size 2:4 wins there.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="New file for the table (CSV).")] = None,
) -> None:
    """Time a masked network and its layers on a GPU, dense and on torch's 2:4 kernels, beside what was to be expected."""
    import pandas as pd
    import torch

    from maskpro.export import latency
    from maskpro.export.network import dtype_name
    from maskpro.export.semi_structured import DTYPES, kernel_compress, missing_kernels
    from maskpro.machine.hardware import parse_device
    from maskpro.workloads import DEFAULT_WORKLOAD

    known, place = {dtype_name(found): found for found in DTYPES}, parse_device(device)
    if dtype not in known:
        raise MaskproError(f"dtype is {dtype!r}; allowed: {', '.join(known)}")
    batches = tuple(int(part) if part.isdecimal() else 0 for part in batch_sizes.split())
    if not batches or min(batches) < 1:
        raise MaskproError(f"batch_sizes is {batch_sizes!r}; allowed: numbers from 1, with blanks between them")
    if output is not None:
        check_new(output, "output file")
    network = _network(source, DEFAULT_WORKLOAD, model, ema)
    if network.LIBRARY != "diffusers":
        raise MaskproError(f"{source} holds a network of {network.LIBRARY}; allowed: a diffusion network's file")
    stored, network = dtype_name(network.dtype), network.cast(known[dtype])
    found = latency.network_eligibility(network)
    problem = missing_kernels(place)
    if problem:
        for line in [*(row.line() for row in found.layers), *found.lines()]:
            print(one_line(line))
        unwritten = "" if output is None else f", and {output} is not written"
        print(one_line(f"nothing was timed, as torch's 2:4 kernels can't run ({problem}){unwritten}"))
        return
    if stored != dtype:
        print(one_line(f"weights of {source} are {stored}, and are timed in {dtype}"))
    compress, rows = kernel_compress(network.dtype, place), []
    timed = latency.network_latencies(network, found, batches, device=place, compress=compress)
    swept = latency.sweep_latencies(network.dtype, device=place, compress=compress) if sweep else ()
    try:
        for row in itertools.chain(timed, swept):
            rows.append(row)
            print(one_line(row.line()), flush=True)
    except torch.OutOfMemoryError as error:
        raise MaskproError(
            f"batch_sizes is {batch_sizes!r}, for which {place} has too little memory; allowed: smaller ones"
        ) from error
    for line in found.lines():
        print(one_line(line))
    if output is not None:
        with atomic_path(output) as temporary:
            pd.DataFrame([asdict(row) for row in rows]).to_csv(temporary, index=False)
        print(f"table: {output}")


def _network(source: Path, workload: str, model: str | None, ema: bool) -> Any:
    """The network of a compressed file, or the dense model under a mask file's mask."""
    from maskpro.export import is_compressed, load_network, masked_network
    from maskpro.pipeline.masks import load_masks_of
    from maskpro.workloads import workload_kind

    if is_compressed(source):
        if model is not None or ema:
            raise MaskproError(
                f"model or ema is given with compressed file {source}, which holds its network; allowed: neither"
            )
        return load_network(source)
    dense = workload_kind(workload).load(model, ema=ema)
    for note in dense.notes:
        print(one_line(f"model {dense.name}: {note}"))
    masks = load_masks_of(dense.model, dense.name, source)
    if not masks.base_hash:
        print(one_line(f"mask file {source} names no model; its layers' names and shapes are those of {dense.name}"))
    return masked_network(dense.parts, masks)
