"""How busy this machine is; imports neither Ray nor torch.

GPUs are asked for through nvidia-smi: torch would take some hundred megabytes of each for a look at its memory, and knows
their use only with another package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from maskpro.tuning.view import Row

_STAT, _MEMORY = Path("/proc/stat"), Path("/proc/meminfo")
_GPU_QUERY = ("--query-gpu=index,name,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
# Between two questions to nvidia-smi, and how long one may take.
_GPU_PAUSE_SECONDS = 2.0
_GPU_TIMEOUT_SECONDS = 10.0
# Over which the processor's use is taken where there is only one look.
_ONCE_SECONDS = 0.2


class DeviceMeter:
    """Use of the processor since the last look, of memory, and of GPUs as nvidia-smi has last said.

    nvidia-smi is asked beside, as it may take seconds.
    """

    def __init__(self) -> None:
        self._cpu_times = _cpu_times()
        self._gpu_rows: list[Row] = []
        self._smi = shutil.which("nvidia-smi")
        self._asker = ThreadPoolExecutor(1)
        self._answer: Future[list[Row]] | None = None
        self._asked = -_GPU_PAUSE_SECONDS
        self._ask(time.monotonic())

    def rows(self) -> list[Row]:
        """What can be said of this machine."""
        now = time.monotonic()
        if self._answer is not None and self._answer.done():
            self._gpu_rows, self._answer = self._answer.result(), None
        if now - self._asked >= _GPU_PAUSE_SECONDS:
            self._ask(now)
        return [*self._machine(), *self._gpu_rows]

    def complete_rows(self) -> list[Row]:
        """The same for somebody who looks only once: the processor's use over a moment, and after GPUs have answered."""
        time.sleep(_ONCE_SECONDS)
        if self._answer is not None:
            self._answer.exception()
        return self.rows()

    def _ask(self, now: float) -> None:
        if self._smi is not None and self._answer is None:
            self._answer, self._asked = self._asker.submit(_gpu_rows, self._smi), now

    def _machine(self) -> list[Row]:
        earlier, self._cpu_times = self._cpu_times, _cpu_times()
        busy, total = (new - old for new, old in zip(self._cpu_times, earlier, strict=True))
        use = f"{busy / total:.0%} of {os.cpu_count()} cores, " if total > 0 else ""
        memory = _memory()
        if memory is None:
            return [("this machine", f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")]
        used, whole = memory
        return [("this machine", f"{use}{used:.1f} of {whole:.1f} GiB of memory")]


def _cpu_times() -> tuple[int, int]:
    """Busy and whole time of all cores since the system's start, in its own unit; zeros where there is no /proc."""
    try:
        times = [int(part) for part in _STAT.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    idle = sum(times[3:5])  # idle, and waiting for disks
    return sum(times) - idle, sum(times)


def _memory() -> tuple[float, float] | None:
    """GiB that can't be had, and GiB in all; None where there is no /proc."""
    try:
        lines = [line.partition(":") for line in _MEMORY.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    sizes = {name: int(rest.split()[0]) for name, _, rest in lines}
    whole = sizes["MemTotal"]
    return (whole - sizes.get("MemAvailable", sizes["MemFree"])) / 2**20, whole / 2**20


def _gpu_rows(smi: str) -> list[Row]:
    try:
        answer = subprocess.run([smi, *_GPU_QUERY], capture_output=True, text=True, timeout=_GPU_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.split(", ") for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
    return [
        (f"GPU {cells[0]}", f"{cells[1]}, {cells[2]}% busy, {cells[3]} of {cells[4]} MiB of memory")
        for cells in lines
        if len(cells) == 5
    ]
