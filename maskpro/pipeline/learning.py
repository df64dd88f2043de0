"""Learning one mask outside a search, and the losses at its start: train and baseline."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from maskpro.dense_layers import dense_rows
from maskpro.errors import MaskproError
from maskpro.fidelity import advice, fidelity, format_share
from maskpro.files import atomic_folder, check_new, write_json
from maskpro.initial_masks import InitialMaskMethod
from maskpro.layer_statistics import layer_statistics
from maskpro.machine.process import Say
from maskpro.mask_file import MaskFile, save_mask_file
from maskpro.masked_model import MaskedModel, model_hash
from maskpro.metrics import loss_improvement, masked_copy, recovery, sparsity
from maskpro.objectives import HeldOutMeans, HeldOutSamples
from maskpro.pattern import Layout, NMPattern
from maskpro.pipeline.masks import MASKS_FILE
from maskpro.precision import check_precision
from maskpro.runs import MaskFormat, RunCache, build_trainer
from maskpro.trackers import Log, no_log
from maskpro.trainer import MaskTrainer, logit_statistics
from maskpro.trainer_config import TrainerConfig
from maskpro.workload import Workload

# Entries of a training run's summary that its mask file also holds.
_PROVENANCE = ("model", "config", "targets", "fidelity", "val_loss", "recovery", "dense_layers")
# Held-out samples that `layer_statistics` judges each layer by.
_STATISTICS_SAMPLES = 256


def baseline(
    workload: Workload,
    output: Path,
    *,
    masks: MaskFile,
    dataset_size: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    max_batches: int | None = None,
) -> dict[str, Any]:
    """Losses, against the data, of the original weights under a mask, over the calibration samples.

    Writes `baseline_losses.npy` (mean loss of each batch) and `baseline.json`; returns the latter.
    """
    TrainerConfig(dataset_size=dataset_size, batch_size=batch_size, seed=seed)
    check_new(output, "output folder")
    if max_batches is not None and max_batches < 1:
        raise MaskproError(f"max_batches is {max_batches}; allowed: a whole number of at least 1")
    model = masked_copy(workload.model, masks.masks, masks.pattern, masks.layout).to(device)
    objective = workload.training_objective(seed=seed, device=device)
    losses = []
    with torch.no_grad():
        for indices in torch.arange(dataset_size).split(batch_size)[:max_batches]:
            batch = objective.batch(indices)
            losses.append(objective.losses(objective.predict(model, batch), batch).mean().item())
    report = {
        "model": workload.model_source,
        "pattern": str(masks.pattern),
        "layout": masks.layout,
        "dataset_size": dataset_size,
        "batch_size": batch_size,
        "num_batches": len(losses),
        "seed": seed,
        "mean_loss": float(np.mean(losses)),
        "std_between_batches": float(np.std(losses)),
    }
    with atomic_folder(output) as folder:
        np.save(folder / "baseline_losses.npy", np.array(losses))
        write_json(folder / "baseline.json", report)
    return report


def train(
    workload: Workload,
    output: Path,
    *,
    config: TrainerConfig,
    pattern: NMPattern,
    layout: Layout,
    targets: tuple[str, ...] = ("all",),
    dense: tuple[str, ...] = (),
    initial: MaskFile | InitialMaskMethod = "magnitude",
    device: torch.device,
    save_logits: bool = False,
    statistics: bool = True,
    say: Say = print,
    log: Log = no_log,
) -> dict[str, Any]:
    """Learn one mask, as one trial of a search does, and write the original's files.

    The folder holds `checkpoint/` (masked, as its own library loads it), `masks.safetensors`,
    `loss_training.npy` (mean training loss of each step), `loss_improvements.npy` (initial minus current held-out loss at
    each validation), `training_summary.json`, `training_curves.png`, `layers.csv` (`layer_statistics`, a row per learned
    layer), and with `save_logits` `logits/`.

    Args:
        dense: parts of the names of layers that stay dense by choice; with a one-shot method.
        initial: initial mask, which also sets the masked layers; or a one-shot method, for all maskable layers.
        statistics: write `layers.csv`, with a pass over 256 held-out samples for every layer.
        log: receives losses, changed positions, logits and seconds at each validation.

    Returns: the content of `training_summary.json`. All but `last_logits` describes the mask that is written.
    """
    check_precision(config.precision, device)
    network, cache = workload.model.to(device), RunCache()
    masks = initial if isinstance(initial, MaskFile) else None
    form = MaskFormat(str(pattern), layout, "magnitude" if isinstance(initial, MaskFile) else initial, dense)
    trainer = build_trainer(
        workload, config, form, seed=config.seed, device=device, targets=targets, masks=masks, cache=cache
    )
    masked, validation = trainer.masked, cache.validation_of(workload, device, config.precision)
    with atomic_folder(output) as folder:
        losses, curve, seconds = _run(trainer, workload.budgets.report_samples, say, log)
        before, after = trainer.initial, trainer.best
        if config.precision != "float32":  # the kept figures come from float32 passes
            validation = workload.held_out_samples("validation", device)
            before, after = (_means(validation, masked, mask) for mask in (trainer.initial_mask, trainer.best_mask))
        if statistics:
            say("what each layer contributes: a pass over held-out samples for every layer")
            rows = layer_statistics(
                masked,
                initial=trainer.initial_mask,
                learned=trainer.best_mask,
                entropies=trainer.entropies(),
                held_out=validation.first(_STATISTICS_SAMPLES),
            )
            pd.DataFrame(rows + dense_rows(masked)).to_csv(folder / "layers.csv", index=False)
        masked.set_mask(trainer.best_mask)
        dense_loss = validation.judge(network).means().loss
        left = workload.dense_layers_of(masked)
        if left.layers:
            say(left.line())
        summary = {
            "model": workload.model_source,
            "config": asdict(config),
            "pattern": str(pattern),
            "layout": layout,
            "targets": list(targets),
            "initial_mask": initial if isinstance(initial, str) else initial.provenance,
            "num_steps": trainer.num_steps,
            "num_samples_seen": trainer.num_samples_seen,
            "seconds": seconds,
            "dense_val_loss": dense_loss,
            "fidelity": fidelity(before.error, after.error),
            "initial_val_error": before.error,
            "val_error": after.error,
            "initial_val_loss": before.loss,
            "val_loss": after.loss,
            "recovery": recovery(before.loss, after.loss, dense_loss),
            "loss_improvement": loss_improvement(before.loss, after.loss),
            "changed_share": trainer.changed_share(trainer.best_mask),
            "sparsity": sparsity(masked.model),
            "dense_layers": left.describe(),
            # The end of the run, whose mask need not be the kept one.
            "last_logits": {"changed_share": trainer.changed_share(), **logit_statistics(trainer.logits)},
            "device": str(device),
        }
        content = MaskFile(
            pattern=pattern,
            layout=layout,
            base_hash=model_hash(network),
            masks=masked.layer_masks(),
            provenance={name: summary[name] for name in _PROVENANCE},
        )
        save_mask_file(folder / MASKS_FILE, content)
        np.save(folder / "loss_training.npy", losses.numpy())
        np.save(folder / "loss_improvements.npy", trainer.initial.loss - np.array([means.loss for _, means in curve]))
        if save_logits:
            (folder / "logits").mkdir()
            tensors = {"logits": trainer.logits, "initial_mask": trainer.initial_mask, "best_mask": trainer.best_mask}
            save_file(
                {name: value.cpu().contiguous() for name, value in tensors.items()},
                folder / "logits" / "logits.safetensors",
            )
        _plot_curves(folder / "training_curves.png", losses, curve, trainer.initial.error, summary)
        (folder / "checkpoint").mkdir()
        workload.save(folder / "checkpoint", masked.model)
        write_json(folder / "training_summary.json", summary)
    hint = advice(
        fidelity(trainer.initial.error, trainer.best.error),
        initial_error=trainer.initial.error,
        last_error=curve[-1][1].error,
        changed_share=trainer.changed_share(),
    )
    if hint:
        say(hint)
    return summary


def _means(held_out: HeldOutSamples, masked: MaskedModel, mask: Tensor) -> HeldOutMeans:
    masked.set_mask(mask)
    return held_out.judge(masked.model).means()


def _run(
    trainer: MaskTrainer, report_samples: int, say: Say, log: Log
) -> tuple[Tensor, list[tuple[int, HeldOutMeans]], float]:
    """Train to the budget; returns losses of the steps, (samples seen, held-out figures) of validations, and seconds."""
    started = time.monotonic()
    # Whole steps only: the number of steps is then the requested one.
    step_samples = trainer.config.step_samples
    report_samples = math.ceil(report_samples / step_samples) * step_samples
    losses: list[Tensor] = []
    curve: list[tuple[int, HeldOutMeans]] = []
    while not trainer.finished:
        losses.append(trainer.train(report_samples))
        now = trainer.validate()
        curve.append((trainer.num_samples_seen, now))
        reached = fidelity(trainer.initial.error, now.error)
        values = {
            **({} if reached is None else {"fidelity": reached}),
            "train_loss": losses[-1].mean().item(),
            "val_loss": now.loss,
            "val_error": now.error,
            "loss_improvement": loss_improvement(trainer.initial.loss, now.loss),
            "seconds": time.monotonic() - started,
            **trainer.statistics(),
        }
        log(values, trainer.num_samples_seen)
        seen, budget = trainer.num_samples_seen, trainer.config.budget_samples
        left = (time.monotonic() - started) / seen * (budget - seen)
        say(
            f"{seen:,} of {budget:,} samples: training loss {values['train_loss']:.5f}, held-out fidelity "
            f"{format_share(reached)}, loss {now.loss:.5f} (initial {trainer.initial.loss:.5f}); about {left:.0f} s left"
        )
    return torch.cat(losses), curve, time.monotonic() - started


def _plot_curves(
    path: Path, losses: Tensor, curve: list[tuple[int, HeldOutMeans]], initial: float, summary: dict[str, Any]
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    seen = np.linspace(0, summary["num_samples_seen"], len(losses) + 1)[1:]
    left.plot(seen, losses.numpy(), color="#0072B2", linewidth=0.8)
    left.set(
        title="Training loss of each step", xlabel="samples seen", ylabel=f"loss, target {summary['config']['target']}"
    )
    right.plot(
        [seen for seen, _ in curve],
        [means.error for _, means in curve],
        color="#0072B2",
        marker="o",
        markersize=3,
        label="learned mask",
    )
    right.axhline(initial, color="#D55E00", linestyle="--", label="initial mask")
    right.set(title="Held-out error", xlabel="samples seen", ylabel="difference from the dense output", ylim=(0, None))
    right.legend()
    figure.savefig(path, dpi=120)
