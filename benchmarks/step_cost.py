"""Cost of a step of mask learning, compared with the bare network and with the original's step.

python -m benchmarks.step_cost                                     # both networks, batch 16 to 128
python -m benchmarks.step_cost --networks embedded --batch-sizes "16 32" --threads 1
python -m benchmarks.step_cost --device cuda --precision bfloat16

Every round of a row runs each variant once, one after the other, in one process. A ratio is the median of the rounds'
ratios, so a slower machine slows both sides. On a GPU the bare network's passes are replayed as CUDA graphs, as ours are,
and once more with each kernel launched from Python ("launched"). "original" is a transcription of the original's step:
every layer multiplies its weight by its mask in each forward pass, masks come from `torch.multinomial`, and each layer is
updated by itself in separate operations. Its baseline losses and our teacher's outputs are computed before.
"""

from __future__ import annotations

import copy
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.made_up_workload import made_up_workload
from benchmarks.report import hardware_line, print_table
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.graphs import GraphedPass
from maskpro.masked_model import maskable_layers
from maskpro.names import Precision
from maskpro.objectives.diffusion import DiffusionObjective, NoisyBatch
from maskpro.pattern import NMPattern
from maskpro.precision import autocast, parse_precision
from maskpro.runs import MaskFormat, RunCache, build_trainer, table_name
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig
from maskpro.workloads.diffusion import DiffusionWorkload
from maskpro.workloads.opening import open_images

PATTERN = NMPattern(2, 4)
_FORMAT = MaskFormat(str(PATTERN), "channel")
_GPU_REPEATS = 20

# A function that takes that many steps.
Variant = Callable[[int], object]

# google/ddpm-cifar10-32, 35.7 million parameters (Ho et al. 2020, appendix B).
CIFAR10_UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def open_network(name: str) -> tuple[UNet2DModel, DDPMScheduler, Tensor]:
    """The network (frozen, evaluation mode), its noise schedule and 256 images: "embedded", or "cifar10" untrained."""
    if name == "embedded":
        workload = open_images("digits")
        return workload.model, workload.scheduler, workload.images.train[:256]
    if name == "cifar10":
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = UNet2DModel(**CIFAR10_UNET).eval().requires_grad_(False)
        images = torch.randint(256, (256, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return network, DDPMScheduler(num_train_timesteps=1000), images
    raise MaskproError(f"networks holds {name!r}; allowed: embedded, cifar10")


class _OriginalConv(nn.Conv2d):
    mask: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * self.mask, self.bias)


class _OriginalLinear(nn.Linear):
    mask: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight * self.mask, self.bias)


class OriginalWay:
    """MaskPro's step as its authors' code takes it, for 2:4: a plain transcription, layer by layer."""

    def __init__(self, network: nn.Module, objective: DiffusionObjective, *, lr: float, logits: float):
        self._network = network
        self._objective = objective
        self._lr = lr
        modules = dict(network.named_modules())
        self._layers: list[Any] = []
        for name in maskable_layers(network):
            module: Any = modules[name]
            module.__class__ = _OriginalConv if isinstance(module, nn.Conv2d) else _OriginalLinear
            kept = torch.zeros(module.weight.numel() // 4, 4, device=module.weight.device)
            kept.scatter_(1, module.weight.view(-1, 4).abs().topk(2).indices, 1.0)
            module.register_buffer("mask", kept.view_as(module.weight))
            module.register_buffer("mask_logits", logits * kept)
            self._layers.append(module)
        self._delta = torch.zeros((), device=objective_device(network))

    @torch.no_grad()
    def step(self, indices: Tensor, baseline: Tensor) -> None:
        """Sample every layer's mask, one forward pass, update every layer's logits."""
        chosen = []
        for layer in self._layers:
            p = layer.mask_logits.softmax(dim=1)
            pair = torch.multinomial(p, 2)
            layer.mask = torch.zeros_like(p).scatter_(1, pair, 1.0).view_as(layer.weight)
            chosen.append((p, pair))
        batch = self._objective.batch(indices)
        loss = self._objective.losses(self._objective.predict(self._network, batch), batch).mean()
        residual = loss - baseline
        self._delta = 0.99 * self._delta + 0.01 * residual
        for layer, (p, pair) in zip(self._layers, chosen, strict=True):
            p = p.clamp(min=1e-8)
            inverse = 1 / (1 - p.gather(1, pair) + 1e-8)
            weight = inverse / inverse.sum(dim=1, keepdim=True)
            score = layer.mask.view_as(p) - p
            for place in range(2):
                spread = (weight * inverse)[:, place : place + 1] * p
                score -= spread.scatter(1, pair[:, place : place + 1], 0.0)
            layer.mask_logits = layer.mask_logits - self._lr * (residual - self._delta) * score


def objective_device(network: nn.Module) -> torch.device:
    """The device of the network's weights."""
    return next(network.parameters()).device


def _peak_mib(run: Variant, device: torch.device) -> float:
    """The largest memory during a run: allocated on the GPU, or the process's resident set (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run(1)
        return torch.cuda.max_memory_allocated(device) / 2**20
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        run(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    reset.write_text("5")
    run(1)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def _seconds(run: Variant, device: torch.device) -> float:
    """Seconds of one run; on a GPU the mean of several, with one wait at the end."""
    repeats = _GPU_REPEATS if device.type == "cuda" else 1
    started = time.perf_counter()
    run(repeats)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / repeats


def _trainer(workload: DiffusionWorkload, cache: RunCache, batch_size: int, **settings: Any) -> MaskTrainer:
    """A trainer; the kept values of its steps' samples are computed before."""
    config = TrainerConfig(
        batch_size=batch_size, dataset_size=256, budget_samples=10**9, target="teacher", logits=5.0, **settings
    )
    device = objective_device(workload.model)
    trainer = build_trainer(workload, config, _FORMAT, seed=0, device=device, cache=cache)
    cache.tables[table_name(config, _FORMAT)](torch.arange(256))
    return trainer


def _repeated(run: Callable[[], object]) -> Variant:
    def several(count: int) -> None:
        for _ in range(count):
            run()

    return several


def _variants(workload: DiffusionWorkload, batch_size: int, precision: Precision, compiled: bool) -> dict[str, Variant]:
    dense, device, cache = workload.model, objective_device(workload.model), RunCache()
    ours = {
        name: _trainer(workload, cache, batch_size, estimator=name, precision=precision, compile=compiled)
        for name in ("policy_gradient", "straight_through")
    }
    bare = _trainer(workload, cache, batch_size, estimator="straight_through", precision=precision).masked
    objective = workload.training_objective(seed=0, device=device)
    teacher = cache.tables[table_name(TrainerConfig(precision=precision))]
    batch = objective.batch(torch.arange(batch_size))
    target = teacher(torch.arange(batch_size))
    network: Any = torch.compile(bare.model) if compiled else bare.model

    def forward(batch: NoisyBatch) -> Tensor:
        with torch.no_grad(), autocast(device, precision):
            return objective.predict(network, batch)

    def forward_backward(batch: NoisyBatch, target: Tensor) -> Tensor:
        with autocast(device, precision):
            prediction = objective.predict(network, batch)
        loss = objective.teacher_losses(prediction, target, batch).mean()
        loss.backward()
        return loss.detach()

    def eager_forward_backward() -> None:
        bare.weight_gradient().zero_()
        forward_backward(batch, target)

    bare_passes: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(batch),
        "forward+backward": eager_forward_backward,
    }
    if device.type == "cuda":
        bare_passes = {f"{name}, launched": run for name, run in bare_passes.items()}
        graphs = GraphedPass(), GraphedPass([bare.weight_gradient()])

        def graphed_forward_backward() -> None:
            bare.weight_gradient().zero_()
            graphs[1](forward_backward, batch, target)

        bare_passes |= {"forward": lambda: graphs[0](forward, batch), "forward+backward": graphed_forward_backward}
    variants = {name: _repeated(run) for name, run in bare_passes.items()}
    variants |= {name: lambda count, trainer=trainer: trainer.train(count * batch_size) for name, trainer in ours.items()}
    rival = OriginalWay(copy.deepcopy(dense), objective, lr=50.0, logits=10.0)
    baseline = torch.zeros((), device=device)
    steps = iter(range(10**9))

    def step() -> None:
        first = next(steps) * batch_size
        with autocast(device, precision):
            rival.step(torch.arange(first, first + batch_size) % 256, baseline)

    variants["original"] = _repeated(step)
    return variants


def measure(
    network: str, batch_size: int, *, device: torch.device, rounds: int, precision: Precision, compiled: bool
) -> dict[str, str]:
    """The row of a network and a batch size."""
    dense, scheduler, images = open_network(network)
    workload = made_up_workload(dense.to(device), scheduler, images)
    variants = _variants(workload, batch_size, precision, compiled)
    peaks = {}
    for name, run in variants.items():
        run(1)
        peaks[name] = _peak_mib(run, device)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            times[name].append(_seconds(run, device))

    def ratio(first: str, second: str) -> str:
        return f"{statistics.median(a / b for a, b in zip(times[first], times[second], strict=True)):.2f}"

    return {
        "network": network,
        "batch": str(batch_size),
        **{f"{name}, ms": f"{1000 * statistics.median(values):.1f}" for name, values in times.items()},
        "policy_gradient / forward": ratio("policy_gradient", "forward"),
        "straight_through / forward+backward": ratio("straight_through", "forward+backward"),
        "original / policy_gradient": ratio("original", "policy_gradient"),
        "peak MiB": " / ".join(f"{peak:.0f}" for peak in peaks.values()),
    }


def main(
    networks: Annotated[str, typer.Option(help="embedded, cifar10 or both.")] = "embedded cifar10",
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes of the steps.")] = "16 32 64 128",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; their medians are taken.")] = 9,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 (autocast).")] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the bare network's passes and ours.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; default: torch's choice.")] = None,
) -> None:
    """Print the table of step costs."""
    if threads is not None:
        torch.set_num_threads(threads)
    place, chosen = torch.device(device), parse_precision(precision)
    rows = [
        measure(network, int(batch_size), device=place, rounds=rounds, precision=chosen, compiled=compile)
        for network in networks.split()
        for batch_size in batch_sizes.split()
    ]
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{torch.get_num_threads()} threads"
    print_table(f"{precision}{', compiled' if compile else ''}, {name}; {hardware_line()}", rows)


if __name__ == "__main__":
    run_command(main)
