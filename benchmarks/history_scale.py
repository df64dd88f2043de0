"""The cost of a search's history as it grows: bytes, time to resume from it, and time of the next suggestion.

python -m benchmarks.history_scale
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.report import hardware_line, print_table
from benchmarks.simulated_search import SimulatedSearch
from maskpro.commands.running import run_command
from maskpro.schedule.folder import HISTORY_FILE
from maskpro.schedule.history import History
from maskpro.tuning.space import load_space


def main(
    trials: Annotated[list[int] | None, typer.Option(help="Sizes; default: 100, 1,000 and 10,000.")] = None,
    space: Annotated[Path, typer.Option(help="Space whose parameters are suggested.")] = Path("search_spaces/default.py"),
    searcher: Annotated[str, typer.Option(help="Searcher of the suggestion.")] = "tpe",
) -> None:
    """Fill a history by random search under ASHA, then open it with another searcher."""
    distributions = load_space(space).distributions
    rows = []
    for size in trials or [100, 1_000, 10_000]:
        search = SimulatedSearch(
            distributions=distributions,
            curve=lambda params, samples, budget: 0.1 / params["lr"] + 10 / samples,
            pace=lambda params: 1.0,
            num_trials=size,
            searcher="random",
            unit=100,
            max_samples=2_700,
            slots=4,
            journal=True,
        )
        with TemporaryDirectory() as name:
            folder = Path(name)
            first = search.open(folder)
            started = time.monotonic()
            search.run(first)
            run = time.monotonic() - started
            path = folder / HISTORY_FILE
            reports = sum(len(record.reports) for record in History(path).trials.values())
            started = time.monotonic()
            opened_again = SimulatedSearch(**{**vars(search), "searcher": searcher})
            state = opened_again.open(folder, extend=1)
            opened, cpu = time.monotonic(), time.process_time()
            state.next_trial()
            suggested = time.process_time() - cpu
            rows.append(
                {
                    "trials": size,
                    "reports": reports,
                    "MiB": f"{path.stat().st_size / 2**20:.2f}",
                    "ms a report (random search)": f"{1000 * run / reports:.1f}",
                    "bytes a report": round(path.stat().st_size / reports),
                    "seconds to open": f"{opened - started:.2f}",
                    f"CPU seconds of a suggestion by {searcher}": f"{suggested:.3f}",
                }
            )
    print_table(f"history of a search; {hardware_line()}", rows)


if __name__ == "__main__":
    run_command(main)
