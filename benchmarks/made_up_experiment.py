"""Folders like those that a search leaves, made without a search; also for tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskpro.evaluation.sampling import save_grid
from maskpro.schedule.history import COMMON_FIDELITY, SHARE, History
from maskpro.schedule.ranking import pareto_front

_DOMAINS = {
    "lr": {"name": "FloatDistribution", "attributes": {"step": None, "low": 0.4, "high": 4.0, "log": True}},
    "logits": {"name": "FloatDistribution", "attributes": {"step": None, "low": 2.0, "high": 10.0, "log": False}},
    "batch_size": {"name": "CategoricalDistribution", "attributes": {"choices": [16, 32, 64]}},
}

_DENSE_DOMAIN = {"num_dense": {"name": "CategoricalDistribution", "attributes": {"choices": [0, 2, 4]}}}


class _Recorded(History):
    """A history in memory that keeps its events: a file would be flushed to disk for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def _append(self, **event: Any) -> None:
        self.events.append(event)
        super()._append(**event)


def make_experiment(
    folder: Path, *, trials: int = 12, reports: int = 9, finished: bool = True, seed: int = 0, num_dense: bool = False
) -> Path:
    """Make trials of a made-up loss under successive halving by threes; the first two are seed points.

    With `num_dense` trials keep layers dense, whose share is searched for as well, and all run to their budget.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    description = {
        "format": 5,
        "options": {"seed": seed},
        "space": {
            "param_space": {"estimator": "straight_through", **_DOMAINS, **(_DENSE_DOMAIN if num_dense else {})},
            "pattern": "2:4",
            "layout": "channel",
            "reduction_factor": 3,
        },
        "scheduler": "asha",
        "searcher": "optuna",
        "num_trials": trials,
        "trial": {"max_samples": 100 * reports, "report_samples": 100, "seed": seed},
    }
    (folder / "experiment.json").write_text(json.dumps(description))
    history = _Recorded()
    history.session(trials, time="2026-01-01T00:00:00+00:00")
    for number in range(1, trials + 1):
        params = {
            "lr": float(math.exp(random.uniform(math.log(0.4), math.log(4)))),
            "logits": float(random.uniform(2, 10)),
            "batch_size": int(random.choice([16, 32, 64])),
        }
        if num_dense:
            params["num_dense"] = int(random.choice([0, 2, 4]))
        share = 1 - params.get("num_dense", 0) / 10
        source = f"seed point {number}" if number <= 2 else "optuna"
        history.start(params, source=source, seed=seed)
        quality = random.uniform(0.3, 0.97)
        last = reports if number == 1 or num_dense else int(random.choice([1, 3, reports], p=[0.6, 0.25, 0.15]))
        for report in range(1, last + 1):
            reached = quality * (1 - math.exp(-report / 2))
            metrics = {
                "num_samples_seen": 100 * report,
                "fidelity": reached,
                "val_error": 0.02 * (1 - reached),
                "val_error_now": 0.02 * (1 - reached),
                "val_loss": 0.095 - 0.019 * reached,
                "val_loss_now": 0.095 - 0.019 * reached,
                "train_loss": 0.02 / report,
                "recovery": reached,
                "loss_improvement": 0.2 * reached,
                "changed_share": 0.05,
                "seconds": 2.0 * report,
                "failure": "",
                "done": report == reports,
                **({SHARE: share, COMMON_FIDELITY: reached * share} if num_dense else {}),
            }
            history.report(number, metrics, stopped=report == last < reports)
        history.checkpoint(number, f"trial_{number:05d}/checkpoint_000000", 100 * last)
    (folder / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in history.events))
    if finished:
        _finish(folder)
    if finished and num_dense:
        report = json.loads((folder / "final_evaluation.json").read_text())
        report["protocol"]["trial_id"] = pareto_front(history.searched)[-1].name
        (folder / "final_evaluation.json").write_text(json.dumps(report))
    return folder


def _finish(folder: Path) -> None:
    losses = {"dense": 0.076, "initial": 0.095, "learned": 0.0772}
    fidelities = {"dense": 1.0, "initial": 0.0, "learned": 0.91}
    models = {
        name: {
            "fidelity": fidelities[name],
            "fidelity_error": 0.002,
            "val_loss": loss,
            "test_loss": loss,
            "test_loss_by_timestep": [loss * 10 ** (-tenth / 5) for tenth in range(10)],
            "frechet_distance": 500 * loss,
            "kernel_distance": loss,
            "kernel_distance_error": loss / 20,
            "precision": 0.9 - loss,
            "recall": 0.8 - loss,
            "sparsity": 0.0 if name == "dense" else 0.5,
        }
        for name, loss in losses.items()
    }
    report = {
        "models": models,
        "fidelity": 0.91,
        "fidelity_error": 0.002,
        "recovery": 0.937,
        "recovery_error": 0.01,
        "loss_improvement": 0.19,
        "distance_to_dense": {"frechet_distance": {"value": 0.6, "standard_error": 0.2}, "kernel_distance": None},
        "protocol": {"sampler": "ddim"},
    }
    (folder / "final_evaluation.json").write_text(json.dumps(report))
    (folder / "best").mkdir()
    (folder / "best" / "config.json").write_text(json.dumps({"config": {"lr": 2.0}}))
    rows = [f"down_blocks.{layer}.conv,1024,True,0.5,{layer},{layer / 512}" for layer in range(8)]
    (folder / "best" / "layers.csv").write_text("\n".join(["layer,weights,learned,sparsity,changed,changed_share", *rows]))
    curve = [
        f"{count},down_blocks.{count}.conv,{1 - count / 8},{0.002 - count / 5e3},{0.91 + count / 100}" for count in range(9)
    ]
    header = "num_dense,layers,sparse_multiply_adds_share,val_error,fidelity"
    (folder / "best" / "dense_curve.csv").write_text("\n".join([header, *curve]))
    for name in losses:
        images = torch.arange(16 * 64, dtype=torch.int64).remainder(256).to(torch.uint8).view(16, 1, 8, 8)
        save_grid(images, folder / "best" / f"samples_{name}.png")
