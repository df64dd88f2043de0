"""What TensorRT and torch can speed up of two networks under 2:4 masks of all layers, and where a gain is to be expected.

python -m benchmarks.eligibility          # seconds, on a CPU
"""

from __future__ import annotations

import torch

from benchmarks.report import print_table
from benchmarks.step_cost import PATTERN, open_network
from maskpro.commands.running import run_command
from maskpro.dense_layers import multiply_adds
from maskpro.export.eligibility import TARGETS, eligibility
from maskpro.initial_masks import magnitude_masked_model
from maskpro.workloads.diffusion import run_on_zeros


def main() -> None:
    """Print a table for each network."""
    for name in ("embedded", "cifar10"):
        network, _, images = open_network(name)
        masks = magnitude_masked_model(network, pattern=PATTERN, layout="channel").layer_masks()
        costs = multiply_adds(network, lambda network=network, images=images: run_on_zeros(network, images.shape[1:]))
        rows = []
        for target in TARGETS:
            found = eligibility(masks, target=target, dtype=torch.float16, network=network, multiply_adds=costs)
            rows.append(
                {
                    "runtime": target,
                    "eligible layers": f"{sum(row.eligible for row in found.layers)} of {len(found.layers)}",
                    "weights": f"{found.weights_share:.1%}",
                    "multiply-adds": f"{found.multiply_adds_share():.1%}",
                    "gain likely": f"{found.multiply_adds_share('likely'):.1%}",
                    "possible": f"{found.multiply_adds_share('possible'):.1%}",
                    "unlikely": f"{found.multiply_adds_share('unlikely'):.1%}",
                    "speed-up at most": f"{found.most_speed_up():.2f}",
                    "where likely": f"{found.most_speed_up('likely'):.2f}",
                }
            )
        print_table(f"{name} UNet, {found.multiply_adds:,} multiply-adds an image, float16", rows)


if __name__ == "__main__":
    run_command(main)
