"""The best trials' masks: their final evaluation, and a checkpoint that the network's own library loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from maskpro.dense_curve import dense_curve
from maskpro.dense_layers import dense_rows
from maskpro.fidelity import advice, fidelity, format_share
from maskpro.files import atomic_path, read_json, replaced_folder, write_json
from maskpro.layer_statistics import layer_changes
from maskpro.mask_file import MaskFile, save_mask_file
from maskpro.masked_model import MaskedModel
from maskpro.metrics import masked_copy
from maskpro.monitoring.driver_log import say
from maskpro.objectives import HeldOutMeans
from maskpro.pattern import PackedMask
from maskpro.runs import MaskFormat
from maskpro.schedule.checkpoints import read_counters, read_part
from maskpro.schedule.folder import (
    BEST_FOLDER,
    CONFIG_FILE,
    DENSE_CURVE_FILE,
    EVALUATION_FILE,
    EVALUATION_FOLDER,
    LAYERS_FILE,
    REFERENCE_FOLDER,
    SELECTION_FILE,
)
from maskpro.schedule.history import SHARE, TrialRecord
from maskpro.schedule.ranking import best_trials
from maskpro.schedule.state import Plan
from maskpro.trainer_config import TrainerConfig
from maskpro.tuning.experiment import Experiment
from maskpro.tuning.shared import initial_masked, mask_format
from maskpro.tuning.space import FORMAT
from maskpro.tuning.trainable import split_targets
from maskpro.workload_evaluation import PartMaker, make_parts

# Largest number of trials judged on the selection samples.
CONTENDERS = 5


def selected_trials(experiment: Experiment) -> list[TrialRecord]:
    """The best trials by their masks' error on the selection samples, as many as are to be evaluated.

    The first few by validation error are compared.

    Raises:
        MaskproError: no trial ran to its full budget without a failure.
    """
    count = experiment.search.options.promote_top_k
    history = experiment.history
    contenders = best_trials(history.searched, max(count, CONTENDERS), history.min_sparse_share)
    if len(contenders) == 1:
        return contenders
    errors = _selection_errors(experiment, contenders)
    return sorted(contenders, key=lambda record: errors[record.name])[:count]


def _selection_errors(experiment: Experiment, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Trial's name to its mask's error on the selection samples; kept in the experiment's folder."""
    search, path = experiment.search, experiment.folder / EVALUATION_FOLDER / SELECTION_FILE
    size = search.workload.budgets.selection_samples
    kept = read_json(path) if path.is_file() else {}
    # Errors on another number of samples belong to another set.
    errors: dict[str, float] = kept["errors"] if kept.get("num_samples") == size else {}
    missing = [record for record in records if record.name not in errors]
    if missing:
        say(f"judging the best {len(records)} trials on {size:,} held-out samples that took no part in the search")
        device = search.options.evaluation_device
        held_out = search.workload.held_out_samples("selection", device)
        for record in missing:
            errors[record.name] = held_out.judge(load_masks(experiment, record).model.to(device)).means().error
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"num_samples": size, "errors": errors})
    return errors


def confirmation_plans(experiment: Experiment) -> list[Plan]:
    """The best trials' parameters with fresh seeds, as many as requested."""
    options = experiment.search.options
    if not options.confirm_seeds:
        return []
    return [
        Plan(params=record.params, source=_confirms(record), seed=(options.seed + number) % 2**32)
        for record in selected_trials(experiment)
        for number in range(1, options.confirm_seeds + 1)
    ]


def promote(experiment: Experiment, *, make: PartMaker = make_parts) -> dict[str, Any]:
    """Evaluate the best trials, write `best/` of the one that is picked, and `final_evaluation.json`; returns the latter.

    The masks of the trial with the lowest validation error are written before the evaluation starts, so a failed
    evaluation never loses them. Finished evaluations of an earlier call are taken. One of several candidates is picked by
    figures with other randomness than the reported ones, because the lowest of several is also the luckiest.
    """
    search, folder = experiment.search, experiment.folder
    (best,) = best_trials(experiment.history.searched, 1, experiment.history.min_sparse_share)
    write_best(experiment, best)
    candidates = _candidates(experiment)
    if candidates[0][0] is not best:
        best = candidates[0][0]
        write_best(experiment, best)
    reached = format_share(_kept_figures(experiment, best)["fidelity"])
    say(f"best trial: {best.number} (validation fidelity {reached}); evaluating on test samples")
    evaluate = partial(
        search.evaluation.evaluate,
        device=search.options.evaluation_device,
        folder=folder / EVALUATION_FOLDER,
        cache=folder / EVALUATION_FOLDER / "cache",
        # All experiments beside this one share it.
        reference_cache=folder.parent / REFERENCE_FOLDER,
        make=make,
        say=say,
    )
    picked, choice = _pick(experiment, candidates, evaluate)
    if picked is not best:
        write_best(experiment, picked)
    form = _format(experiment, picked)
    masked, initial = load_masks(experiment, picked), initial_masked(search.context, search.workload.model, form)
    models = {"dense": search.workload.model, "initial": initial.model, "learned": _learned(experiment, picked)}
    dense_layers = search.workload.dense_layers_of(masked).describe()
    say("what it is worth to keep layers dense: a pass over held-out samples for each layer")
    curve = dense_curve(search.workload, initial, device=search.options.evaluation_device)
    with atomic_path(folder / BEST_FOLDER / DENSE_CURVE_FILE) as temporary:
        pd.DataFrame(curve).to_csv(temporary, index=False)
    report = _final_report(experiment, picked, evaluate(models)) | choice | {"dense_layers": dense_layers}
    write_json(folder / EVALUATION_FILE, report)
    return report


def _learned(experiment: Experiment, record: TrialRecord) -> nn.Module:
    """The dense network with a trial's mask multiplied into its weights."""
    masked = load_masks(experiment, record)
    return masked_copy(experiment.search.workload.model, masked.layer_masks(), masked.pattern, masked.layout)


def _candidates(experiment: Experiment) -> list[list[TrialRecord]]:
    """Each of the best trials with its confirmations."""
    records = list(experiment.history.trials.values())
    return [
        [trial, *(record for record in records if record.source == _confirms(trial) and record.status == "completed")]
        for trial in selected_trials(experiment)
    ]


def _pick(
    experiment: Experiment, candidates: list[list[TrialRecord]], evaluate: Callable[..., dict[str, Any]]
) -> tuple[TrialRecord, dict[str, Any]]:
    """Pick the parameters with the lowest mean of the picking figure over seeds, and of these the mask with the lowest one.

    Without a picking figure the error on the selection samples decides; test samples never do.

    Returns: the trial, and the record of the choice for `final_evaluation.json`.
    """
    every = [record for group in candidates for record in group]
    evaluation = experiment.search.evaluation
    figure = evaluation.picked_by
    figures: Mapping[str, Any] = {}
    if len(every) == 1:
        picked_by, values = "held-out error", {every[0].name: 0.0}
    elif figure is not None:
        models = {record.name: _learned(experiment, record) for record in every}
        figures = evaluate(models, is_picking=True)["models"]
        picked_by, values = figure_label(figure), {name: found[figure] for name, found in figures.items()}
    else:
        picked_by, values = "selection error", _selection_errors(experiment, every)

    means = [sum(values[record.name] for record in group) / len(group) for group in candidates]
    picked = min(candidates[means.index(min(means))], key=lambda record: values[record.name])
    rows = [
        {
            "trial": record.number,
            "source": record.source,
            "seed": record.seed,
            **{f"val_{name.removeprefix('val_')}": value for name, value in _kept_figures(experiment, record).items()},
            **{name: figures[record.name][name] for name in evaluation.candidate_figures if record.name in figures},
        }
        for record in every
    ]
    return picked, {"picked_by": picked_by, "candidates": rows, "prediction": _prediction(rows, figure)}


def _final_report(experiment: Experiment, picked: TrialRecord, report: dict[str, Any]) -> dict[str, Any]:
    for name in report["pictures"]:
        shutil.copyfile(experiment.folder / EVALUATION_FOLDER / name, experiment.folder / BEST_FOLDER / name)
    form = _format(experiment, picked)
    protocol = report["protocol"] | {
        "pattern": form.pattern,
        "layout": form.layout,
        "initial_mask": form.initial_mask,
        **_dense_choice(experiment, picked),
        "trial_id": picked.name,
        "trial_seed": picked.seed,
        "search_seed": experiment.search.options.seed,
    }
    hint = _advice(experiment, picked)
    warnings = [*report["warnings"], *([hint] if hint else [])]
    return experiment.search.evaluation.compare(report | {"protocol": protocol, "warnings": warnings}, "learned")


def _advice(experiment: Experiment, record: TrialRecord) -> str:
    last = record.last
    return advice(
        _kept_figures(experiment, record)["fidelity"],
        initial_error=last["initial_val_error"],
        last_error=last["val_error_now"],
        changed_share=last.get("changed_share", 1.0),  # an older history lacks it
    )


def figure_label(name: str) -> str:
    """A figure's name in words."""
    return name.replace("_", " ").capitalize()


def correlation_name(figure: str) -> str:
    """Name of the rank correlation with a figure in `final_evaluation.json`."""
    return f"spearman_of_val_error_and_{figure}"


def _prediction(rows: Sequence[Mapping[str, Any]], figure: str | None) -> dict[str, Any] | None:
    """How well the search's held-out error predicts a figure's order; None for fewer than 3 candidates or no figure."""
    table = pd.DataFrame(rows)
    if len(table) < 3 or figure is None or figure not in table:
        return None
    correlation = table["val_error"].corr(table[figure], method="spearman")
    return {correlation_name(figure): None if pd.isna(correlation) else float(correlation), "num_candidates": len(table)}


def write_best(experiment: Experiment, record: TrialRecord) -> dict[str, Any]:
    """Write `best/`, whole or not at all: a trial's masks, config and checkpoint; returns facts on the kept mask.

    An earlier session's final evaluation is removed: it is of the mask that was in `best/`.
    """
    search = experiment.search
    masked, initial = load_masks(experiment, record), _initial(experiment, record)
    facts = _facts(experiment, record, masked)
    content = MaskFile(
        pattern=masked.pattern,
        layout=masked.layout,
        base_hash=search.workload.fingerprint(),
        masks=masked.layer_masks(),
        provenance={
            "experiment": search.options.experiment,
            "model": search.workload.model_source,
            "dense_layers": search.workload.dense_layers_of(masked).describe(),
            **facts,
        },
    )
    with replaced_folder(experiment.folder / BEST_FOLDER) as new:
        save_mask_file(new / "masks.safetensors", content)
        write_json(new / CONFIG_FILE, facts)
        rows = layer_changes(masked, initial.mask) + dense_rows(masked)
        pd.DataFrame(rows).to_csv(new / LAYERS_FILE, index=False)
        learned = masked_copy(search.workload.model, content.masks, content.pattern, content.layout)
        (new / "checkpoint").mkdir()
        search.workload.save(new / "checkpoint", learned)
        (experiment.folder / EVALUATION_FILE).unlink(missing_ok=True)
    return facts


def load_masks(experiment: Experiment, record: TrialRecord) -> MaskedModel:
    """The dense network with the best of a trial's validated masks and the initial one."""
    masked = _initial(experiment, record)
    with experiment.checkpoint(record).as_directory() as folder:
        bits = read_part(Path(folder), "mask")["best_mask"]
    masked.set_mask(PackedMask(masked.mask[: len(masked.learned_base)]).of_bits(bits).unpack())
    return masked


def _initial(experiment: Experiment, record: TrialRecord) -> MaskedModel:
    """The dense network with the mask that a trial began with."""
    search = experiment.search
    return initial_masked(search.context, search.workload.model, _format(experiment, record), _targets(experiment, record))


def _format(experiment: Experiment, record: TrialRecord) -> MaskFormat:
    return mask_format(experiment.search.context, experiment.search.space.fixed | record.params)


def _targets(experiment: Experiment, record: TrialRecord) -> tuple[str, ...]:
    settings = experiment.search.space.fixed | record.params
    return split_targets(settings.get("targets")) or experiment.search.context.targets


def _dense_choice(experiment: Experiment, record: TrialRecord) -> dict[str, Any]:
    """How many of the most sensitive layers a trial keeps dense, where the space says it, and what stays sparse then."""
    settings = experiment.search.space.fixed | record.params | record.last
    return {name: settings[name] for name in ("num_dense", SHARE) if name in settings}


def _facts(experiment: Experiment, record: TrialRecord, masked: MaskedModel) -> dict[str, Any]:
    search = experiment.search
    settings = {name: value for name, value in (search.space.fixed | record.params).items() if name not in FORMAT}
    config = TrainerConfig(**settings, budget_samples=search.context.max_samples, seed=record.seed)
    return {
        "trial": record.number,
        "trial_id": record.name,
        "source": record.source,
        "config": asdict(config),
        "pattern": str(masked.pattern),
        "layout": masked.layout,
        "initial_mask": _format(experiment, record).initial_mask,
        "targets": list(_targets(experiment, record)),
        **_dense_choice(experiment, record),
        **_kept_figures(experiment, record),
        "num_samples_seen": record.samples,
    }


def _kept_figures(experiment: Experiment, record: TrialRecord) -> dict[str, float | None]:
    """Validation figures of the mask that a trial has kept: the initial mask if learning made it worse.

    The figures that a trial reports, such as val_error, belong to its validated mask with the lowest error. Recovery is
    linear in the loss, so the kept mask's recovery follows from theirs without the dense network's loss.
    """
    with experiment.checkpoint(record).as_directory() as folder:
        kept = HeldOutMeans(*read_counters(Path(folder))["trainer"]["best"])
    initial, lowest, recovered = (record.last[name] for name in ("initial_val_loss", "val_loss", "recovery"))
    if recovered is not None and kept.loss == initial:
        recovered = 0.0
    elif recovered is not None:
        recovered = None if lowest == initial else recovered * (initial - kept.loss) / (initial - lowest)
    return {
        "fidelity": fidelity(record.last["initial_val_error"], kept.error),
        "val_error": kept.error,
        "val_loss": kept.loss,
        "recovery": recovered,
    }


def _confirms(record: TrialRecord) -> str:
    return f"confirmation of trial {record.number}"
