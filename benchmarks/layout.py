"""Masks of the two group layouts at equal everything: what the layout that hardware takes costs in quality.

python -m benchmarks.layout            # ours in both layouts, 3 seeds, the embedded workload, two processes

Fidelity relates to each layout's own initial mask, so the layouts are compared by error (the mean squared difference from
the dense network's output), by loss and by images. A group along the input channels is misplaced if it keeps more than n
of m: no sparse kernel takes such a weight. Differences are flattened less channel, paired by seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from benchmarks.mask_methods import EVALUATIONS, LEARNED, OURS, Job, Setting
from benchmarks.mask_quality import Runner
from benchmarks.report import hardware_line, print_table, spread
from benchmarks.resumable import Rows
from maskpro.commands.running import run_command
from maskpro.pattern import LAYOUTS

# Columns of the table: name, digits, factor.
_COLUMNS = {
    "error": ("error / 10^-3", 3, 1e3),
    "loss": ("held-out loss", 5, 1.0),
    "frechet": ("Frechet distance", 1, 1.0),
    "misplaced": ("misplaced groups", 3, 1.0),
}


def main(
    seeds: Annotated[int, typer.Option(help="Number of seeds of calibration samples and masks.")] = 3,
    first_seed: Annotated[int, typer.Option(help="First seed; the settings were found on seeds 0 to 4.")] = 5,
    evaluations: Annotated[int, typer.Option(help="Sample evaluations of each learned mask.")] = EVALUATIONS,
    pattern: Annotated[str, typer.Option(help="N:M pattern.")] = "2:4",
    processes: Annotated[int, typer.Option(help="Concurrent masks.")] = 2,
    held_out: Annotated[int | None, typer.Option(help="Validation and test samples; default: the workload's.")] = None,
    num_generated: Annotated[int | None, typer.Option(help="Images judged; default: the workload's.")] = None,
    rows: Annotated[Path | None, typer.Option(help="File with finished masks, to resume from.")] = None,
) -> None:
    """Print error, loss, Frechet distance and misplaced groups of learned and magnitude masks in both layouts."""
    setting = Setting(workload="digits", held_out=held_out, num_generated=num_generated)
    jobs = [
        Job(method=method, pattern=pattern, seed=seed, layout=layout, evaluations=evaluations, settings=settings)
        for method, settings, of_method in (
            ("magnitude", {}, [0]),
            (OURS, LEARNED[OURS], range(first_seed, first_seed + seeds)),
        )
        for seed in of_method
        for layout in LAYOUTS
    ]
    with Runner(setting, processes=processes, rows=None if rows is None else Rows(rows)) as runner:
        made = runner.run(jobs).assign(layout=[job.layout for job in jobs])
    lines = [
        {"method": method, "layout": layout} | cells(part)
        for (method, layout), part in made.groupby(["method", "layout"], sort=False)
    ]
    learned = made[made["method"] == OURS].set_index(["seed", "layout"])[list(_COLUMNS)].unstack("layout")
    difference = learned.xs("flattened", axis=1, level=1) - learned.xs("channel", axis=1, level=1)
    lines.append({"method": OURS, "layout": "flattened less channel"} | cells(difference))
    print_table(f"{pattern}, {seeds} seeds; {hardware_line()}", lines)


def cells(part: pd.DataFrame) -> dict[str, str]:
    """The table's cells of some masks' rows: means, and their standard errors over seeds."""
    return {title: spread(part[name] * factor, digits) for name, (title, digits, factor) in _COLUMNS.items()}


if __name__ == "__main__":
    run_command(main)
