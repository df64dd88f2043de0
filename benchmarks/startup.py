"""Time of a search to its first report, Tune's overhead per trial, and the saving by shared teacher outputs.

python -m benchmarks.startup                     # the default space's best seed point, twice, one trial at a time

`tune_main.py` runs as a process of its own; its history is read twenty times a second, so times are right to 0.05 s. A
trial's own seconds are those of training and validation, as it reports them. Its wall time runs from its line in the
history to its last report. The rest of that is Tune's and the driver's: start, reports, checkpoints. Run it twice, for
warm caches.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.report import hardware_line, print_table
from maskpro.commands.running import run_command
from maskpro.objectives import teacher_outputs
from maskpro.schedule.folder import HISTORY_FILE
from maskpro.workloads import open_workload

_POLL_SECONDS = 0.05


def watch(command: list[str], history: Path) -> list[tuple[float, dict[str, Any]]]:
    """Run a search: (seconds since its start, event) of every line of its history.

    Raises:
        RuntimeError: the search failed.
    """
    started = time.monotonic()
    events: list[tuple[float, dict[str, Any]]] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    is_over = False
    while not is_over:
        is_over = process.poll() is not None
        lines = history.read_text().splitlines(keepends=True) if history.exists() else []
        now = time.monotonic() - started
        events += [(now, json.loads(line)) for line in lines[len(events) :] if line.endswith("\n")]
        time.sleep(_POLL_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return events


def trial_rows(events: list[tuple[float, dict[str, Any]]]) -> list[dict[str, str]]:
    """A row per trial: its start, its first report, its own seconds and the overhead."""
    rows = []
    for at, event in events:
        if event["event"] != "trial":
            continue
        reports = [(time_, e["metrics"]) for time_, e in events if e["event"] == "report" and e["trial"] == event["trial"]]
        (first, _), (last, metrics) = reports[0], reports[-1]
        own = metrics["seconds"]
        rows.append(
            {
                "trial": str(event["trial"]),
                "handed out at, s": f"{at:.1f}",
                "first report at, s": f"{first:.1f}",
                "from being handed out to the first report, s": f"{first - at:.1f}",
                "of which training and validation, s": f"{reports[0][1]['seconds']:.1f}",
                "reports": str(len(reports)),
                "own seconds": f"{own:.1f}",
                "wall, s": f"{last - at:.1f}",
                "overhead": f"{(last - at) / own - 1:.1%}",
                "overhead after the first report": f"{(last - first) / (own - reports[0][1]['seconds']) - 1:.1%}",
            }
        )
    return rows


def teacher_seconds(samples: int) -> float:
    """Seconds of one process, on one thread, for the teacher's outputs of that number of samples."""
    torch.set_num_threads(1)
    workload = open_workload("digits")
    objective = workload.training_objective(seed=0, device=torch.device("cpu"))
    started = time.monotonic()
    teacher = teacher_outputs(workload.model, objective)
    for part in torch.arange(samples).split(1024):
        teacher(part)
    return time.monotonic() - started


def main(
    space: Annotated[Path, typer.Option(help="Search space.")] = Path("search_spaces/default.py"),
    seed_points: Annotated[str, typer.Option(help="Seed points that run to their full budget.")] = "5,6",
    max_samples: Annotated[int | None, typer.Option(help="Samples of a trial; default: the workload's.")] = None,
    max_concurrent: Annotated[int, typer.Option(help="Concurrent trials.")] = 1,
) -> None:
    """Print the cost of a search's start and Tune's part of a trial."""
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "tune_main.py", "--space", str(space), "--results-dir", results, "--experiment", "timed"]
        command += ["--seed-points", seed_points, "--only-seed-points", "--max-concurrent", str(max_concurrent)]
        command += ["--no-frechet", *([] if max_samples is None else ["--max-samples", str(max_samples)])]
        events = watch(command, Path(results) / "timed" / HISTORY_FILE)
    print_table(f"{' '.join(command[1:4])}, {max_concurrent} at a time; {hardware_line()}", trial_rows(events))
    samples = max(event["metrics"]["num_samples_seen"] for _, event in events if event["event"] == "report")
    spent = teacher_seconds(samples)
    print(f"\nteacher's outputs of {samples:,} samples, one thread: {spent:.1f} s, once instead of once a trial")


if __name__ == "__main__":
    run_command(main)
