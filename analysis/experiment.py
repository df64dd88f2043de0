"""An experiment's folder, running, ended or crashed, as one object with tidy DataFrames.

Every frame has a column `experiment` with the folder's name, so `pandas.concat` can join the frames of several experiments.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.records import CONFIG, DESCRIPTION, EVALUATION, read_record
from maskpro.errors import MaskproError
from maskpro.schedule.folder import (
    BEST_FOLDER,
    CONFIG_FILE,
    DENSE_CURVE_FILE,
    EVALUATION_FILE,
    EXPERIMENT_FILE,
    HISTORY_FILE,
    LAYERS_FILE,
)
from maskpro.schedule.history import METRIC, History, TrialRecord
from maskpro.schedule.ranking import best_trial
from maskpro.schedule.rungs import rungs
from maskpro.schedule.trial_table import FIGURES, OF_SHARES, tabulate_front, tabulate_trials

_CURVE_COLUMNS = [
    "num_samples_seen",
    "num_samples_trained",
    "num_samples_spent",
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
    "num_samples_trained",
    *FIGURES,
    "seconds",
    "seed_point",
    "failure",
]
_TEXT_COLUMNS = ("trial_id", "status", "failure")
_LAYER_COLUMNS = ["experiment", "layer", "weights", "learned", "sparsity", "changed", "changed_share"]
_DENSE_CURVE_COLUMNS = ["experiment", "num_dense", "layers", "sparse_multiply_adds_share", "val_error", "fidelity"]


class OpenedExperiment:
    """The content of an experiment's folder. The history is read at once, every other file at its first use.

    All users share the frames: take a copy to change one.

    Raises:
        MaskproError: it is not the folder of a search, or its history is broken. Another broken file raises one at its
            first use.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        path = self.folder / HISTORY_FILE
        if not path.is_file():
            raise MaskproError(f"no {HISTORY_FILE} in {self.folder}; allowed: the folder of a search")
        self.history = History(path)  # leaves out a last line that is being written or torn

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.absolute().name

    @cached_property
    def description(self) -> dict[str, Any] | None:
        """The content of `experiment.json`; older versions lack parts of it. None: there is none."""
        return read_record(self.folder / EXPERIMENT_FILE, DESCRIPTION, is_not="holds no description of a search")

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row per trial, as in `trials.csv`, even while the search runs or after it was killed."""
        fixed = {name: None if isinstance(value, dict) else value for name, value in self._param_space.items()}
        names = dict.fromkeys(name for record in self.history.searched for name in record.params)
        table = tabulate_trials({**fixed, **{name: None for name in names if name not in fixed}}, self.history.searched)
        if table.empty:
            kinds = {name: object if name in _TEXT_COLUMNS else float for name in (*_TRIAL_COLUMNS, *fixed)}
            table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
        return self._named(table)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row per report, with all parts of a trial: trial_id, samples, fidelity, errors, losses, seconds.

        `num_samples_spent` is what all trials together had been trained on at that report. A search of num_dense has
        `OF_SHARES` as well.
        """
        spent = self._spent()
        rows = [
            # An older history has one run a trial, and one number of samples.
            {
                "trial_id": trial.name,
                "num_samples_trained": samples,
                "num_samples_spent": spent[trial.number, samples],
                **trial.reports[samples],
            }
            for trial in self.history.searched
            for samples in sorted(trial.reports)
        ]
        table = pd.DataFrame(rows)
        of_numbers = _CURVE_COLUMNS + [name for name in OF_SHARES if name in table]
        table = table.reindex(columns=["trial_id", *of_numbers])
        if table.empty:  # as in the table of trials
            table["trial_id"] = table["trial_id"].astype(object)
        numbers = table[of_numbers].apply(pd.to_numeric, errors="coerce")
        return self._named(pd.concat([table[["trial_id"]], numbers], axis=1))

    def _spent(self) -> dict[tuple[int, int], int]:
        """Trial's number and samples of each report to the samples that all trials together had been trained on by then."""
        trials = {trial.number: trial for trial in self.history.searched}
        trained = dict.fromkeys(trials, 0)
        total, spent = 0, {}
        for number, samples in self.history.reported:
            if number in trials:
                now = int(trials[number].reports[samples].get("num_samples_trained", samples))
                total += now - trained[number]
                trained[number] = now
                spent[number, samples] = total
        return spent

    @property
    def best_trial(self) -> str | None:
        """trial_id of the best trial (`maskpro.schedule.ranking.best_trial`); None: no trial has reported yet."""
        best = best_trial(self.history.searched, self.history.min_sparse_share)
        return None if best is None else best.name

    @cached_property
    def pareto_front(self) -> pd.DataFrame:
        """A row per trial of the Pareto front: num_dense, what stays sparse, errors; no rows of other searches."""
        return self._named(tabulate_front(self.history.searched))

    @property
    def is_going_on(self) -> bool:
        """Whether a trial is unfinished or has yet to be started."""
        return len(self.history.searched) < self.history.num_trials or bool(self.history.unfinished)

    @property
    def searched_parameters(self) -> dict[str, dict[str, Any]]:
        """Parameter to its distribution, as Optuna describes it in JSON; fixed ones are left out."""
        return {
            name: value for name, value in self._param_space.items() if isinstance(value, dict) and "attributes" in value
        }

    @property
    def rungs(self) -> list[int]:
        """Samples at which early stopping judged the trials; [] without early stopping."""
        described = self.description or {}
        trial, space = described.get("trial", {}), described.get("space", {})
        first, last, factor = trial.get("report_samples"), trial.get("max_samples"), space.get("reduction_factor")
        needed = ((first, 0), (last, 0), (factor, 1))
        if described.get("scheduler") != "asha" or not all(value and value > least for value, least in needed):
            return []
        return [int(rung) for rung in rungs(first_rung=first, max_samples=last, reduction_factor=factor)]

    @cached_property
    def final_evaluation(self) -> dict[str, Any] | None:
        """The content of `final_evaluation.json`; None: the search has not ended."""
        return read_record(self.folder / EVALUATION_FILE, EVALUATION, is_not="compares no networks")

    @property
    def evaluated_trial(self) -> int | None:
        """Number of the trial whose mask was evaluated, which need not be the best one; None: the search has not ended."""
        return None if self.promoted is None else self.promoted.number

    @property
    def promoted(self) -> TrialRecord | None:
        """The trial whose mask was evaluated."""
        name = (self.final_evaluation or {}).get("protocol", {}).get("trial_id")
        return next((trial for trial in self.history.trials.values() if trial.name == name), None)

    @cached_property
    def evaluation(self) -> pd.DataFrame:
        """A row per evaluated model (dense, initial, learned); recovery and loss_improvement for the learned one."""
        report = self.final_evaluation
        if report is None:
            return pd.DataFrame(columns=["experiment", "model"])
        models = pd.DataFrame(list(report["models"].values()), index=list(report["models"]))
        for name in ("recovery", "recovery_error", "loss_improvement", "loss_improvement_error"):
            if name in report:  # older versions have no errors of these
                models.loc["learned", name] = report[name]
        return self._named(models.rename_axis("model").reset_index())

    @cached_property
    def timesteps(self) -> pd.DataFrame:
        """A row per evaluated model and tenth of the noise schedule (1: little noise, 10: much): test_loss."""
        rows = [
            {"experiment": self.name, "model": model, "tenth": tenth, "test_loss": loss}
            for model, figures in ((self.final_evaluation or {}).get("models", {})).items()
            for tenth, loss in enumerate(figures.get("test_loss_by_timestep", ()), 1)
        ]
        return pd.DataFrame(rows, columns=["experiment", "model", "tenth", "test_loss"])

    @cached_property
    def best_config(self) -> dict[str, Any] | None:
        """The content of `best/config.json`; None: no mask was promoted."""
        return read_record(self.folder / BEST_FOLDER / CONFIG_FILE, CONFIG, is_not="holds no configuration")

    @cached_property
    def layers(self) -> pd.DataFrame:
        """A row per layer of the best mask: weights, sparsity, changed positions; no rows without a mask."""
        return self._table(LAYERS_FILE, _LAYER_COLUMNS)

    @cached_property
    def dense_curve(self) -> pd.DataFrame:
        """A row per number of dense layers (`maskpro.dense_curve`), of the best trial's initial mask; else no rows."""
        return self._table(DENSE_CURVE_FILE, _DENSE_CURVE_COLUMNS)

    def _table(self, name: str, columns: list[str]) -> pd.DataFrame:
        """A table of the best mask; without rows where there is no such file."""
        path = self.folder / BEST_FOLDER / name
        if not path.is_file():
            return pd.DataFrame(columns=columns)
        try:
            return self._named(pd.read_csv(path))
        except ValueError as error:
            raise MaskproError(f"{path} is no table ({error}); allowed: the file as it was written") from error

    @property
    def _param_space(self) -> dict[str, Any]:
        """Parameter to its fixed value, or to how it was drawn."""
        space: dict[str, Any] = (self.description or {}).get("space", {}).get("param_space", {})
        return space

    def _named(self, table: pd.DataFrame) -> pd.DataFrame:
        table = table.drop(columns="experiment", errors="ignore")
        table.insert(0, "experiment", self.name)
        return table


def without_nan(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame for people to read: "-" where there is no value."""
    return frame.astype(object).where(frame.notna(), "-")


def judged_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials with a fidelity, sorted by val_error; the best is last, so it is drawn over the others."""
    judged = trials[(trials["status"] != "failed") & trials["fidelity"].notna()]
    return judged.sort_values(METRIC, ascending=False, kind="stable")
