"""Time of operations on all groups of a network on a GPU, by plain torch, by torch.compile, and by Triton.

python -m benchmarks.mask_operations                  # 8.9 million groups of four, as many as the CIFAR-10 UNet has

"floor" is the time in which the card copies as many bytes as the operation has to read and write. A second table shows the
noise of calibration samples. With --cpu only that table is made, with numpy's time, as numpy draws the noise on a CPU.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.report import hardware_line, print_table
from maskpro import distribution, samples
from maskpro.commands.running import run_command

_GROUPS = 8_920_000
_ROUNDS = 20


def _milliseconds(run: Callable[..., object], *arguments: Tensor) -> float:
    for _ in range(3):
        run(*arguments)
    times = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(*arguments)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _rows(columns: Tensor) -> Tensor:
    return torch.stack(columns.unbind(), dim=1)


def _sample(logits: Tensor, exponential: Tensor) -> Tensor:
    return _rows(distribution._mode(distribution._columns(logits - exponential.log()), 2))


def _score(logits: Tensor, mask: Tensor) -> Tensor:
    return _rows(distribution._score_of_pairs(distribution._columns(logits), distribution._columns(mask)))


def _inclusion_gradient(logits: Tensor, values: Tensor) -> Tensor:
    columns = (distribution._columns(rows) for rows in (logits, values))
    return _rows(distribution._inclusion_gradient_of_pairs(*columns))


def _noise_rows(device: torch.device) -> list[dict[str, str]]:
    """Time of a batch's noise, for the embedded network's images and for CIFAR-10's."""
    rows = []
    for shape, batch_size in (((1, 8, 8), 8), ((1, 8, 8), 64), ((3, 32, 32), 32), ((3, 32, 32), 128)):
        indices, size = torch.arange(batch_size), math.prod(shape)
        by_torch = partial(samples.noise_by_torch, 0, indices.to(device), size)
        row = {"images": f"{batch_size} of {shape}"}
        if device.type == "cuda":
            ways = {"torch, ms": by_torch, "Triton, ms": partial(samples.normal_values, 0, indices.to(device), size)}
            row |= {name: f"{_milliseconds(way):.3f}" for name, way in ways.items()}
        else:
            images = torch.zeros(256, *shape, dtype=torch.uint8)
            whole = samples.CalibrationSamples(images, num_train_timesteps=1000, seed=0)
            ways = {"torch, ms": by_torch, "whole batch by numpy, ms": partial(whole.batch, indices)}
            row |= {name: f"{_milliseconds_of_cpu(way):.3f}" for name, way in ways.items()}
        rows.append(row)
    return rows


def _milliseconds_of_cpu(run: Callable[[], object]) -> float:
    times = []
    for _ in range(2 * _ROUNDS):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def main(
    groups: Annotated[int, typer.Option(min=1, help="Of four weights.")] = _GROUPS,
    cpu: Annotated[bool, typer.Option("--cpu", help="Only the noise of samples, on one thread.")] = False,
) -> None:
    """Print the tables of operations."""
    if cpu:
        torch.set_num_threads(1)
        print_table(f"noise of calibration samples, one thread; {hardware_line()}", _noise_rows(torch.device("cpu")))
        return
    from maskpro import kernels

    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    logits, values = (torch.randn(groups, 4, device=device, generator=generator) for _ in range(2))
    exponential = torch.empty_like(logits).exponential_(generator=generator)
    mask = kernels.sample(logits, 2, exponential)
    source = torch.empty(2**28, device=device)
    bytes_a_millisecond = 2 * 4 * 2**28 / _milliseconds(torch.Tensor.copy_, torch.empty_like(source), source)
    del source
    rows = []
    for name, reference, kernel, other, traffic in (
        ("sample", _sample, lambda a, b: kernels.sample(a, 2, b), exponential, 9),
        ("score", _score, lambda a, b: kernels.score_of_pairs(a, b), mask, 9),
        ("inclusion gradient", _inclusion_gradient, kernels.inclusion_gradient_of_pairs, values, 12),
    ):
        compiled = torch.compile(reference)
        expected, found = reference(logits, other).float(), kernel(logits, other).float()
        rows.append(
            {
                "operation": name,
                "torch, ms": f"{_milliseconds(reference, logits, other):.3f}",
                "torch.compile, ms": f"{_milliseconds(compiled, logits, other):.3f}",
                "Triton, ms": f"{_milliseconds(kernel, logits, other):.3f}",
                "floor, ms": f"{traffic * logits.numel() / bytes_a_millisecond:.3f}",
                "largest difference": f"{(expected - found).abs().max():.1e}",
            }
        )
    print_table(f"{groups:,} groups of 4; a copy moves {bytes_a_millisecond / 1e9:.2f} TB/s; {hardware_line()}", rows)
    print_table(f"noise of calibration samples; {hardware_line()}", _noise_rows(device))


if __name__ == "__main__":
    run_command(main)
