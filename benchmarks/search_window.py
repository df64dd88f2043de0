"""What a search loses where its suggestions come from a bounded number of its trials.

python -m benchmarks.search_window --searcher tpe --trials 1000

Simulated searches under ASHA, each with several seeds. A trial's regret is its error at the full budget, less the lowest
that any parameters could reach.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.report import hardware_line, print_table
from benchmarks.simulated_search import DISTRIBUTIONS, SimulatedSearch
from maskpro.commands.running import run_command

_FULL = 900


def curve(params: dict[str, Any], samples: int, budget: int = _FULL) -> float:
    """A falling error, lowest at lr 1, logits 4 and batch size 64; curves of different batch sizes cross."""
    regret = (
        math.log10(params["lr"]) ** 2 + 0.1 * (params["logits"] - 4) ** 2 + 0.2 * abs(math.log2(params["batch_size"] / 64))
    )
    return 0.1 + 0.3 * regret + 0.5 * math.exp(-samples / (40 + 3 * params["batch_size"]))


def main(
    searcher: Annotated[str, typer.Option(help="Searcher.")] = "tpe",
    trials: Annotated[int, typer.Option(help="Trials of a search.")] = 1000,
    windows: Annotated[list[int] | None, typer.Option("--window", help="Windows; default: 50, 100, 200, 400, all.")] = None,
    seeds: Annotated[int, typer.Option(help="Searches of each window.")] = 5,
) -> None:
    """Print the regrets of searches with several windows."""
    lowest = min(curve({"lr": 1.0, "logits": 4.0, "batch_size": size}, _FULL) for size in (16, 32, 64, 128))
    rows = []
    for window in windows or [50, 100, 200, 400, trials]:
        best, late, cpu = [], [], []
        for seed in range(seeds):
            search = SimulatedSearch(
                distributions=DISTRIBUTIONS,
                curve=curve,
                num_trials=trials,
                searcher=searcher,
                seed=seed,
                slots=4,
                window=window,
            )
            with TemporaryDirectory() as name:
                state = search.open(Path(name))
                started = time.process_time()
                search.run(state)
                cpu.append((time.process_time() - started) / trials)
            regrets = [curve(record.params, _FULL) - lowest for record in state.history.searched]
            best.append(min(regrets))
            late.append(np.mean(regrets[-trials // 4 :]))
        rows.append(
            {
                "window": window,
                "best trial's regret, mean of seeds": f"{np.mean(best):.5f}",
                "and standard error": f"{np.std(best, ddof=1) / seeds**0.5:.5f}",
                "last quarter's mean regret": f"{np.mean(late):.4f}",
                "CPU ms a trial": round(1000 * np.mean(cpu)),
            }
        )
    print_table(f"{trials} trials by {searcher}, {seeds} seeds; {hardware_line()}", rows)


if __name__ == "__main__":
    run_command(main)
