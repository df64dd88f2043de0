"""Which layers of a masked network TensorRT or torch can run on sparse tensor cores, and where a gain may be had.

Rules, with their sources:

- Sparse tensor cores take float16, bfloat16 and int8 [1]. float32 runs on them as TF32, which torch takes as 1:2 only [2].
- Every four input channels of an output and a kernel position keep at most two weights. TensorRT asks for it by the
  algorithm in [3], torch by its compression [2]. So the groups of a KxK convolution run along the input channels (layout
  `channel`). Masks of 1:4 and 2:8 meet the rule as well as those of 2:4.
- TensorRT has no sparse kernels for grouped convolutions [4].
- torch multiplies matrices only: Linear layers, and 1x1 convolutions of stride 1 as Linear layers over the channels. Rows
  and columns of the weight are multiples of numbers that depend on dtype and backend, such as 16 x 16 for float16 with
  cuSPARSELt (its default) and 32 x 64 with CUTLASS. They are read from torch itself [2].
- TensorRT times sparse and dense kernels and takes the faster one. NVIDIA's experience is that sparse kernels win from
  about 256 channels in and out. A KxK kernel counts as K^2 times the channels in [5, 6]. Here the same holds for torch.

[1] developer.nvidia.com/blog/accelerating-inference-with-sparsity-using-ampere-and-tensorrt, table 1
[2] torch/sparse/semi_structured.py
[3] docs.nvidia.com/deeplearning/tensorrt, "I/O Formats", section on sparsity
[4, 5, 6] github.com/NVIDIA/TensorRT, issues 4054, 3849, 4065
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.sparse import semi_structured

from maskpro.errors import MaskproError

Target = Literal["tensorrt", "torch-sparse"]
TARGETS: tuple[Target, ...] = get_args(Target)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
# Whether the sparse kernel of an eligible layer will be faster than the dense one.
Gain = Literal["likely", "possible", "unlikely"]

_ENOUGH_CHANNELS = 256
# How many times as fast sparse tensor cores multiply.
_SPEED_UP = 2
_TORCH_BACKENDS = {
    "cuSPARSELt": semi_structured.SparseSemiStructuredTensorCUSPARSELT,
    "CUTLASS": semi_structured.SparseSemiStructuredTensorCUTLASS,
}


def parse_target(text: str) -> Target:
    """The target of that name."""
    for target in TARGETS:
        if text == target:
            return target
    raise MaskproError(f"target is {text!r}; allowed: {', '.join(TARGETS)}")


def parse_dtype(text: str) -> torch.dtype:
    """The dtype of that name; targets take the same ones."""
    if text not in DTYPES:
        raise MaskproError(f"dtype is {text!r}; allowed on sparse tensor cores: {', '.join(DTYPES)}")
    return DTYPES[text]


@dataclass(frozen=True, kw_only=True)
class LayerEligibility:
    """A masked layer, and what a target makes of it.

    Attributes:
        kind: linear, or conv with its kernel, such as conv 3x3.
        shape: of the weight.
        multiply_adds: for a sample; None where no network was given.
        problem: why the target can't run it on sparse tensor cores; "" for an eligible layer.
        gain: whether an eligible layer will be faster.
        backends: those of torch that take it.
    """

    layer: str
    kind: str
    shape: torch.Size
    multiply_adds: int | None
    problem: str
    gain: Gain
    backends: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights, zeros counted."""
        return self.shape.numel()

    @property
    def eligible(self) -> bool:
        """Whether the target can run it on sparse tensor cores."""
        return not self.problem

    def line(self) -> str:
        """The layer and the verdict, for people to read."""
        cost = "" if self.multiply_adds is None else f", {self.multiply_adds:,} multiply-adds"
        layer = f"{self.layer}: {self.kind} of {' x '.join(map(str, self.shape))} weights{cost}"
        if self.problem:
            return f"{layer}: not eligible, as it {self.problem}"
        inputs = self.shape[1:].numel()
        kernel = "" if inputs == self.shape[1] else f" ({inputs} inputs with the kernel)"
        alone = f" by {self.backends[0]} alone" if len(self.backends) == 1 else ""
        gain = f"a gain is {self.gain} with {self.shape[1]} channels in{kernel} and {self.shape[0]} out"
        return f"{layer}: eligible{alone}, {gain}"


@dataclass(frozen=True, kw_only=True)
class Eligibility:
    """What a target can speed up of a network.

    Attributes:
        weights: of all Conv2d and Linear layers; of the masked ones where no network was given.
        multiply_adds: of all Conv2d and Linear layers for a sample; None where no network was given.
    """

    target: Target
    layers: tuple[LayerEligibility, ...]
    weights: int
    multiply_adds: int | None

    @property
    def weights_share(self) -> float:
        """Share of `weights` in eligible layers."""
        return sum(row.weights for row in self.layers if row.eligible) / self.weights

    def multiply_adds_share(self, *gains: Gain) -> float:
        """Share of `multiply_adds` in eligible layers, or only in those with one of the `gains`."""
        assert self.multiply_adds is not None
        rows = [row for row in self.layers if row.eligible and (not gains or row.gain in gains)]
        return sum(row.multiply_adds or 0 for row in rows) / self.multiply_adds

    def most_speed_up(self, *gains: Gain) -> float:
        """Amdahl's bound: the whole's speed-up if these layers ran twice as fast, and only multiply-adds took time."""
        return 1 / (1 - self.multiply_adds_share(*gains) * (1 - 1 / _SPEED_UP))

    def lines(self) -> list[str]:
        """The whole, in sentences for people to read."""
        runtime = "torch alone" if self.target == "torch-sparse" else "TensorRT"
        eligible = [row for row in self.layers if row.eligible]
        given = self.multiply_adds is not None
        lines = [
            f"{runtime} can run {len(eligible)} of {len(self.layers)} masked layers on sparse tensor cores, with "
            f"{self.weights_share:.1%} of the weights of {'all Conv2d and Linear layers' if given else 'the masked layers'}"
        ]
        if not given:
            return [
                *lines,
                "multiply-adds, strides and grouped convolutions are unknown without the network; allowed: with --workload",
            ]
        lines.append(
            f"{runtime} can speed up at most {self.multiply_adds_share():.1%} of the multiply-adds; at twice the speed "
            f"there, the network is at most {self.most_speed_up():.2f} times as fast"
        )
        counts = [
            f"{gain} in {sum(row.gain == gain for row in eligible)} layers ({self.multiply_adds_share(gain):.1%})"
            for gain in get_args(Gain)
        ]
        likely = f"with a gain where it is likely alone, {self.most_speed_up('likely'):.2f} times as fast"
        return [*lines, f"a gain is {', '.join(counts)}; {likely}"]


def eligibility(
    masks: Mapping[str, Tensor],
    *,
    target: Target,
    dtype: torch.dtype,
    network: nn.Module | None = None,
    multiply_adds: Mapping[str, int] | None = None,
) -> Eligibility:
    """What a target can speed up of a network under masks.

    Args:
        masks: layer name to bool mask of the weight's shape.
        dtype: of weights and activations, one of `DTYPES`.
        network: the network, dense or masked. Without it strides and groups are taken to be 1.
        multiply_adds: of every Conv2d and Linear layer (`dense_layers.multiply_adds`), with `network`.
    """
    costs = None if network is None else multiply_adds or {}
    modules = {} if network is None else dict(network.named_modules())
    rows = []
    for name, mask in masks.items():
        backends = tuple(part for part in _TORCH_BACKENDS if _takes(part, mask.shape, dtype))
        rows.append(
            LayerEligibility(
                layer=name,
                kind="linear" if mask.ndim == 2 else f"conv {mask.shape[2]}x{mask.shape[3]}",
                shape=mask.shape,
                multiply_adds=None if costs is None else costs.get(name, 0),
                problem=_problem(mask, modules.get(name), target, dtype),
                gain=_gain(mask.shape),
                backends=backends if target == "torch-sparse" else (),
            )
        )
    every = {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)}
    return Eligibility(
        target=target,
        layers=tuple(rows),
        weights=sum(module.weight.numel() for module in every.values()) or sum(row.weights for row in rows),
        multiply_adds=None if costs is None else sum(costs.values()),
    )


def _problem(mask: Tensor, module: nn.Module | None, target: Target, dtype: torch.dtype) -> str:
    """Why a target can't run a masked layer on sparse tensor cores, or ""."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"is a convolution in {module.groups} groups"
    if mask.shape[1] % 4:
        return f"has {mask.shape[1]} channels in, which 4 does not divide"
    too_full = (mask.movedim(1, -1).reshape(-1, 4).sum(dim=1) > 2).float().mean().item()
    if too_full:
        return f"keeps more than 2 of 4 channels in, in {too_full:.1%} of these fours"
    if target == "tensorrt":
        return ""
    if mask.ndim == 4 and mask.shape[2:].numel() > 1:
        return f"has a {mask.shape[2]}x{mask.shape[3]} kernel, which torch has no sparse kernels for"
    if isinstance(module, nn.Conv2d) and (module.stride != (1, 1) or module.padding != (0, 0)):
        return f"is a 1x1 convolution of stride {module.stride} and padding {module.padding}, which is no Linear layer"
    if any(_takes(backend, mask.shape, dtype) for backend in _TORCH_BACKENDS):
        return ""
    multiples = " or ".join(
        f"{' x '.join(map(str, _multiples(backend, dtype)))} ({backend})" for backend in _TORCH_BACKENDS
    )
    return f"has {mask.shape[0]} x {mask.shape[1]} weights, and torch takes multiples of {multiples}"


def _multiples(backend: str, dtype: torch.dtype) -> tuple[int, int]:
    """What rows and columns of a weight have to be multiples of."""
    found = _TORCH_BACKENDS[backend]._DTYPE_SHAPE_CONSTRAINTS[dtype]
    return found.sparse_min_rows, found.sparse_min_cols


def _takes(backend: str, shape: torch.Size, dtype: torch.dtype) -> bool:
    rows, columns = _multiples(backend, dtype)
    return shape[0] % rows == 0 and shape[1] % columns == 0


def _gain(shape: torch.Size) -> Gain:
    outputs, channels = shape[:2]
    if min(outputs, channels) >= _ENOUGH_CHANNELS:
        return "likely"
    return "possible" if min(outputs, shape[1:].numel()) >= _ENOUGH_CHANNELS else "unlikely"
