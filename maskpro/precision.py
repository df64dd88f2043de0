"""In which floating-point format a network's passes are computed; its weights stay in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from maskpro.errors import MaskproError

Precision = Literal["float32", "bfloat16"]


def parse_precision(text: str) -> Precision:
    """The precision of that name."""
    for precision in get_args(Precision):
        if text == precision:
            return precision  # type: ignore[no-any-return]
    raise MaskproError(f"precision is {text!r}; allowed: {', '.join(get_args(Precision))}")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Around a network's passes: torch's autocast to bfloat16, or nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def reproducible() -> Iterator[None]:
    """Around a network's passes: of several ways to compute a gradient, cuDNN takes one that always gives the same bits."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
