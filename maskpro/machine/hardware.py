"""Description of this machine for records and tables, and its devices by name."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import torch

from maskpro.errors import MaskproError


def hardware() -> dict[str, Any]:
    """Processor, cores and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus}


def seconds_now(device: torch.device) -> float:
    """A clock for differences, read once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def parse_device(text: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise MaskproError(f"device is {text!r}; allowed: auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise MaskproError(f"device is {text!r}; allowed: auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MaskproError(f"device is {text!r}, but torch finds no GPU here; allowed: cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MaskproError(f"device is {text!r}; allowed: cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device
