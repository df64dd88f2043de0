"""What a masked network can be exported to, and in which dtypes; what was written is said in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from maskpro.errors import MaskproError
from maskpro.export.compressed import positions_line, save_compressed
from maskpro.export.eligibility import Eligibility
from maskpro.export.network import MaskedNetwork, dtype_name
from maskpro.export.onnx_file import OPSET, check_onnx, save_onnx
from maskpro.export.semi_structured import DTYPES, kernel_eligibility, missing_kernels
from maskpro.files import atomic_folder, check_new
from maskpro.machine.process import Say
from maskpro.pretrained import save_pipeline


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A kind of export.

    Attributes:
        output: what it writes.
        dtypes: of the weights; the first is the default.
        write: writes a network whose weights have their dtype to a new path.
    """

    output: str
    dtypes: tuple[torch.dtype, ...]
    write: Callable[[MaskedNetwork, Path, Say], None]

    def dtype(self, name: str | None, found: torch.dtype | None, to: str) -> torch.dtype:
        """The dtype of that name; None: `found`, that of a compressed file, or the default."""
        given = {dtype_name(dtype): dtype for dtype in self.dtypes}
        wanted = name if name is not None else dtype_name(found or self.dtypes[0])
        if wanted not in given:
            raise MaskproError(f"dtype is {wanted!r}; allowed with --to {to}: {', '.join(given)} (--dtype)")
        return given[wanted]


def parse_format(to: str) -> ExportFormat:
    """The format of that name, whose packages are installed."""
    if to not in FORMATS:
        raise MaskproError(f"to is {to!r}; allowed: {', '.join(FORMATS)}")
    if to == "onnx":
        check_onnx()
    return FORMATS[to]


def _diffusers(network: MaskedNetwork, output: Path, say: Say) -> None:
    with atomic_folder(output) as folder:
        save_pipeline(folder, network.unet, network.scheduler, ema=network.ema)
    say(f"diffusers folder in {dtype_name(network.dtype)}, for DDPMPipeline.from_pretrained: {output}")


def _safetensors(network: MaskedNetwork, output: Path, say: Say) -> None:
    check_new(output, "output file")
    save_compressed(output, network)
    pattern, dtype = network.masks.pattern, dtype_name(network.dtype)
    dense, compressed = network.dense_bytes, output.stat().st_size
    say(
        f"bytes in {dtype}: dense network {dense:,}, masked with its zeros {dense:,}, compressed {compressed:,} "
        f"({1 - compressed / dense:.1%} less)"
    )
    say(f"compressed {pattern} file in {dtype}, positions as {positions_line(pattern)}: {output}")


def _torch_sparse(network: MaskedNetwork, output: Path, say: Say) -> None:
    _safetensors(network, output, say)
    found = kernel_eligibility(network.unet, network.masks)
    share = f"{found.weights_share:.1%} of the weights"
    say(f"{_eligible(found)}, with {share}, run on torch's 2:4 kernels; all others run dense")
    problem = missing_kernels()
    if problem:
        say(f"neither these kernels nor their speed was tried, as {problem}; the file is the same on every machine")


def _onnx(network: MaskedNetwork, output: Path, say: Say) -> None:
    check_new(output, "output file")
    found = save_onnx(output, network)
    others = [row for row in found.layers if not row.eligible]
    rest = f"; {len(others)} do not, such as {others[0].layer}, which {others[0].problem}" if others else ""
    say(f"{_eligible(found)} meet TensorRT's rules for sparse weights, by the weights in the file{rest}")
    say(f"ONNX file in {dtype_name(network.dtype)}, opset {OPSET}, any number of images: {output}")


def _eligible(found: Eligibility) -> str:
    return f"{sum(row.eligible for row in found.layers)} of {len(found.layers)} masked layers"


FORMATS = {
    "diffusers": ExportFormat(
        output="output folder", dtypes=(torch.float32, torch.float16, torch.bfloat16), write=_diffusers
    ),
    "safetensors": ExportFormat(
        output="output file", dtypes=(torch.float16, torch.bfloat16, torch.float32), write=_safetensors
    ),
    "torch-sparse": ExportFormat(output="output file", dtypes=DTYPES, write=_torch_sparse),
    "onnx": ExportFormat(output="output file", dtypes=(torch.float32, torch.float16), write=_onnx),
}
