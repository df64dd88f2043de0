"""How busy this machine is, by psutil and nvidia-smi; imports neither Ray nor torch.

GPUs are asked for through nvidia-smi: torch would take some hundred megabytes of each for a look at its memory, and knows
their use only with another package.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor

import psutil

from maskpro.monitoring.view import Row

_GPU_QUERY = ("--query-gpu=index,name,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
# Between two questions to nvidia-smi, and how long one may take.
_GPU_PAUSE_SECONDS = 2.0
_GPU_TIMEOUT_SECONDS = 10.0
# The shortest time over which the processor's use says anything.
_CPU_SECONDS = 0.2


class DeviceMeter:
    """Use of the processor since the last look, of memory, and of GPUs as nvidia-smi has last said.

    nvidia-smi is asked beside, as it may take seconds.
    """

    def __init__(self) -> None:
        self._cpu_percent: float | None = None
        self._cpu_asked = time.monotonic()
        psutil.cpu_percent()  # from here on the next call counts
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
        return [self._machine(now), *self._gpu_rows]

    def complete_rows(self) -> list[Row]:
        """The same for somebody who looks only once: the processor's use over a moment, and after GPUs have answered."""
        time.sleep(_CPU_SECONDS)
        if self._answer is not None:
            self._answer.exception()
        return self.rows()

    def _ask(self, now: float) -> None:
        if self._smi is not None and self._answer is None:
            self._answer, self._asked = self._asker.submit(_gpu_rows, self._smi), now

    def _machine(self, now: float) -> Row:
        if now - self._cpu_asked >= _CPU_SECONDS:
            self._cpu_percent, self._cpu_asked = psutil.cpu_percent(), now
        use = "" if self._cpu_percent is None else f"{self._cpu_percent:.0f}% of {psutil.cpu_count()} cores, "
        memory = psutil.virtual_memory()
        used, whole = ((memory.total - memory.available) / 2**30, memory.total / 2**30)
        return ("this machine", f"{use}{used:.1f} of {whole:.1f} GiB of memory")


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
