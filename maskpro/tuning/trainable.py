"""One trial as a Ray Tune Trainable around MaskTrainer."""

from __future__ import annotations

import faulthandler
import math
import sys
import time
import traceback
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray.exceptions import RayError
from ray.tune import Trainable

from maskpro.curves import Curves
from maskpro.fidelity import fidelity
from maskpro.metrics import loss_improvement, recovery
from maskpro.objectives import HeldOutMeans, Shelf
from maskpro.runs import MaskFormat, RunCache, build_trainer
from maskpro.schedule.checkpoints import read_counters, read_part, write_checkpoint
from maskpro.schedule.history import COMMON_FIDELITY, METRIC, PARTS, SHARE, STOPPED_PARTS
from maskpro.schedule.rungs import rung_lr
from maskpro.trainer import MaskTrainer, NonFiniteLossError
from maskpro.trainer_config import TrainerConfig
from maskpro.tuning.adapters import BUDGET, CHECKPOINT, FOLDER, NUMBER, PROMOTED, SEED, open_checkpoint
from maskpro.tuning.shared import (
    RayShelf,
    SharedValues,
    TrialContext,
    mask_format,
    prepare_process,
)

# A failed trial reports this many times the initial mask's error: finite, and worse than any trial that learned.
FAILURE_PENALTY = 10.0


class MaskTrainable(Trainable):
    """Learns one mask; reports every `report_samples` calibration samples, for the driver and as curves for TensorBoard."""

    def setup(
        self, config: dict[str, Any], context: TrialContext | None = None, shared: SharedValues | None = None
    ) -> None:
        """Take the shared values, then start the trial."""
        if context is None or shared is None:
            raise ValueError("context or shared is None; allowed: both, given with tune.with_parameters")
        self._context, self._shared = context, shared
        self._device = prepare_process(context)
        self._cache = RunCache(
            validation_precision=context.validation_precision,
            shares=dict(shared.timestep_shares),
            initial=dict(shared.initial),
            shelf=self._shelf,
        )
        self._trainer: MaskTrainer | None = None
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this actor; only the dense network and the shared values are kept."""
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        context = self._context
        self._trainer = None  # frees the last trial's memory before the next one takes its own
        self._unbuilt: Exception | None = None
        self._seconds = 0.0
        self._earlier_samples = 0  # seen in the trial's earlier runs
        settings = dict(config)
        own = (NUMBER, FOLDER, SEED, CHECKPOINT, PROMOTED, BUDGET)
        _, folder, seed, checkpoint, promoted, budget = (settings.pop(name) for name in own)
        self._curves = Curves(f"{context.storage}/{folder}", settings)
        self._initial = next(iter(self._shared.initial.values()))
        self._share: float | None = None
        try:
            self._build(settings, seed, budget)
        except Exception as error:
            if may_pass(error):
                raise
            self._unbuilt = error  # the trial's first step tells of it
            return
        if checkpoint:
            with open_checkpoint(context.storage, checkpoint).as_directory() as kept:
                if promoted and budget:  # a run of its own begins; only what the trial has cost is carried on
                    counters = read_counters(Path(kept))
                    self._seconds = counters["seconds"]
                    # Older checkpoints have no samples of earlier runs.
                    self._earlier_samples = counters.get("earlier_samples", 0) + counters["trainer"]["num_samples_seen"]
                else:
                    self._load(Path(kept), STOPPED_PARTS if promoted else PARTS)

    def _build(self, settings: dict[str, Any], seed: int, budget: int | None) -> None:
        context = self._context
        form = mask_format(context, settings)
        targets = split_targets(settings.pop("targets", None)) or context.targets
        whole = mask_format(context, settings | {"num_dense": 0})
        for name in (*MaskFormat._fields, "num_dense"):
            settings.pop(name, None)
        budget_samples = budget or context.max_samples
        trainer_config = TrainerConfig(**settings, budget_samples=budget_samples, seed=seed)
        scaled = rung_lr(
            trainer_config.lr,
            budget=budget_samples,
            max_samples=context.max_samples,
            exponent=context.rung_lr_exponent,
        )
        self._unscaled_lr = trainer_config.lr
        trainer_config = replace(trainer_config, lr=scaled)
        self._initial = self._shared.initial[form]
        self._share = context.sparse_shares.get(form)
        self._whole_initial = self._shared.initial.get(whole)
        self._trainer = build_trainer(
            context.workload,
            trainer_config,
            form,
            seed=context.seed,
            device=self._device,
            targets=targets,
            cache=self._cache,
        )

    def _running_trainer(self) -> MaskTrainer:
        assert self._trainer is not None
        return self._trainer

    def _shelf(self, name: Hashable, seed: int) -> Shelf | None:
        """A shared table; it belongs to the search's own seed."""
        keeper = self._shared.keeper
        return RayShelf(keeper, name) if keeper is not None and seed == self._context.seed else None

    def step(self) -> dict[str, Any]:
        """Train on the next `report_samples` samples, validate, and add the report to the trial's curves."""
        metrics = self._report()
        self._curves.add(metrics)
        return metrics

    def _report(self) -> dict[str, Any]:
        if self._unbuilt is not None:
            return self._failed(self._unbuilt, 0)
        started = time.monotonic()
        trainer = self._running_trainer()
        timeout = self._context.trial_timeout
        try:
            if timeout is not None:  # it ends this process, also where Python hangs
                faulthandler.dump_traceback_later(timeout, exit=True, file=sys.__stderr__ or sys.stderr)
            # Train to the next multiple of the unit: a resumed trial then reports at the same samples.
            unit = self._context.report_samples
            losses = trainer.train(unit - trainer.num_samples_seen % unit)
            now = trainer.validate()
        except Exception as error:
            if may_pass(error):
                raise
            return self._failed(error, trainer.num_samples_seen)
        finally:
            if timeout is not None:
                faulthandler.cancel_dump_traceback_later()
        self._seconds += time.monotonic() - started
        return self._metrics(trainer, losses.mean().item() if len(losses) else math.nan, now)

    def _failed(self, error: Exception, samples: int) -> dict[str, Any]:
        """The last report of a trial that would end so each time.

        The scheduler and the searcher need a number to judge; the failure itself is reported beside it.
        """
        text = " ".join(str(error).split())[:200]
        if isinstance(error, torch.OutOfMemoryError):
            text = f"out of memory with one sample at a time; allowed: more of the GPU (--gpus-per-trial): {text}"
        elif not isinstance(error, NonFiniteLossError):
            traceback.print_exception(error)  # in the log of this process
            text = f"{type(error).__name__}: {text}"
        elif self._running_trainer().config.lr != self._unscaled_lr:
            text += f" (this run's, scaled by rung_lr_exponent from the trial's lr {self._unscaled_lr:g})"
        return {
            "num_samples_seen": samples,
            "num_samples_trained": self._earlier_samples + samples,
            METRIC: FAILURE_PENALTY * abs(self._initial.error),
            **({} if self._share is None else {SHARE: self._share}),
            "failure": text,
            "done": True,
        }

    def _metrics(self, trainer: MaskTrainer, train_loss: float, now: HeldOutMeans) -> dict[str, Any]:
        initial = self._initial
        # Lowest validated error, not clamped at the initial mask's: else harmful and idle trials would tie and never stop.
        lowest = trainer.lowest or now
        reached = fidelity(initial.error, lowest.error)
        recovered = recovery(initial.loss, lowest.loss, self._shared.dense_val_loss)
        return {
            "num_samples_seen": trainer.num_samples_seen,
            "num_samples_trained": self._earlier_samples + trainer.num_samples_seen,
            "fidelity": math.nan if reached is None else reached,
            METRIC: lowest.error,
            **self._shared_figures(lowest),
            "val_error_now": now.error,
            "best_val_error": trainer.best.error,
            "initial_val_error": initial.error,
            "val_loss": lowest.loss,
            "val_loss_now": now.loss,
            "best_val_loss": trainer.best.loss,
            "initial_val_loss": initial.loss,
            "train_loss": train_loss,
            "recovery": math.nan if recovered is None else recovered,
            "loss_improvement": loss_improvement(initial.loss, lowest.loss),
            "seconds": self._seconds,
            **trainer.statistics(),
            "failure": "",
            # A run up to a rung is not the trial's end.
            "done": trainer.finished and trainer.num_samples_seen >= self._context.max_samples,
        }

    def _shared_figures(self, lowest: HeldOutMeans) -> dict[str, float]:
        """What compares trials of different num_dense, where that is searched."""
        if self._share is None:
            return {}
        common = None if self._whole_initial is None else fidelity(self._whole_initial.error, lowest.error)
        return {SHARE: self._share, COMMON_FIDELITY: math.nan if common is None else common}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trainer's state and its mask as safetensors and JSON."""
        if self._unbuilt is not None:  # nothing of a failed trial is kept
            write_checkpoint(Path(checkpoint_dir), {}, self._cost())
            return
        parts, counters = self._running_trainer().state_dict()
        write_checkpoint(Path(checkpoint_dir), parts, {**self._cost(), "trainer": counters})
        self._curves.write()

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Resume from `save_checkpoint`, bit for bit."""
        self._load(Path(checkpoint_dir), PARTS)

    def _load(self, folder: Path, names: tuple[str, ...]) -> None:
        counters = read_counters(folder)
        self._running_trainer().load_state_dict({name: read_part(folder, name) for name in names}, counters["trainer"])
        self._seconds = counters["seconds"]
        self._earlier_samples = counters.get("earlier_samples", 0)

    def _cost(self) -> dict[str, Any]:
        return {"seconds": self._seconds, "earlier_samples": self._earlier_samples}


def may_pass(error: Exception) -> bool:
    """Whether a trial may do better in another process: the fault of a machine, a storage, a GPU, or of Ray.

    Tune starts such a trial again. Any other exception would come again, as a trial repeats itself bit for bit.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    of_gpu = type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
    return of_gpu or isinstance(error, OSError | MemoryError | RayError)


def split_targets(text: str | None) -> tuple[str, ...]:
    """Parts of layer names from a text with spaces between them, as in the original."""
    return tuple(text.split()) if text else ()
