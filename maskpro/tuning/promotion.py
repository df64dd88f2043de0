"""The best trial's masks, promoted to the final evaluation and to a checkpoint that diffusers loads."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from maskpro.errors import MaskproError
from maskpro.evaluation.comparison import compare_models, masked_copy
from maskpro.files import replaced_folder, write_json
from maskpro.mask_file import MaskFile, save_mask_file
from maskpro.masked_model import model_hash
from maskpro.trainer import TrainerConfig
from maskpro.tuning.search import Search, initial_masked_model
from maskpro.tuning.trainable import TENSORS_FILE
from maskpro.workloads import save_pipeline

BEST_FOLDER = "best"
EVALUATION_FILE = "final_evaluation.json"


def best_trial(trials: pd.DataFrame) -> pd.Series:
    """The row with the lowest val_loss among the trials that ran to the full budget, or, if none did, among the others.

    Raises:
        MaskproError: no trial has a mask.
    """
    usable = trials[
        trials["status"].isin(["completed", "stopped"]) & (trials["checkpoint"] != "") & trials["val_loss"].notna()
    ]
    if usable.empty:
        raise MaskproError("no trial ended without an error, so there is no mask to promote; see failure in trials.csv")
    completed = usable[usable["status"] == "completed"]
    candidates = usable if completed.empty else completed
    best: pd.Series = candidates.loc[candidates["val_loss"].idxmin()]
    return best


def promote(search: Search, trials: pd.DataFrame) -> dict[str, Any]:
    """Write `best/` (masks, config, checkpoint, sample grids) and `final_evaluation.json`; returns the latter.

    The masks are written before the evaluation starts, so that a failed evaluation never loses them.
    """
    trial = best_trial(trials)
    folder, space = search.options.folder, search.space
    best = folder / BEST_FOLDER
    initial = initial_masked_model(search.workload, space)
    (folder / EVALUATION_FILE).unlink(missing_ok=True)  # of an earlier promotion, if the search was resumed
    with replaced_folder(best) as new:
        masks = _write_masks(search, trial, new)
        learned = masked_copy(search.workload.model, masks.masks, masks.pattern, masks.layout)
        (new / "checkpoint").mkdir()
        save_pipeline(new / "checkpoint", learned, search.workload.scheduler)
    _say(f"best trial: {trial['trial']} (validation recovery {trial['recovery']:.3f}); evaluating on test images")
    report = compare_models(
        search.workload,
        {"dense": search.workload.model, "initial": initial.model, "learned": learned},
        device=torch.device("cuda" if torch.cuda.is_available() and search.options.gpus_per_trial != 0 else "cpu"),
        folder=best,
        compute_frechet=search.options.frechet,
        inception_weights=search.options.inception_weights,
        say=_say,
    )
    report["protocol"] |= {
        "pattern": space.pattern,
        "layout": space.layout,
        "trial_id": trial["trial_id"],
        "search_seed": search.options.seed,
    }
    write_json(folder / EVALUATION_FILE, report)
    return report


def _write_masks(search: Search, trial: pd.Series, best: Path) -> MaskFile:
    masked = initial_masked_model(search.workload, search.space)
    # The best of the validated masks and the initial one.
    masked.set_mask(load_file(Path(trial["checkpoint"]) / TENSORS_FILE)["best_mask"])
    config = {name: _plain(trial[name]) for name in search.space.param_space}
    trainer_config = TrainerConfig(**config, budget_samples=search.context.max_samples, seed=search.context.seed)
    facts = {
        "trial": int(trial["trial"]),
        "trial_id": trial["trial_id"],
        "config": asdict(trainer_config),
        "pattern": search.space.pattern,
        "layout": search.space.layout,
        "targets": list(search.space.targets),
        "val_loss": min(trial["val_loss"], search.initial_val_loss),
        "recovery": max(trial["recovery"], 0.0),
        "num_samples_seen": int(trial["num_samples_seen"]),
    }
    content = MaskFile(
        pattern=masked.pattern,
        layout=masked.layout,
        base_hash=model_hash(search.workload.model),
        masks=masked.layer_masks(),
        provenance={"experiment": search.options.experiment, "model": search.workload.model_source, **facts},
    )
    save_mask_file(best / "masks.safetensors", content)
    write_json(best / "config.json", facts)
    return content


def _plain(value: Any) -> Any:
    """A pandas cell as a plain Python value."""
    return value.item() if hasattr(value, "item") else value


def summarise(search: Search, trials: pd.DataFrame, report: dict[str, Any]) -> None:
    """Print the trials and the final evaluation as tables, and where everything is."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    columns = [
        "trial",
        *search.space.domains,
        "status",
        "num_samples_seen",
        "val_loss",
        "recovery",
        "seconds",
        "seed_point",
    ]
    shown = trials.sort_values("val_loss")[columns].rename(columns=lambda name: name.replace("num_", "").replace("_", " "))
    console.print(_table("trials, best first", shown))
    models = pd.DataFrame(report["models"]).T.reset_index(names="model").rename(columns=lambda name: name.replace("_", " "))
    console.print(_table("final evaluation on test images", models))
    recovered = report["recovery"]
    share = "undefined (initial and dense losses are equal)" if recovered is None else f"{recovered:.3f}"
    _say(f"recovery {share}, loss improvement {report['loss_improvement']:.1%}")
    _say(f"results: {search.options.folder}")


def _table(title: str, frame: pd.DataFrame) -> Table:
    table = Table(title=title, title_justify="left")
    for name in frame.columns:
        table.add_column(name, justify="right")
    for row in frame.itertuples(index=False):
        table.add_row(*("" if pd.isna(cell) else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    return table


def _say(text: str) -> None:
    print(text, flush=True)
