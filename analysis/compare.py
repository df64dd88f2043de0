"""Two or more experiments side by side.

python -m analysis.compare results/A results/B [...] [--fidelity 0.9]
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from analysis.experiment import OpenedExperiment, without_nan
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError

# Entries of experiment.json in which two searches may differ.
_COMPARED = (
    "workload.name",
    "workload.model_hash",
    "workload.data",
    "workload.images.reading.resize",
    "workload.images.reading.crop",
    "workload.images.reading.background",
    "space.pattern",
    "space.layout",
    "space.initial_mask",
    "space.targets",
    "space.promotion",
    "space.reduction_factor",
    "searcher",
    "scheduler",
    "num_trials",
    "options.dense",
    "trial.max_samples",
    "trial.report_samples",
    "trial.validation_precision",
    "options.seed",
    "versions.maskpro",
)
# Entries of an evaluation's protocol that tell of the trial and its search, not of how masks are judged.
_OF_THE_TRIAL = ("trial_id", "trial_seed", "search_seed")


def samples_to_reach(curves: pd.DataFrame, fidelity: float) -> float:
    """Calibration samples that all trials together had been trained on when one reached the fidelity; NaN: none did."""
    return float(curves.loc[curves["fidelity"] >= fidelity, "num_samples_spent"].min())


def compare(experiments: list[OpenedExperiment], *, fidelity: float) -> pd.DataFrame:
    """A row per experiment: its best trial, the cost of reaching `fidelity`, and its final evaluation if there is one."""
    rows = []
    for experiment in experiments:
        trials, curves, name = experiment.trials, experiment.curves, experiment.best_trial
        kept = curves[curves["trial_id"].isin(trials.loc[trials["status"] != "failed", "trial_id"])]
        best = trials[trials["trial_id"] == name].iloc[0] if name else None
        report = experiment.final_evaluation or {}
        learned = report.get("models", {}).get("learned", {})
        rows.append(
            {
                "experiment": experiment.name,
                "trials": f"{len(trials)} of {experiment.history.num_trials}",
                "best trial": None if best is None else best["trial"],
                "validation fidelity": math.nan if best is None else best["fidelity"],
                "evaluated trial": experiment.evaluated_trial,
                "samples": int(trials["num_samples_trained"].sum()),
                f"samples to fidelity {fidelity:g}": samples_to_reach(kept, fidelity),
                "trial seconds": trials["seconds"].sum(),
                "test fidelity": report.get("fidelity"),
                "test recovery": report.get("recovery"),
                "Frechet distance": learned.get("frechet_distance"),
                "kernel distance": learned.get("kernel_distance"),
                "precision": learned.get("precision"),
                "recall": learned.get("recall"),
                "features": report.get("protocol", {}).get("frechet_features"),
            }
        )
    return pd.DataFrame(rows)


def differences(experiments: list[OpenedExperiment]) -> pd.DataFrame:
    """What differs between the experiments' searches, the protocols of their evaluations, and their best masks' settings.

    A row per setting, a column per experiment. Protocols are compared if all experiments have been evaluated.
    """
    columns: dict[str, dict[str, Any]] = {}
    protocols = [(experiment.final_evaluation or {}).get("protocol", {}) for experiment in experiments]
    for number, (column, experiment) in enumerate(zip(_numbered(experiments), experiments, strict=True)):
        described = _flat(experiment.description or {})
        settings = {name: described.get(name) for name in _COMPARED}
        settings |= {name: value for name, value in described.items() if name.startswith("space.param_space.")}
        best = experiment.best_config or {}
        settings |= {f"best mask: {name}": value for name, value in best.get("config", {}).items()}
        if all(protocols):
            found = _flat(protocols[number])
            settings |= {f"evaluation: {name}": value for name, value in found.items() if name not in _OF_THE_TRIAL}
        columns[column] = settings
    table = pd.DataFrame(columns)
    return table[table.apply(lambda row: len({str(value) for value in row}) > 1, axis=1)]


def _numbered(experiments: list[OpenedExperiment]) -> list[str]:
    """A column's name for each experiment; folders of one name differ in it."""
    return [f"{number}: {experiment.name}" for number, experiment in enumerate(experiments, 1)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def main(
    experiments: list[Path],
    fidelity: Annotated[float, typer.Option(help="Fidelity whose cost is compared.")] = 0.9,
) -> None:
    """Print experiments side by side, and their differences."""
    if len(experiments) < 2:
        raise MaskproError(f"experiments holds {len(experiments)} folder; allowed: two or more")
    opened = [OpenedExperiment(folder) for folder in experiments]
    with pd.option_context(
        "display.width", 200, "display.max_columns", 30, "display.max_rows", 500, "display.precision", 4
    ):
        table = compare(opened, fidelity=fidelity).drop(columns="experiment").T.set_axis(_numbered(opened), axis=1)
        print(without_nan(table).to_string())
        print()
        differing = differences(opened)
        print(without_nan(differing).to_string() if len(differing) else "no difference of their searches and best masks")


if __name__ == "__main__":
    run_command(main)
