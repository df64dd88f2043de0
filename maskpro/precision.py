"""The floating-point format of a network's passes; its weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple, get_args

import torch

from maskpro.errors import MaskproError
from maskpro.names import Precision, SamplingPrecision

# Least number of passes, of one image each, that win back a minute of compiling.
_WORTH_COMPILING = 1_000_000


def parse_precision(text: str) -> Precision:
    """The precision of that name."""
    for precision in get_args(Precision):
        if text == precision:
            return precision  # type: ignore[no-any-return]
    raise MaskproError(f"precision is {text!r}; allowed: {', '.join(get_args(Precision))}")


def parse_sampling_precision(text: str) -> SamplingPrecision:
    """The precision of that name, or "auto"."""
    for precision in get_args(SamplingPrecision):
        if text == precision:
            return precision  # type: ignore[no-any-return]
    raise MaskproError(f"sampling_precision is {text!r}; allowed: {', '.join(get_args(SamplingPrecision))}")


def check_precision(precision: str, device: torch.device, *, field: str = "precision") -> None:
    """Raise a MaskproError where a GPU can't compute in the precision: emulated bfloat16 is slower than float32."""
    if precision == "bfloat16" and device.type == "cuda" and not _computes_bfloat16(device):
        raise MaskproError(
            f"{field} is bfloat16, which {torch.cuda.get_device_name(device)} can't compute in; allowed on it: float32"
        )


class ResolvedSampling(NamedTuple):
    """How images are sampled, and the reason in words."""

    precision: Precision
    compile: bool
    reason: str


def resolve_sampling_precision(
    precision: SamplingPrecision, compile_: bool | None, device: torch.device, *, passes: int
) -> ResolvedSampling:
    """The precision of sampling and whether the network is compiled for it.

    "auto" is bfloat16 on a GPU that computes in it, else float32. `compile_` None: yes on such a GPU, where Triton works
    and `passes` of an image through a network are enough to win the time back.

    Raises:
        MaskproError: bfloat16 on a GPU that can't compute in it.
    """
    check_precision(precision, device, field="sampling_precision")
    able = device.type == "cuda" and _computes_bfloat16(device)
    where = (
        "a GPU with bfloat16" if able else "a GPU without bfloat16" if device.type == "cuda" else f"a {device.type} device"
    )
    chosen: Precision = ("bfloat16" if able else "float32") if precision == "auto" else precision
    if compile_ is None:
        compile_ = able and passes >= _WORTH_COMPILING and _compiles(device)
    return ResolvedSampling(chosen, compile_, where.replace("a cpu device", "a CPU"))


def _computes_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


@cache
def _compiles(device: torch.device) -> bool:
    """Whether torch can compile for a device: Triton and a C compiler are installed and support it."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception:  # no common error class
        return False
    return True


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context of a network's passes: torch's autocast to bfloat16, or nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def reproducible() -> Iterator[None]:
    """Context of a network's passes: cuDNN computes gradients by an algorithm that always gives the same bits."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
