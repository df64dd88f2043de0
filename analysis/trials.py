"""Reading experiments' folders into tidy DataFrames.

python -m analysis.trials results/A [results/B ...]   prints the best trials and the final evaluations
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from maskpro.cli import run_command
from maskpro.errors import MaskproError
from maskpro.files import read_json
from maskpro.tuning.history import HISTORY_FILE, History

_CURVE_COLUMNS = ["num_samples_seen", "val_loss", "val_loss_now", "train_loss", "recovery", "changed_share", "seconds"]


def load_trials(experiment: Path) -> pd.DataFrame:
    """A row per trial of a search that has ended: its `trials.csv`.

    Raises:
        MaskproError: there is none in the folder.
    """
    path = experiment / "trials.csv"
    if not path.is_file():
        raise MaskproError(f"no trials.csv in {experiment}; allowed: the folder of a search that has ended")
    return pd.read_csv(path, dtype={"seed_point": "Int64", "failure": "string", "trial_id": "string"})


def load_curves(experiment: Path) -> pd.DataFrame:
    """A row per report of every trial, running or ended, all its parts in one: trial_id, samples seen, losses, recovery,
    seconds.

    Raises:
        MaskproError: nothing has been reported yet, or it is not the folder of a search.
    """
    path = experiment / HISTORY_FILE
    trials = History(path).trials.values() if path.is_file() else ()
    curves = pd.DataFrame(
        [{"trial_id": trial.name, **trial.reports[samples]} for trial in trials for samples in sorted(trial.reports)]
    )
    if curves.empty:
        raise MaskproError(f"no reports of trials in {experiment}; allowed: the folder of a search")
    return curves.reindex(columns=["trial_id", *_CURVE_COLUMNS])


def load_evaluation(experiment: Path) -> pd.DataFrame:
    """The final evaluation: a row per model (dense, initial, learned); recovery and loss_improvement of the learned."""
    report = read_json(experiment / "final_evaluation.json")
    models = pd.DataFrame(report["models"]).T
    for name in ("recovery", "loss_improvement"):
        models.loc["learned", name] = report[name]
    return models.rename_axis("model").reset_index()


def main(experiments: list[Path]) -> None:
    """Print the best trials and the final evaluation of each experiment."""
    pd.set_option("display.width", 160, "display.max_columns", 30, "display.precision", 4)
    for experiment in experiments:
        trials = load_trials(experiment)
        print(f"{experiment}: {len(trials)} trials, {trials['status'].value_counts().to_dict()}")
        print(trials.drop(columns=["trial_id", "failure"]).nsmallest(5, "val_loss").to_string(index=False))
        print(load_evaluation(experiment).to_string(index=False))
        print()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    run_command(main)
