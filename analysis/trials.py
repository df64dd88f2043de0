"""The best trials and the final evaluations of experiments, as text.

python -m analysis.trials results/A [results/B ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from analysis.experiment import OpenedExperiment, without_nan
from maskpro.commands.running import run_command
from maskpro.schedule.history import METRIC
from maskpro.schedule.trial_table import single_figures


def _text(experiments: list[Path]) -> Iterator[str]:
    for folder in experiments:
        experiment = OpenedExperiment(folder)
        trials = experiment.trials
        yield f"{folder}: {len(trials)} trials, {json.dumps(trials['status'].value_counts().to_dict())}"
        columns = [name for name in trials.columns if name not in ("experiment", "trial_id", "failure")]
        yield without_nan(trials.nsmallest(5, METRIC)[columns]).to_string(index=False)
        if experiment.final_evaluation is not None:
            yield without_nan(single_figures(experiment.evaluation).drop(columns="experiment")).to_string(index=False)
        else:
            yield "no final evaluation yet"
        yield ""


def main(experiments: list[Path]) -> None:
    """Print the best trials and the final evaluation of each experiment."""
    with pd.option_context("display.width", 160, "display.max_columns", 30, "display.precision", 4):
        for text in _text(experiments):
            print(text)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    run_command(main)
