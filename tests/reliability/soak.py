"""A thousand short trials in one search: memory, open files, processes and disk as they go.

python tests/reliability/soak.py --trials 1000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SPACE = """
from ray import tune
param_space = {"lr": tune.loguniform(0.5, 4.0), "batch_size": tune.choice([16, 32]), "dataset_size": 256}
seed_points = []
searcher = "random"
"""


def look(driver: psutil.Process) -> dict[str, float]:
    """Figures of the driver and of all processes that it has started."""
    found = {"processes": 0, "driver MiB": 0.0, "all MiB": 0.0, "driver files": 0, "all files": 0}
    for process in [driver, *driver.children(recursive=True)]:
        try:
            memory, files = process.memory_full_info().uss / 2**20, process.num_fds()
        except psutil.Error:
            continue
        found["processes"] += 1
        found["all MiB"] += memory
        found["all files"] += files
        if process == driver:
            found |= {"driver MiB": memory, "driver files": files}
    return found


def size(folder: Path) -> float:
    """Megabytes of the files in it."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it is gone by now
                total += os.lstat(os.path.join(place, name)).st_size
    return total / 1e6


def main(trials: int, every: int) -> int:
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        (folder / "space.py").write_text(SPACE)
        command = [sys.executable, "-m", "benchmarks.driver_overhead", "--trials", str(trials), "--reports", "3"]
        process = subprocess.Popen(
            [*command, "--space", str(folder / "space.py")], cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}
        )
        driver, next_look, started = psutil.Process(process.pid), every, time.monotonic()
        print(
            "| trials | seconds | processes | driver MiB | all MiB | driver files | all files | disk MB | Ray's logs MB |"
        )
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        while process.poll() is None:
            time.sleep(0.5)
            history = next(folder.glob("maskpro-overhead-*/history.jsonl"), None)
            begun = history.read_bytes().count(b'"event": "trial"') if history else 0
            if begun >= next_look:
                next_look = begun // every * every + every
                figures = look(driver)
                disk, logs = size(history.parent), size(folder / "ray")
                cells = [begun, time.monotonic() - started, *figures.values(), disk, logs]
                print(f"| {' | '.join(f'{cell:,.0f}' for cell in cells)} |", flush=True)
        return process.returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    sys.exit(main(**vars(parser.parse_args())))
