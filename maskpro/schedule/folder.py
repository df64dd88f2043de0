"""The names of what stands in an experiment's folder. docs/search.md says what each holds."""

from __future__ import annotations

import shlex
from pathlib import Path

HISTORY_FILE = "history.jsonl"
EXPERIMENT_FILE = "experiment.json"
SPACE_FILE = "space.py"
LOCK_FILE = "running.lock"
STUDY_FILE = "optuna_journal.log"
TRIALS_FILE = "trials.csv"
# Errors of the best trials' masks on the selection samples.
SELECTION_FILE = "selection.json"
# It stands there once the search has come to its end.
EVALUATION_FILE = "final_evaluation.json"
REPORT_FILE = "report.html"
DRIVER_LOG = "driver.log"
# Pictures of all candidates, and the parts of an evaluation that are already made.
EVALUATION_FOLDER = "evaluation"

# The masks of the best trial, and in this folder: its settings, what the mask changed in each layer, and what it is worth
# to keep layers dense.
BEST_FOLDER = "best"
CONFIG_FILE = "config.json"
LAYERS_FILE = "layers.csv"
DENSE_CURVE_FILE = "dense_curve.csv"

# Beside the experiments: what evaluations know of the data.
REFERENCE_FOLDER = ".reference_statistics"


def resuming(folder: Path) -> str:
    """The option that resumes the experiment in a folder, as it is typed in a shell."""
    return f"--resume {shlex.quote(str(folder))}"
