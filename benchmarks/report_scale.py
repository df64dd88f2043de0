"""Time to load, report and show an experiment of many trials, and the size of its page.

python -m benchmarks.report_scale --trials 1000
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import analysis
from analysis.report import write_report
from benchmarks.made_up_experiment import make_experiment
from benchmarks.report import hardware_line, print_table
from maskpro.commands.running import run_command
from maskpro.monitoring.view import take_snapshot
from maskpro.schedule.folder import HISTORY_FILE
from maskpro.schedule.history import HistoryReader


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _frames(folder: Path) -> tuple[Any, Any]:
    opened = analysis.open(folder)
    return opened.trials, opened.curves


def measure(trials: int) -> dict[str, str]:
    """The row of an experiment with that number of trials and made-up losses."""
    with tempfile.TemporaryDirectory() as parent:
        folder = make_experiment(Path(parent) / "many", trials=trials, reports=27)
        reader = HistoryReader(folder / HISTORY_FILE)
        first = _seconds(reader.read)
        view = partial(
            take_snapshot, reader.history, num_trials=trials, max_samples=2700, now=datetime.datetime.now(datetime.UTC)
        )
        return {
            "trials": f"{trials:,}",
            "history, MiB": f"{(folder / HISTORY_FILE).stat().st_size / 2**20:.1f}",
            "trials and curves loaded, s": f"{_seconds(lambda: _frames(folder)):.2f}",
            "report, s": f"{_seconds(lambda: write_report(folder)):.1f}",
            "report, MiB": f"{(folder / 'report.html').stat().st_size / 2**20:.1f}",
            "monitor: first reading, s": f"{first:.2f}",
            "monitor: a view, ms": f"{1000 * _seconds(view):.1f}",
        }


def main(trials: Annotated[list[int] | None, typer.Option(help="Repeatable; default: 100 and 1,000.")] = None) -> None:
    """Print the table."""
    print_table(hardware_line(), [measure(count) for count in trials or [100, 1000]])


if __name__ == "__main__":
    run_command(main)
