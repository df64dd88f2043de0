"""In which floating-point format a network's passes are computed; its weights stay in float32."""

from __future__ import annotations

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
