"""The steps of the original pipeline as functions: prune, extract, baseline, train, evaluate. Each fills a new folder."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskpro.dense_layers import dense_layers, dense_rows
from maskpro.errors import MaskproError
from maskpro.fidelity import advice, fidelity, format_share
from maskpro.files import atomic_folder, check_new, write_json
from maskpro.initial_masks import InitialMaskMethod, extract_masks, magnitude_masked_model, one_shot_mask
from maskpro.layer_statistics import layer_statistics
from maskpro.mask_file import MaskFile, inspect_mask_file, load_mask_file, save_mask_file
from maskpro.masked_model import MaskedModel, layer_problems, maskable_layers, model_hash
from maskpro.metrics import loss_improvement, masked_copy, recovery, sparsity
from maskpro.objectives import HeldOutMeans, HeldOutSamples
from maskpro.pattern import Layout, NMPattern
from maskpro.precision import check_precision
from maskpro.runs import MaskFormat, RunCache, build_trainer
from maskpro.trackers import Log, no_log
from maskpro.trainer import MaskTrainer, logit_statistics
from maskpro.trainer_config import TrainerConfig
from maskpro.workload import LoadedNetwork, Say, Workload
from maskpro.workloads import DEFAULT_WORKLOAD, workload_kind

MASKS_FILE = "masks.safetensors"
# Of a training run, what its mask file tells.
_PROVENANCE = ("model", "config", "targets", "fidelity", "val_loss", "recovery", "dense_layers")

# Held-out samples that `layer_statistics` judges each layer by.
_STATISTICS_SAMPLES = 256


def parse_device(text: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise MaskproError(f"device is {text!r}; allowed: auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise MaskproError(f"device is {text!r}; allowed: auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MaskproError(f"device is {text!r}, but torch finds no GPU here; allowed: cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MaskproError(f"device is {text!r}; allowed: cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def load_masks_for(workload: Workload, path: Path) -> MaskFile:
    """A mask file, checked to have been made for the workload's model.

    Raises:
        MaskproError: the file is damaged, or for another model.
    """
    content = load_mask_file(path)
    check_base(content, path, workload)
    MaskedModel(
        copy.deepcopy(workload.model), pattern=content.pattern, layout=content.layout, covered=content.masks.keys()
    ).groups(content.masks)
    return content


def check_base(content: MaskFile, path: Path, workload: Workload) -> None:
    """Raise where a mask file names other weights than those of the workload's model as its base."""
    found = workload.fingerprint()
    if content.base_hash not in ("", found):
        raise MaskproError(
            f"mask file {path} is for another model (hash {content.base_hash[:12]}; "
            f"{workload.model_source} has {found[:12]}); name its model with --model"
        )


def magnitude_mask_file(
    workload: Workload, *, pattern: NMPattern, layout: Layout, covered: Collection[str] | None = None
) -> MaskFile:
    """The magnitude mask of the workload's network, or of its `covered` layers, as a mask file's content."""
    masked = magnitude_masked_model(workload.model, pattern=pattern, layout=layout, covered=covered)
    return MaskFile(
        pattern=pattern,
        layout=layout,
        base_hash=workload.fingerprint(),
        masks=masked.layer_masks(),
        provenance={"method": "magnitude", "model": workload.model_source},
    )


def prune(
    workload: Workload, output: Path, *, pattern: NMPattern, layout: Layout, method: InitialMaskMethod, seed: int = 0
) -> nn.Module:
    """Prune the dense network to n:m in one shot and write it as its own library does; its weights are zeroed, not changed.

    Raises:
        MaskproError: `output` exists.
    """
    check_new(output, "output folder")
    masked = MaskedModel(copy.deepcopy(workload.model), pattern=pattern, layout=layout)
    objective = workload.training_objective(seed=seed, device=torch.device("cpu"))
    masked.set_mask(one_shot_mask(masked, method, objective=objective, generator=torch.Generator().manual_seed(seed)))
    with atomic_folder(output) as folder:
        workload.save(folder, masked.model)
    return masked.model


def extract(
    pruned_model: str,
    output: Path,
    *,
    pattern: NMPattern,
    layout: Layout,
    original_model: str | None = None,
    nearest: bool = False,
    ema: bool = False,
    workload: str = DEFAULT_WORKLOAD,
    say: Say = print,
) -> MaskFile:
    """Write `masks.safetensors` with the masks of a pruned network's zeros; it is of the kind of that workload.

    Without the original model the file names no base model, and later checks see layer names and shapes only. With
    `nearest`, which needs it, zeros that are not n:m become the nearest n:m masks (`extract_masks`). With `ema` the
    original model's weights are their average over the training.

    Raises:
        MaskproError: no zeros, zeros that are not n:m, an original of another architecture, or `output` exists.
    """
    if nearest and original_model is None:
        raise MaskproError("nearest is True without original_model; allowed: with it (its weights decide between masks)")
    load = workload_kind(workload).load
    found = _told(pruned_model, load(pruned_model), say)
    pruned = found.model
    original = None if original_model is None else _told(original_model, load(original_model, ema=ema), say).model
    if original is not None:
        _check_same_architecture(pruned, original, f"model_path {pruned_model}", str(original_model))
    try:
        nearest_to = original if nearest else None
        masks = extract_masks(pruned, pattern=pattern, layout=layout, dense=original, nearest_to=nearest_to)
    except MaskproError as error:
        if nearest or "do not keep exactly" not in str(error):
            raise
        raise MaskproError(f"{error}; --nearest with --original-model takes the nearest {pattern} masks") from error
    zeros = maskable_layers(pruned)
    differing = sum(int((mask != (zeros[name] != 0)).sum()) for name, mask in masks.items())
    total = sum(mask.numel() for mask in masks.values())
    content = MaskFile(
        pattern=pattern,
        layout=layout,
        base_hash="" if original is None else model_hash(original),
        masks=masks,
        provenance={
            "extracted_from": pruned_model,
            "share_of_positions_that_differ_from_the_zeros": differing / total,
            "dense_layers": dense_layers(pruned, masks, pattern=pattern, layout=layout, run=found.run).describe(),
        },
    )
    with atomic_folder(output) as folder:
        save_mask_file(folder / MASKS_FILE, content)
    return content


def verify(path: Path, workload: Workload | None = None) -> dict[str, str]:
    """Layer name to "" or to what is wrong with its mask, in itself or for the workload's model.

    Layers of the model that the file leaves out are none of its problems: they stay dense.

    Raises:
        MaskproError: the file is too damaged to tell its layers apart, or was made for other weights than the model's.
    """
    content, problems = inspect_mask_file(path)
    if workload is not None:
        check_base(content, path, workload)
        shapes = {name: weight.shape for name, weight in maskable_layers(workload.model).items() if name in content.masks}
        problems = layer_problems(content.masks, shapes, content.pattern, content.layout) | problems
    return {name: problems.get(name, "") for name in content.masks}


def unmasked_layers(path: Path, workload: Workload | None = None) -> dict[str, str]:
    """Layer name to why it stays dense, of the maskable layers that a mask file leaves out.

    Without the workload they are those that the file itself names.
    """
    content, _ = inspect_mask_file(path)
    if workload is None:
        named = content.provenance.get("dense_layers", {}).get("layers", [])
        return {row["layer"]: row["why"] for row in named}
    left = workload.dense_layers(content.masks, pattern=content.pattern, layout=content.layout)
    return {row.layer: row.why for row in left.layers}


def load_masked_checkpoint(
    workload: Workload, source: str, *, pattern: NMPattern, layout: Layout, say: Say = print
) -> tuple[nn.Module, list[str]]:
    """A network whose weights are already masked, and the names of its masked layers.

    Groups keep at most n: where the dense weights hold zeros of their own, a mask may keep these.

    Raises:
        MaskproError: it is of another architecture than the workload's, holds no zeros, or its zeros are not n:m.
    """
    model = _told(source, workload.load_network(source), say).model
    _check_same_architecture(model, workload.model, f"checkpoint_path {source}", workload.model_source)
    masks = extract_masks(model, pattern=pattern, layout=layout, dense=workload.model)
    return model, list(masks)


def _told(source: str, found: LoadedNetwork, say: Say) -> LoadedNetwork:
    """The network, once it was said what was converted or left out when it was loaded."""
    for note in found.notes:
        say(f"model {source}: {note}")
    return found


def _check_same_architecture(model: nn.Module, expected: nn.Module, what: str, source: str) -> None:
    shapes, wanted = ({name: value.shape for name, value in part.state_dict().items()} for part in (model, expected))
    if shapes != wanted:
        raise MaskproError(f"{what} is of another architecture than {source}")


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
    """Noise losses of the original weights under a mask, over the calibration samples.

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
    initial: MaskFile | InitialMaskMethod = "magnitude",
    device: torch.device,
    save_logits: bool = False,
    statistics: bool = True,
    say: Say = print,
    log: Log = no_log,
) -> dict[str, Any]:
    """Learn one mask, as one trial of a search does, and write what the original wrote.

    The folder holds `checkpoint/` (masked, as its own library loads it), `masks.safetensors`,
    `loss_training.npy` (mean training loss of each step), `loss_improvements.npy` (initial minus current held-out loss at
    each validation), `training_summary.json`, `training_curves.png`, `layers.csv` (`layer_statistics`, a row per learned
    layer), and with `save_logits` `logits/`.

    Args:
        initial: initial mask, also choosing the layers that are masked; or a one-shot method, for all maskable layers.
        statistics: write `layers.csv`, which takes a pass over 256 held-out samples for every layer.
        log: takes losses, changed positions, logits and seconds at each validation.

    Returns: the content of `training_summary.json`, all of it about the mask that is written but for `last_logits`.
    """
    check_precision(config.precision, device)
    dense, cache = workload.model.to(device), RunCache()
    masks = initial if isinstance(initial, MaskFile) else None
    form = MaskFormat(str(pattern), layout, "magnitude" if isinstance(initial, MaskFile) else initial)
    trainer = build_trainer(
        workload, config, form, seed=config.seed, device=device, targets=targets, masks=masks, cache=cache
    )
    masked, validation = trainer.masked, cache.validation_of(workload, device, config.precision)
    with atomic_folder(output) as folder:
        losses, curve, seconds = _run(trainer, workload.budgets.report_samples, say, log)
        before, after = trainer.initial, trainer.best
        if config.precision != "float32":  # the figures that are kept are not of rounded passes
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
        dense_loss = validation.judge(dense).means().loss
        left = workload.dense_layers([layer.name for layer in masked.layers], pattern=pattern, layout=layout)
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
            # Where the run ended, which need not be the mask that is kept.
            "last_logits": {"changed_share": trainer.changed_share(), **logit_statistics(trainer.logits)},
            "device": str(device),
        }
        content = MaskFile(
            pattern=pattern,
            layout=layout,
            base_hash=model_hash(dense),
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


def evaluate(
    workload: Workload,
    output: Path,
    *,
    learned: nn.Module,
    covered: Collection[str] | None = None,
    pattern: NMPattern,
    layout: Layout,
    initial: MaskFile | None = None,
    test_samples: int | None = None,
    options: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    device: torch.device,
    say: Say = print,
) -> dict[str, Any]:
    """Compare dense, initial (default: magnitude) and learned networks; pictures and `report.json` in `output`.

    An evaluation that was interrupted goes on from what it left in the folder `cache`.

    Args:
        covered: the layers that the learned mask is of, to which the initial mask is held; None: all that can have one.
        test_samples: of the losses and of fidelity; None: the workload's.
        options: how networks are judged (`Workload.evaluation`).

    Raises:
        MaskproError: `initial` lacks one of these layers, or `output` exists.
    """
    if test_samples is not None:
        workload = replace(workload, budgets=replace(workload.budgets, test_samples=test_samples))
    evaluation = workload.evaluation(options or {})
    workload = evaluation.workload
    first = initial or magnitude_mask_file(workload, pattern=pattern, layout=layout, covered=covered)
    if covered is not None:
        first = _of_layers(first, covered, say)
    models = {
        "dense": workload.model,
        "initial": masked_copy(workload.model, first.masks, first.pattern, first.layout),
        "learned": learned,
    }
    with atomic_folder(output) as folder:
        compared = evaluation.evaluate(models, device=device, folder=folder, cache=cache, reference_cache=cache, say=say)
        report = evaluation.compare(compared, "learned")
        left = workload.dense_layers(first.masks, pattern=first.pattern, layout=first.layout)
        if left.layers:
            say(left.line())
        report["dense_layers"] = left.describe()
        report["parameters"] = {name: parameter_statistics(model) for name, model in models.items()}
        write_json(folder / "report.json", report)
    return report


def _of_layers(initial: MaskFile, covered: Collection[str], say: Say) -> MaskFile:
    """An initial mask of the learned mask's layers alone: another comparison would credit the mask with dense layers."""
    lacking = [name for name in covered if name not in initial.masks]
    if lacking:
        raise MaskproError(
            f"initial mask lacks {len(lacking)} of the learned mask's {len(covered)} layers, such as {lacking[0]}; "
            "allowed: one of the same layers (or none: the magnitude mask)"
        )
    further = len(initial.masks) - len(covered)
    if further:
        say(f"the initial mask is held to the learned mask's {len(covered)} layers; {further} others of it stay dense")
    return replace(initial, masks={name: mask for name, mask in initial.masks.items() if name in covered})


def parameter_statistics(model: nn.Module) -> dict[str, int]:
    """Number of parameters and of those that are not zero."""
    parameters = list(model.parameters())
    nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in parameters)
    return {"total": sum(parameter.numel() for parameter in parameters), "nonzero": nonzero}


def _means(held_out: HeldOutSamples, masked: MaskedModel, mask: Tensor) -> HeldOutMeans:
    masked.set_mask(mask)
    return held_out.judge(masked.model).means()


def _run(
    trainer: MaskTrainer, report_samples: int, say: Say, log: Log
) -> tuple[Tensor, list[tuple[int, HeldOutMeans]], float]:
    """Train to the budget; losses of the steps, (samples seen, held-out figures) of the validations, and seconds."""
    started = time.monotonic()
    # Whole steps only, so that the number of steps is the one asked for.
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
    left.set(title="Training loss of each step", xlabel="samples seen", ylabel=f"MSE to the {summary['config']['target']}")
    right.plot(
        [seen for seen, _ in curve],
        [means.error for _, means in curve],
        color="#0072B2",
        marker="o",
        markersize=3,
        label="learned mask",
    )
    right.axhline(initial, color="#D55E00", linestyle="--", label="initial mask")
    right.set(
        title="Held-out error", xlabel="samples seen", ylabel="squared difference from the dense output", ylim=(0, None)
    )
    right.legend()
    figure.savefig(path, dpi=120)
