"""Printing of benchmarks' results and of the hardware."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from maskpro.machine.hardware import hardware


def hardware_line() -> str:
    """Processor, cores and GPUs, in one line."""
    found = hardware()
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    gpus = ", ".join(found["gpus"]) or "no GPU"
    return f"{found['cpus']} cores of {names[0] if names else found['machine']}, {gpus}, Python {platform.python_version()}"


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table in markdown, ready to be committed."""
    frame = pd.DataFrame(rows)
    print(f"\n{title}\n")
    print("| " + " | ".join(frame.columns) + " |")
    print("|" + "---|" * len(frame.columns))
    for row in frame.itertuples(index=False):
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def spread(values: pd.Series, digits: int) -> str:
    """The mean over seeds with its standard error; "" where a value is missing."""
    if values.isna().any():
        return ""
    around = f" ± {values.sem():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{around}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
