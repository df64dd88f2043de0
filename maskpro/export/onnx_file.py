"""A masked network as an ONNX file, whose weights are checked in the file itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.export.eligibility import Eligibility, eligibility
from maskpro.export.network import MaskedNetwork
from maskpro.files import atomic_path
from maskpro.masked_model import maskable_layers
from maskpro.pretrained import resolution

# torch's exporter writes this version, and converts it where another is asked for.
OPSET = 18
# A file of protocol buffers, which ONNX is, holds no more.
_MOST_BYTES = 2**31 - 2**24


class _Prediction(nn.Module):
    """The network without diffusers' output class."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The prediction for noisy images `[B, C, H, W]` at timesteps `[B]`."""
        prediction: Tensor = self.unet(sample, timestep, return_dict=False)[0]
        return prediction


def check_onnx() -> Any:
    """The `onnx` package.

    Raises:
        MaskproError: it, or what torch's exporter needs beside it, is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MaskproError(
            f"to is onnx, for which package {error.name} is missing; allowed: after pip install maskpro[export]"
        ) from error
    return onnx


def save_onnx(path: Path, network: MaskedNetwork) -> Eligibility:
    """Write a network as ONNX: inputs `sample` and `timestep` with any number of images, output `prediction`.

    The file is read back before it gets its name. It must be valid and hold the masked weights bit for bit.

    Returns:
        what TensorRT can speed up, by the weights in the file.

    Raises:
        MaskproError: the packages are missing, the network is too large for one file, or the file is not right.
    """
    onnx = check_onnx()
    if network.dense_bytes > _MOST_BYTES:
        raise MaskproError(
            f"network has {network.dense_bytes:,} bytes of weights; allowed in an ONNX file: {_MOST_BYTES:,} (--dtype)"
        )
    program = _exported(network)
    with atomic_path(path) as temporary:
        program.save(temporary, external_data=False)
        found = onnx.load(temporary)
        onnx.checker.check_model(found, full_check=True)
        masks = _stored_masks(path, onnx, found, network)
    return eligibility(masks, target="tensorrt", dtype=torch.float16, network=network.unet)


def _exported(network: MaskedNetwork) -> torch.onnx.ONNXProgram:
    side = resolution(network.unet)
    sample = torch.zeros(2, network.unet.config["in_channels"], side, side, dtype=network.dtype)
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            program = torch.onnx.export(
                _Prediction(network.unet).eval(),
                (sample, torch.zeros(2, dtype=torch.int64)),
                dynamo=True,
                opset_version=OPSET,
                input_names=["sample", "timestep"],
                output_names=["prediction"],
                dynamic_shapes={"sample": {0: batch}, "timestep": {0: batch}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise MaskproError(f"network can't be exported as ONNX ({reason}); allowed: another --to") from error
    assert program is not None
    return program


def _stored_masks(path: Path, onnx: Any, found: Any, network: MaskedNetwork) -> dict[str, Tensor]:
    """Where the file's weights of the masked layers are not 0; some lie there transposed, under the exporter's names."""
    stored = {}
    for initializer in found.graph.initializer:
        value = torch.from_numpy(onnx.numpy_helper.to_array(initializer).copy())
        stored[_key(value)] = value
        if value.ndim == 2:
            stored[_key(value.T)] = value.T
    weights, masks = maskable_layers(network.unet), {}
    for name in network.masks.masks:
        weight = stored.get(_key(weights[name].detach()))
        if weight is None:
            raise MaskproError(f"ONNX file {path} would not hold the masked weights of layer {name}; it is not written")
        masks[name] = weight != 0
    return masks


def _key(value: Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(value.shape), value.contiguous().numpy().tobytes()
