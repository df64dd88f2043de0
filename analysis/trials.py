"""Reading experiments' folders, running, ended or crashed, into tidy DataFrames.

python -m analysis.trials results/A [results/B ...]   prints the best trials and the final evaluations

Every frame has a column `experiment`, the folder's name, so that those of several experiments are one frame.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.files import read_json
from maskpro.schedule.folder import BEST_FOLDER, EVALUATION_FILE, EXPERIMENT_FILE, HISTORY_FILE, LAYERS_FILE
from maskpro.schedule.history import METRIC, History
from maskpro.schedule.trial_table import FIGURES, single_figures, tabulate_trials

_CURVE_COLUMNS = [
    "num_samples_seen",
    "fidelity",
    METRIC,
    "val_error_now",
    "recovery",
    "val_loss",
    "val_loss_now",
    "train_loss",
    "changed_share",
    "seconds",
]

_TRIAL_COLUMNS = [
    "trial",
    "trial_id",
    "status",
    "num_samples_seen",
    *FIGURES,
    "seconds",
    "seed_point",
    "failure",
]
_TEXT_COLUMNS = ("trial_id", "status", "failure")


def load_history(experiment: Path) -> History:
    """What has happened in a search so far; a line that is being written, or that a kill has torn, is left out.

    Raises:
        MaskproError: it is not the folder of a search, or its history is broken.
    """
    path = experiment / HISTORY_FILE
    if not path.is_file():
        raise MaskproError(f"no {HISTORY_FILE} in {experiment}; allowed: the folder of a search")
    return History(path)


def load_description(experiment: Path) -> dict[str, Any]:
    """The content of `experiment.json`; of any version, so its parts may be missing.

    Raises:
        MaskproError: there is none.
    """
    described = read_json(experiment / EXPERIMENT_FILE)
    if not isinstance(described, dict):
        raise MaskproError(f"{experiment / EXPERIMENT_FILE} holds no description of a search")
    return described


def searched_parameters(experiment: Path) -> dict[str, dict[str, Any]]:
    """Parameter to the distribution that it was drawn from, as Optuna describes it in JSON; fixed ones are left out."""
    space = load_description(experiment).get("space", {}).get("param_space", {})
    return {name: value for name, value in space.items() if isinstance(value, dict) and "attributes" in value}


def load_trials(*experiments: Path) -> pd.DataFrame:
    """A row per trial: `trials.csv`, but also of searches that are running or were killed.

    Raises:
        MaskproError: a folder is not that of a search.
    """
    parts = []
    for experiment in experiments:
        history = load_history(experiment)
        fixed: dict[str, Any] = {}
        if (experiment / EXPERIMENT_FILE).is_file():
            space = load_description(experiment).get("space", {}).get("param_space", {})
            fixed = {name: None if isinstance(value, dict) else value for name, value in space.items()}
        names = dict.fromkeys(name for record in history.searched for name in record.params)
        table = tabulate_trials({**fixed, **{name: None for name in names if name not in fixed}}, history.searched)
        if table.empty:
            kinds = {name: object if name in _TEXT_COLUMNS else float for name in (*_TRIAL_COLUMNS, *fixed)}
            table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
        parts.append(_of(experiment, table))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def load_curves(*experiments: Path) -> pd.DataFrame:
    """A row per report of every trial, all its parts in one: trial_id, samples seen, fidelity, errors, losses, seconds.

    Raises:
        MaskproError: a folder is not that of a search.
    """
    parts = []
    for experiment in experiments:
        rows = [
            {"trial_id": trial.name, **trial.reports[samples]}
            for trial in load_history(experiment).searched
            for samples in sorted(trial.reports)
        ]
        table = pd.DataFrame(rows).reindex(columns=["trial_id", *_CURVE_COLUMNS])
        if table.empty:  # as in the table of trials
            table["trial_id"] = table["trial_id"].astype(object)
        numbers = table[_CURVE_COLUMNS].apply(pd.to_numeric, errors="coerce")
        parts.append(_of(experiment, pd.concat([table[["trial_id"]], numbers], axis=1)))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def load_layers(*experiments: Path) -> pd.DataFrame:
    """A row per layer of each experiment's best mask: weights, sparsity, changed positions; none without a mask."""
    paths = ((experiment, experiment / BEST_FOLDER / LAYERS_FILE) for experiment in experiments)
    parts = [_of(experiment, _read_table(path)) for experiment, path in paths if path.is_file()]
    columns = ["experiment", "layer", "weights", "learned", "sparsity", "changed", "changed_share"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def has_evaluation(experiment: Path) -> bool:
    """Whether its search has come to its end."""
    return (experiment / EVALUATION_FILE).is_file()


def read_evaluation(experiment: Path) -> dict[str, Any]:
    """The content of `final_evaluation.json`.

    Raises:
        MaskproError: there is none, or it compares no networks.
    """
    report = read_json(experiment / EVALUATION_FILE)
    if not (isinstance(report, dict) and isinstance(report.get("models"), dict)):
        raise MaskproError(f"{experiment / EVALUATION_FILE} compares no networks; allowed: the file as it was written")
    return report


def load_evaluation(*experiments: Path) -> pd.DataFrame:
    """A row per model (dense, initial, learned) of the final evaluations; recovery and loss_improvement of the learned.

    Raises:
        MaskproError: an experiment has none.
    """
    parts = []
    for experiment in experiments:
        report = read_evaluation(experiment)
        models = pd.DataFrame(list(report["models"].values()), index=list(report["models"]))
        for name in ("recovery", "loss_improvement"):
            models.loc["learned", name] = report[name]
        parts.append(_of(experiment, models.rename_axis("model").reset_index()))
    return pd.concat(parts, ignore_index=True)


def load_timesteps(*experiments: Path) -> pd.DataFrame:
    """A row per model and tenth of the noise schedule (1: little noise, 10: much): test_loss."""
    rows = []
    for experiment in experiments:
        models = read_evaluation(experiment)["models"] if has_evaluation(experiment) else {}
        for model, figures in models.items():
            for tenth, loss in enumerate(figures.get("test_loss_by_timestep", ()), 1):
                rows.append({"experiment": experiment.name, "model": model, "tenth": tenth, "test_loss": loss})
    return pd.DataFrame(rows, columns=["experiment", "model", "tenth", "test_loss"])


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except ValueError as error:
        raise MaskproError(f"{path} is no table ({error}); allowed: the file as it was written") from error


def _of(experiment: Path, table: pd.DataFrame) -> pd.DataFrame:
    table.insert(0, "experiment", experiment.absolute().name)
    return table


def _text(experiments: list[Path]) -> Iterator[str]:
    for experiment in experiments:
        trials = load_trials(experiment)
        yield f"{experiment}: {len(trials)} trials, {json.dumps(trials['status'].value_counts().to_dict())}"
        columns = [name for name in trials.columns if name not in ("experiment", "trial_id", "failure")]
        yield trials.nsmallest(5, METRIC)[columns].to_string(index=False)
        if has_evaluation(experiment):
            evaluation = load_evaluation(experiment)
            yield single_figures(evaluation).drop(columns="experiment").to_string(index=False)
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
