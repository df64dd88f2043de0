"""One trial as a Ray Tune Trainable around MaskTrainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.tune import Trainable
from safetensors.torch import load_file, save_file

from maskpro.evaluation.comparison import loss_improvement, recovery
from maskpro.files import read_json, write_json
from maskpro.initial_masks import magnitude_masked_model
from maskpro.masked_model import MaskedModel
from maskpro.objectives import SampleValues, baseline_losses, teacher_outputs
from maskpro.pattern import NMPattern, parse_layout
from maskpro.trainer import MaskTrainer, NonFiniteLossError, Target, TrainerConfig
from maskpro.workloads import Workload

TENSORS_FILE = "state.safetensors"
COUNTERS_FILE = "state.json"

# A failed trial is told as this many times the initial mask's loss: finite, and worse than any trial that learned.
FAILURE_PENALTY = 10.0


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """What all trials of a search share; handed to the actors through Ray's object store."""

    workload: Workload
    pattern: str
    layout: str
    targets: tuple[str, ...]
    max_samples: int
    report_samples: int
    seed: int


class MaskTrainable(Trainable):
    """Learns one mask; reports every `report_samples` calibration samples."""

    def setup(self, config: dict[str, Any], context: TrialContext | None = None) -> None:
        """Build what trials share, then the trial."""
        if context is None:
            raise ValueError("context is None; allowed: a TrialContext, given with tune.with_parameters")
        self._context = context
        workload = context.workload
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._dense = workload.model.to(device)
        self._objective = workload.training_objective(seed=context.seed, device=device)
        self._validation = workload.held_out_samples("validation", device)
        self._teacher = teacher_outputs(self._dense, self._objective)
        self._baselines: dict[Target, SampleValues] = {}
        # Judged here, on the trials' own device: another one rounds differently.
        self._dense_val_loss = self._validation.mean_loss(self._dense)
        self._initial_val_loss = self._validation.mean_loss(self._masked_model().model)
        self._trainer: MaskTrainer | None = None
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this actor; only the dense network and its outputs are kept."""
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        context = self._context
        self._trainer = None  # frees the last trial's memory before the next one takes its own
        trainer_config = TrainerConfig(**config, budget_samples=context.max_samples, seed=context.seed)
        self._trainer = MaskTrainer(
            trainer_config,
            masked=self._masked_model(),
            objective=self._objective,
            validation=self._validation,
            teacher=self._teacher,
            baseline=self._baseline(trainer_config),
            initial_val_loss=self._initial_val_loss,
        )

    def _running_trainer(self) -> MaskTrainer:
        assert self._trainer is not None
        return self._trainer

    def _baseline(self, config: TrainerConfig) -> SampleValues | None:
        """The initial mask's losses, kept from trial to trial; only the policy gradient needs them."""
        if config.estimator != "policy_gradient":
            return None
        if config.target not in self._baselines:
            teacher = self._teacher if config.target == "teacher" else None
            self._baselines[config.target] = baseline_losses(self._masked_model().model, self._objective, teacher)
        return self._baselines[config.target]

    def _masked_model(self) -> MaskedModel:
        context = self._context
        return magnitude_masked_model(
            self._dense,
            pattern=NMPattern.parse(context.pattern),
            layout=parse_layout(context.layout),
            targets=context.targets,
        )

    def step(self) -> dict[str, Any]:
        """Train on the next `report_samples` samples and validate."""
        trainer = self._running_trainer()
        initial = self._initial_val_loss
        try:
            train_loss = trainer.train(self._context.report_samples).mean().item()
            val_loss_now = trainer.validate()
        except NonFiniteLossError as error:
            # The scheduler and the searcher need a number to pass judgement on; the failure itself stands beside it.
            return {
                "num_samples_seen": trainer.num_samples_seen,
                "val_loss": FAILURE_PENALTY * abs(initial),
                "failure": str(error),
                "done": True,
            }
        # Of validated masks alone: clamped at the initial mask, harmful and idle trials would tie and none be stopped.
        val_loss = val_loss_now if trainer.lowest_val_loss is None else trainer.lowest_val_loss
        recovered = recovery(initial, val_loss, self._dense_val_loss)
        return {
            "num_samples_seen": trainer.num_samples_seen,
            "val_loss": val_loss,
            "val_loss_now": val_loss_now,
            "train_loss": train_loss,
            "recovery": math.nan if recovered is None else recovered,
            "loss_improvement": loss_improvement(initial, val_loss),
            "changed_share": trainer.changed_share(),
            "failure": "",
            "done": trainer.finished,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trainer's state, and the masks it stands for, as safetensors and JSON."""
        tensors, counters = self._running_trainer().state_dict()
        save_file(tensors, Path(checkpoint_dir) / TENSORS_FILE)
        write_json(Path(checkpoint_dir) / COUNTERS_FILE, counters)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continue from `save_checkpoint`."""
        tensors = load_file(Path(checkpoint_dir) / TENSORS_FILE)
        self._running_trainer().load_state_dict(tensors, read_json(Path(checkpoint_dir) / COUNTERS_FILE))
