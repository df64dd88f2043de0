"""Networks whose layers run on torch's 2:4 kernels (`torch.sparse.to_sparse_semi_structured`), where those take them.

The kernels multiply matrices alone, so that they serve Linear layers and 1x1 convolutions. Such a convolution runs as a
Linear layer over the channels, for which channels_last activations need no copy. All others run dense on masked weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured

from maskpro.errors import MaskproError
from maskpro.export.compressed import load_network
from maskpro.export.eligibility import Eligibility, eligibility
from maskpro.export.network import dtype_name, with_masks
from maskpro.mask_file import MaskFile

# From a masked weight `[O, I]` to the one that a Linear layer multiplies by.
Compress = Callable[[Tensor], Tensor]
DTYPES = (torch.float16, torch.bfloat16)


class SemiStructured(nn.Module):
    """A Linear layer, or a 1x1 convolution as one, on a compressed weight."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, compress: Compress):
        super().__init__()
        self._channels = 1 if isinstance(layer, nn.Conv2d) else -1
        self.weight = nn.Parameter(compress(layer.weight.detach().flatten(1).contiguous()), requires_grad=False)
        self.bias = layer.bias

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output, with the channels where the layer has them."""
        # The kernels view the input as a matrix, which a transposed one can't be.
        rows = values.movedim(self._channels, -1).contiguous()
        return functional.linear(rows, self.weight, self.bias).movedim(-1, self._channels)


def to_semi_structured(
    model: nn.Module, masks: MaskFile, *, device: torch.device | str = "cuda", compress: Compress | None = None
) -> nn.Module:
    """A copy of a model under a mask, with torch's 2:4 kernels in all layers that they take (`kernel_eligibility`).

    Args:
        model: dense or masked; float16 or bfloat16.
        compress: what makes a layer's weight; None: `to_sparse_semi_structured`.

    Raises:
        MaskproError: the mask does not fit the model, or torch has no kernels for this dtype or this device.
    """
    compress = compress or kernel_compress(next(model.parameters()).dtype, torch.device(device))
    network: nn.Module = with_masks(model, masks).to(device).to(memory_format=torch.channels_last)
    for row in kernel_eligibility(network, masks).layers:
        layer = network.get_submodule(row.layer)
        if row.eligible and isinstance(layer, nn.Conv2d | nn.Linear):
            network.set_submodule(row.layer, SemiStructured(layer, compress))
    return network


def load_semi_structured(
    path: Path | str, *, device: torch.device | str = "cuda", compress: Compress | None = None
) -> nn.Module:
    """The network of a compressed file on torch's 2:4 kernels (`to_semi_structured`)."""
    network = load_network(path)
    return to_semi_structured(network.model, network.masks, device=device, compress=compress)


def kernel_eligibility(model: nn.Module, masks: MaskFile, multiply_adds: Mapping[str, int] | None = None) -> Eligibility:
    """What torch's 2:4 kernels take of a model; sizes of float16, which bfloat16 has as well."""
    return eligibility(masks.masks, target="torch-sparse", dtype=torch.float16, network=model, multiply_adds=multiply_adds)


def missing_kernels(device: torch.device | None = None) -> str:
    """Why torch's 2:4 kernels can't run on a device (default: this machine's GPU), or ""."""
    if device is not None and device.type != "cuda":
        return f"device is {device}"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU here"
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return "" if capability >= (8, 0) else f"{name} has no sparse tensor cores"


def kernel_compress(dtype: torch.dtype, device: torch.device | None = None) -> Compress:
    """What makes a masked weight of that dtype one of torch's 2:4 kernels.

    Raises:
        MaskproError: torch has no kernels for this dtype or this device (default: this machine's GPU).
    """
    if dtype not in DTYPES:
        allowed = ", ".join(map(dtype_name, DTYPES))
        raise MaskproError(f"dtype of the model is {dtype_name(dtype)}; allowed on torch's 2:4 kernels: {allowed}")
    problem = missing_kernels(device)
    if problem:
        raise MaskproError(
            f"torch's 2:4 kernels can't run: {problem}; allowed: an NVIDIA GPU of compute capability 8.0 or later"
        )
    return _compressed


def _compressed(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor is in prototype", UserWarning)
        return to_sparse_semi_structured(weight)
