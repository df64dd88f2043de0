"""How long a masked network and its layers take, dense and on torch's 2:4 kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from maskpro.dense_layers import multiply_adds
from maskpro.export.eligibility import Eligibility, Gain
from maskpro.export.network import MaskedNetwork
from maskpro.export.semi_structured import Compress, SemiStructured, kernel_eligibility, to_semi_structured
from maskpro.pretrained import resolution

NETWORK, ELIGIBLE = "the network", "its eligible layers together"
# Square layers of the sweep, and the rows that they multiply: 16 images of 16x16 positions.
SWEEP_SIZES, SWEEP_ROWS = (128, 256, 512, 1024, 2048), 4096
# What sparse tensor cores promise for a layer.
_TWICE = 2.0
# Seconds over which a time is the median.
_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A layer or network, timed.

    Attributes:
        what: name of the layer, or what else was timed.
        batch: images; in the sweep rows.
        dense_ms, sparse_ms: milliseconds of a pass, the median.
        speed_up: times as fast on 2:4 kernels as dense.
        most_expected: the most that speed_up could be, by the multiply-adds.
        gain: whether a layer was expected to be faster; None where nothing was said.
    """

    what: str
    batch: int
    dense_ms: float
    sparse_ms: float
    speed_up: float
    most_expected: float
    gain: Gain | None = None

    def line(self) -> str:
        """For people to read."""
        verdict = "" if self.speed_up > 1 else ", no gain here"
        gain = "" if self.gain is None else f", a gain was {self.gain}"
        return (
            f"{self.what}, batch {self.batch}: dense {self.dense_ms:.3f} ms, 2:4 {self.sparse_ms:.3f} ms, "
            f"{self.speed_up:.2f} times as fast{verdict} (expected: at most {self.most_expected:.2f}{gain})"
        )


def network_eligibility(network: MaskedNetwork) -> Eligibility:
    """What torch's 2:4 kernels take of a network, with multiply-adds; it runs one image on the CPU in float32."""
    unet: nn.Module = nn.Module.to(copy.deepcopy(network.unet), torch.float32)
    image = _images(network, 1).float()
    return kernel_eligibility(unet, network.masks, multiply_adds(unet, lambda: _predict(unet, image)))


@torch.no_grad()
def network_latencies(
    network: MaskedNetwork,
    found: Eligibility,
    batches: tuple[int, ...],
    *,
    device: torch.device,
    compress: Compress,
    seconds: float = _SECONDS,
) -> Iterator[Latency]:
    """Times of the network, of its eligible layers together, and of each of them, for each batch size.

    Args:
        network: in the dtype that is timed.
        found: what `network_eligibility` says of it.
        compress: makes a layer's 2:4 weight (`kernel_compress`).
        seconds: over which each time is the median.
    """
    dense: nn.Module = copy.deepcopy(network.unet).to(device).to(memory_format=torch.channels_last)
    sparse = to_semi_structured(dense, network.masks, device=device, compress=compress)
    rows = [row for row in found.layers if row.eligible]
    for batch in batches:
        images = _images(network, batch).to(device).to(memory_format=torch.channels_last)
        inputs = _layer_inputs(dense, [row.layer for row in rows], images)
        yield _timed(
            NETWORK, batch, partial(_predict, dense), partial(_predict, sparse), images, found.most_speed_up(), seconds
        )
        layers = [
            _timed(
                row.layer,
                batch,
                dense.get_submodule(row.layer),
                sparse.get_submodule(row.layer),
                inputs[row.layer],
                _TWICE,
                seconds,
                row.gain,
            )
            for row in rows
        ]
        if layers:
            dense_ms, sparse_ms = sum(layer.dense_ms for layer in layers), sum(layer.sparse_ms for layer in layers)
            yield _latency(ELIGIBLE, batch, dense_ms, sparse_ms, _TWICE)
        yield from layers


@torch.no_grad()
def sweep_latencies(
    dtype: torch.dtype,
    *,
    device: torch.device,
    compress: Compress,
    sizes: tuple[int, ...] = SWEEP_SIZES,
    rows: int = SWEEP_ROWS,
    seconds: float = _SECONDS,
) -> Iterator[Latency]:
    """Times of square Linear layers, which show from which size 2:4 wins on this machine."""
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        layer = nn.Linear(size, size, bias=False, device=device, dtype=dtype)
        layer.weight.copy_(torch.randn(size, size, generator=generator) * torch.tensor([1, 0, 0, 1]).repeat(size // 4))
        values = torch.randn(rows, size, generator=generator).to(device, dtype)
        sparse = SemiStructured(layer, compress)
        yield _timed(f"Linear {size} x {size}", rows, layer, sparse, values, _TWICE, seconds)


def _timed(
    what: str,
    batch: int,
    dense: Callable[[Tensor], object],
    sparse: Callable[[Tensor], object],
    values: Tensor,
    expected: float,
    seconds: float,
    gain: Gain | None = None,
) -> Latency:
    with torch.cuda.device_of(values):  # torch's timer waits for the current GPU alone
        dense_ms, sparse_ms = (_milliseconds(partial(run, values), seconds) for run in (dense, sparse))
    return _latency(what, batch, dense_ms, sparse_ms, expected, gain)


def _latency(
    what: str, batch: int, dense_ms: float, sparse_ms: float, expected: float, gain: Gain | None = None
) -> Latency:
    return Latency(
        what=what,
        batch=batch,
        dense_ms=dense_ms,
        sparse_ms=sparse_ms,
        speed_up=dense_ms / sparse_ms,
        most_expected=expected,
        gain=gain,
    )


def _milliseconds(run: Callable[[], object], seconds: float) -> float:
    """The median of a call; torch's timer warms up and waits for the GPU."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median * 1e3


def _images(network: MaskedNetwork, batch: int) -> Tensor:
    side = resolution(network.unet)
    return torch.zeros(batch, network.unet.config["in_channels"], side, side, dtype=network.dtype)


@torch.no_grad()
def _predict(model: nn.Module, images: Tensor) -> Tensor:
    timesteps = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    prediction: Tensor = model(images, timesteps, return_dict=False)[0]
    return prediction


def _layer_inputs(model: nn.Module, names: list[str], images: Tensor) -> Mapping[str, Tensor]:
    """What each layer is given while the network runs, in the memory format in which it comes."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[name] = arguments[0].clone()

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(partial(keep, name)))
        _predict(model, images)
    return inputs
