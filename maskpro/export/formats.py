"""What a masked network can be exported to, and in which dtypes; what was written is said in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskpro.errors import MaskproError
from maskpro.export.compressed import positions_line, save_compressed
from maskpro.export.eligibility import Eligibility
from maskpro.export.network import ExportedNetwork, MaskedNetwork, dtype_name
from maskpro.export.onnx_file import OPSET, check_onnx, save_onnx
from maskpro.export.semi_structured import DTYPES, kernel_eligibility, missing_kernels
from maskpro.files import atomic_folder, check_new
from maskpro.machine.process import Say


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A kind of export.

    Attributes:
        output: what it writes.
        dtypes: of the weights; the first is the default.
        write: writes a network whose weights have their dtype to a new path.
        libraries: those whose networks can be written so.
    """

    output: str
    dtypes: tuple[torch.dtype, ...]
    write: Callable[[Any, Path, Say], None]
    libraries: tuple[str, ...] = ("diffusers", "transformers")

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


def check_library(network: ExportedNetwork, to: str) -> None:
    """Raise a MaskproError where a network of its library can't be exported to the format of that name."""
    if network.LIBRARY not in FORMATS[to].libraries:
        allowed = ", ".join(name for name, known in FORMATS.items() if network.LIBRARY in known.libraries)
        raise MaskproError(f"to is {to} with a network of {network.LIBRARY}; allowed: {allowed}")


def _folder(network: ExportedNetwork, output: Path, say: Say) -> None:
    with atomic_folder(output) as folder:
        loader = network.save(folder)
    say(f"{network.LIBRARY} folder in {dtype_name(network.dtype)}, for {loader}: {output}")


def _safetensors(network: ExportedNetwork, output: Path, say: Say) -> None:
    check_new(output, "output file")
    save_compressed(output, network)
    pattern, dtype = network.masks.pattern, dtype_name(network.dtype)
    dense, compressed = network.dense_bytes, output.stat().st_size
    change = f"{abs(compressed - dense) / dense:.1%} {'less' if compressed <= dense else 'more'}"
    say(f"bytes in {dtype}: dense network {dense:,}, masked with its zeros {dense:,}, compressed {compressed:,} ({change})")
    say(f"compressed {pattern} file in {dtype}, positions as {positions_line(pattern)}: {output}")


def _torch_sparse(network: ExportedNetwork, output: Path, say: Say) -> None:
    _safetensors(network, output, say)
    found = kernel_eligibility(network.model, network.masks)
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


_FOLDER_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = {
    library: ExportFormat(output="output folder", dtypes=_FOLDER_DTYPES, write=_folder, libraries=(library,))
    for library in ("diffusers", "transformers")
}
FORMATS |= {
    "safetensors": ExportFormat(
        output="output file", dtypes=(torch.float16, torch.bfloat16, torch.float32), write=_safetensors
    ),
    "torch-sparse": ExportFormat(output="output file", dtypes=DTYPES, write=_torch_sparse),
    "onnx": ExportFormat(
        output="output file", dtypes=(torch.float32, torch.float16), write=_onnx, libraries=("diffusers",)
    ),
}
