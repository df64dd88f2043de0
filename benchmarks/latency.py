"""Times of two networks and their layers under 2:4 masks, dense and on torch's 2:4 kernels, and of square layers.

python -m benchmarks.latency          # about two minutes on a GPU with sparse tensor cores
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from benchmarks.report import hardware_line, print_table
from benchmarks.step_cost import PATTERN, open_network
from maskpro.commands.running import run_command
from maskpro.export.latency import ELIGIBLE, NETWORK, Latency, network_eligibility, network_latencies, sweep_latencies
from maskpro.export.network import MaskedNetwork, with_masks
from maskpro.export.semi_structured import kernel_compress
from maskpro.initial_masks import magnitude_masked_model
from maskpro.mask_file import MaskFile
from maskpro.masked_model import model_hash


def main(
    networks: Annotated[str, typer.Option(help="embedded, cifar10, or both with a blank between.")] = "embedded cifar10",
    batch_sizes: Annotated[str, typer.Option(help="Images at a time, with blanks between the numbers.")] = "1 16 128",
    dtype: Annotated[str, typer.Option(help="float16 or bfloat16.")] = "float16",
) -> None:
    """Print a table for each network and one of square layers."""
    chosen: torch.dtype = getattr(torch, dtype)
    compress, place = kernel_compress(chosen), torch.device("cuda")
    batches = tuple(map(int, batch_sizes.split()))
    for name in networks.split():
        network = _masked(name).cast(chosen)
        found = network_eligibility(network)
        rows = list(network_latencies(network, found, batches, device=place, compress=compress))
        print_table(
            f"{name} UNet, {dtype}; {hardware_line()}", [_cells(row) for row in rows if row.what in (NETWORK, ELIGIBLE)]
        )
        # Layers of one shape in a network are alike; the slowest of each batch size say most.
        slowest = sorted((row for row in rows if row.what not in (NETWORK, ELIGIBLE)), key=lambda row: -row.dense_ms)[:12]
        print_table(f"{name} UNet, its slowest eligible layers", [_cells(row) for row in slowest])
    print_table(
        f"square layers, {dtype}", [_cells(row) for row in sweep_latencies(chosen, device=place, compress=compress)]
    )


def _masked(name: str) -> MaskedNetwork:
    network, scheduler, _ = open_network(name)
    masked = magnitude_masked_model(network, pattern=PATTERN, layout="channel")
    masks = MaskFile(pattern=PATTERN, layout="channel", base_hash=model_hash(network), masks=masked.layer_masks())
    return MaskedNetwork(unet=with_masks(network, masks), masks=masks, scheduler=scheduler, ema="")


def _cells(row: Latency) -> dict[str, str]:
    return {
        "what": row.what,
        "batch": str(row.batch),
        "dense, ms": f"{row.dense_ms:.3f}",
        "2:4, ms": f"{row.sparse_ms:.3f}",
        "times as fast": f"{row.speed_up:.2f}",
        "at most expected": f"{row.most_expected:.2f}",
        "gain": row.gain or "",
    }


if __name__ == "__main__":
    run_command(main)
