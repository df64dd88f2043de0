"""Networks of the benchmark, and a training run bounded by minutes: the step, its schedule and its averages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cifar10.common import TINY_SIZE, say
from benchmarks.step_cost import CIFAR10_UNET
from maskpro.data import to_model_range
from maskpro.graphs import GraphedPass
from maskpro.names import Precision
from maskpro.precision import autocast

_SHORT: dict[str, Any] = {
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
# The hub model's block types, narrower; every masked width is a multiple of 4.
NETWORKS: dict[str, dict[str, Any]] = {
    "12m": {"block_out_channels": (64, 128, 160, 160)},  # 11,902,787 parameters, 22.7 MiB in float16
    "12m-deep": {"block_out_channels": (64, 128, 128, 128), "layers_per_block": 3},  # 11,824,323
    "9m": {"block_out_channels": (64, 128, 128, 128)},  # 8,952,067
    # 11,767 parameters, for rehearsals on a CPU: with smaller images, and with whole ones.
    "tiny": {**_SHORT, "block_out_channels": (4, 8), "sample_size": TINY_SIZE},
    "tiny-32": {**_SHORT, "block_out_channels": (4, 8)},
}

PEAK_LR = 8e-4  # at batch 256; Karras et al. 2022 (table 7) take 1e-3 at batch 512
_BETAS = (0.9, 0.99)
_WARM_UP = 0.04  # share of the time
_CLIP = 1.0
# gamma of the averaged weights: a relative width of 0.05 of the run's length (Karras et al. 2024, equation 2).
_EMA_GAMMA = 16.97


def make_network(name: str, *, seed: int) -> UNet2DModel:
    """An untrained network; torch's initialisers take no generator, so the global one is borrowed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**{**CIFAR10_UNET, **NETWORKS[name]})


def load_network(folder: str | Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """The network (float32, frozen, evaluation mode) and noise schedule of a diffusers folder."""
    network = UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False)
    return network.eval().requires_grad_(False), DDPMScheduler.from_pretrained(folder, subfolder="scheduler")


def count_parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def learning_rate(progress: float) -> float:
    """Share of the peak at a share of the time: linear warm-up, then a cosine to zero."""
    if progress < _WARM_UP:
        return progress / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - _WARM_UP) / (1 - _WARM_UP))))


def ema_decay(step: int) -> float:
    """Decay at the step with that number (1, 2, ...): the power-function average, Karras et al. 2024, equation 1."""
    return (1 - 1 / step) ** (_EMA_GAMMA + 1)


class DenoiserTraining:
    """DDPM training (Ho et al. 2020, algorithm 1) with horizontal flips; the whole state is `state_dict`.

    A step's images, timesteps and noise are a function of (seed, step), so a resumed run takes the steps of an
    uninterrupted one. Only the learning rate follows the clock.

    Args:
        images: uint8 `[count, 3, H, W]`.
        compiled: let torch compile the network; if that fails, a note is shown and the network runs uncompiled.
    """

    def __init__(
        self,
        network: UNet2DModel,
        scheduler: DDPMScheduler,
        images: Tensor,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        precision: Precision,
        compiled: bool,
    ):
        self.network = network.to(device, memory_format=torch.channels_last).train()
        self.steps = 0
        self._images = images.to(device)
        self._batch_size, self._seed, self._device, self._precision = batch_size, seed, device, precision
        self._parameters = list(self.network.parameters())
        self.average = [parameter.detach().clone() for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer = torch.optim.Adam(
            self._parameters, lr=PEAK_LR, betas=_BETAS, fused=True if device.type == "cuda" else None
        )
        alphas = scheduler.alphas_cumprod.to(device)
        self._signal, self._noise_level = alphas.sqrt(), (1 - alphas).sqrt()
        self._draws = torch.Generator(device)
        self._call: Callable[..., Any] = self.network
        self._graph = GraphedPass(self._gradients) if device.type == "cuda" else None
        if compiled:
            self._compile()

    @property
    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _compile(self) -> None:
        started = time.monotonic()
        self._call = torch.compile(self.network)
        try:
            self._loss(*self._batch(0))
        except Exception as error:  # compilers raise any error; the run is then slower, not wrong
            say(f"the network is not compiled ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
            self._call = self.network
            torch._dynamo.reset()
        else:
            say(f"compiled in {time.monotonic() - started:.0f} s")

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images, timesteps and noise of a step."""
        draws, count = self._draws.manual_seed(self._seed * 2**32 + step), self._batch_size
        chosen = torch.randint(len(self._images), (count,), generator=draws, device=self._device)
        timesteps = torch.randint(len(self._signal), (count,), generator=draws, device=self._device)
        flips = torch.rand(count, 1, 1, 1, generator=draws, device=self._device) < 0.5
        clean = to_model_range(self._images[chosen])
        clean = torch.where(flips, clean.flip(3), clean)
        noise = torch.randn(clean.shape, generator=draws, device=self._device)
        levels = (self._signal[timesteps], self._noise_level[timesteps])
        signal, level = (values[:, None, None, None] for values in levels)
        noisy = (signal * clean + level * noise).contiguous(memory_format=torch.channels_last)
        return noisy, timesteps, noise

    def _loss(self, noisy: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """The loss; its gradient is added to the parameters' gradients."""
        with autocast(self._device, self._precision):
            prediction = self._call(noisy, timesteps, return_dict=False)[0]
        loss = functional.mse_loss(prediction.float(), noise)
        loss.backward()
        return loss.detach()

    def step(self, progress: float) -> Tensor:
        """Take a step at a share `progress` of the time; its loss, a scalar on the device."""
        self.steps += 1
        torch._foreach_zero_(self._gradients)
        batch = self._batch(self.steps)
        loss = self._loss(*batch) if self._graph is None else self._graph(self._loss, *batch)
        nn.utils.clip_grad_norm_(self._parameters, _CLIP, foreach=True)
        for group in self._optimizer.param_groups:
            group["lr"] = PEAK_LR * learning_rate(progress)
        self._optimizer.step()
        torch._foreach_lerp_(self.average, [one.detach() for one in self._parameters], 1 - ema_decay(self.steps))
        return loss

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights by name, on the CPU."""
        names = [name for name, _ in self.network.named_parameters()]
        return {name: value.detach().cpu().contiguous() for name, value in zip(names, self.average, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """All that the run needs to resume."""
        return {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the run of a `state_dict`."""
        self.network.load_state_dict(state["network"])
        for mine, kept in zip(self.average, state["average"], strict=True):
            mine.copy_(kept)
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
