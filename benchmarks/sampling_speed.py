"""Images per second of the final evaluation's sampler, compared with plain calls of diffusers' own pipelines.

python -m benchmarks.sampling_speed                                    # the embedded network, DDIM-50 and DDPM-1000
python -m benchmarks.sampling_speed --network cifar10 --device cuda --images 2048 --batch-sizes "256 512 1024"

Each row's variants make the same number of images, one after the other in one process, after two steps to warm up. The
median of `--rounds` is taken; the pipeline runs at its best batch size. "difference" compares the images with those of
float32 without compilation, in grey levels of 255: the mean and the largest.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from benchmarks.report import hardware_line, print_table
from benchmarks.step_cost import open_network
from maskpro.commands.running import run_command
from maskpro.evaluation.sampling import Sampler, SamplingPlan, parse_sampler


def _seconds(run: Callable[[int], Any], steps: int, device: torch.device, rounds: int) -> float:
    """Median seconds of a number of steps, after two steps to warm up."""
    run(2)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run(steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _plainly(pipeline: Any, images: int, batch_size: int, steps: int, device: torch.device) -> None:
    for start in range(0, images, batch_size):
        count = min(batch_size, images - start)
        pipeline(
            batch_size=count, num_inference_steps=steps, generator=torch.Generator().manual_seed(start), output_type="np"
        )


def measure(
    name: str, sampler: Sampler, *, steps: int, images: int, batch_sizes: list[int], device: torch.device, rounds: int
) -> list[dict[str, str]]:
    """The rows of a sampler: the pipeline at its best batch size, then ours in each precision, compiled on a GPU."""
    network, scheduler, real = open_network(name)
    network = network.to(device)
    if sampler == "ddim":
        pipeline: Any = DDIMPipeline(unet=network, scheduler=DDIMScheduler.from_config(scheduler.config))
    else:
        pipeline = DDPMPipeline(unet=network, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    found = {}
    for batch_size in batch_sizes:
        with contextlib.suppress(torch.OutOfMemoryError):
            found[batch_size] = _seconds(
                lambda steps, size=batch_size: _plainly(pipeline, images, size, steps, device), steps, device, rounds
            )
    best = min(found, key=lambda size: found[size])
    rows = [_row(name, sampler, steps, f"diffusers, batch {best}", images / found[best], 1.0, None, None)]
    exact: Tensor | None = None
    for precision in ("float32", "bfloat16"):
        for compiled in (False, True) if device.type == "cuda" else (False,):
            plan = SamplingPlan(
                scheduler=scheduler,
                shape=tuple(real.shape[1:]),
                sampler=sampler,
                steps=steps,
                seed=0,
                batch_size=256,
                precision=precision,  # type: ignore[arg-type]
                compile=compiled,
            )
            made: list[Tensor] = []
            seconds = _seconds(
                lambda steps, plan=plan, made=made: made.append(replace(plan, steps=steps).images(network, range(images))),
                steps,
                device,
                rounds,
            )
            exact = made[-1] if exact is None else exact
            label = f"ours, {precision}{', compiled' if compiled else ''}"
            rows.append(_row(name, sampler, steps, label, images / seconds, found[best] / seconds, made[-1], exact))
    return rows


def _row(
    name: str, sampler: str, steps: int, label: str, speed: float, ratio: float, made: Tensor | None, exact: Tensor | None
) -> dict[str, str]:
    apart = None if made is None or exact is None else (made.int() - exact.int()).abs().float()
    return {
        "network": name,
        "sampler": f"{sampler}, {steps} steps",
        "made by": label,
        "images/s": f"{speed:.1f}",
        "to diffusers": f"{ratio:.2f}",
        "difference": "" if apart is None else f"{apart.mean():.2f}, {apart.max():.0f}",
    }


def main(
    network: Annotated[str, typer.Option(help="embedded, or cifar10 (untrained).")] = "embedded",
    samplers: Annotated[str, typer.Option(help="Samplers as name:steps, with spaces between them.")] = "ddim:50 ddpm:1000",
    images: Annotated[int, typer.Option(min=1, help="Of each variant.")] = 256,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes of diffusers' pipelines; the fastest is taken.")] = "64 256",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; their median is taken.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; default: torch's choice.")] = None,
) -> None:
    """Print images per second of the sampler and of diffusers' pipelines."""
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device)
    rows = []
    for text in samplers.split():
        sampler, _, steps = text.partition(":")
        rows += measure(
            network,
            parse_sampler(sampler),
            steps=int(steps),
            images=images,
            batch_sizes=[int(size) for size in batch_sizes.split()],
            device=place,
            rounds=rounds,
        )
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{torch.get_num_threads()} threads"
    print_table(f"{images} images, {name}; {hardware_line()}", rows)


if __name__ == "__main__":
    run_command(main)
