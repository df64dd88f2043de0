"""What this machine is, for records and tables."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import torch


def hardware() -> dict[str, Any]:
    """Processor, cores and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus}


def seconds_now(device: torch.device) -> float:
    """A clock for differences, read once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
