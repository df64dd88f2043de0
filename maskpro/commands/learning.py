"""Learning one mask: `maskpro baseline` and `train`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from maskpro.commands.inputs import (
    LAYOUT,
    PATTERN,
    Device,
    GivenLayout,
    GivenPattern,
    Masks,
    Output,
    Seed,
    masks_for,
    opened_workload,
    preflight,
)
from maskpro.commands.running import results_first
from maskpro.errors import MaskproError
from maskpro.option_groups import DenseOptions, SourceOptions
from maskpro.options import Given, expanded
from maskpro.trainer_config import TrainerConfig


@results_first
@expanded
def baseline(
    output_dir: Output,
    source: SourceOptions,
    layers: DenseOptions,
    masks: Masks = None,
    pattern: GivenPattern = None,
    layout: GivenLayout = None,
    dataset_size: Annotated[int, typer.Option(help="Calibration samples.")] = 512,
    batch_size: int = 32,
    max_batches: Annotated[int | None, typer.Option(help="Stop after so many batches.")] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Losses of the original weights under the initial mask."""
    from maskpro.machine.hardware import parse_device
    from maskpro.pipeline import learning as steps

    dense = _dense_layers(layers, masks)
    opened = opened_workload(source, output_dir)
    chosen = _masks_or_magnitude(opened, masks, pattern, layout, dense)
    preflight(opened, pattern=chosen.pattern, layout=chosen.layout, covered=list(chosen.masks), device=device)
    report = steps.baseline(
        opened,
        output_dir,
        masks=chosen,
        dataset_size=dataset_size,
        batch_size=batch_size,
        max_batches=max_batches,
        seed=seed,
        device=parse_device(device),
    )
    print(f"mean loss {report['mean_loss']:.5f} over {report['num_batches']} batches: {output_dir}")


@results_first
@expanded
def train(
    output_dir: Output,
    source: SourceOptions,
    layers: DenseOptions,
    settings: Given[TrainerConfig],
    masks: Masks = None,
    pattern: GivenPattern = None,
    layout: GivenLayout = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="Layers to learn, by parts of their names; repeatable; default: all.")
    ] = None,
    initial_mask: Annotated[
        str, typer.Option(help="Where learning starts, without --masks: magnitude, wanda, sparsegpt or random.")
    ] = "magnitude",
    epoch: Annotated[int, typer.Option(help="Passes over the calibration samples.")] = 625,
    max_step: Annotated[int, typer.Option(help="Upper bound of steps.")] = 10_000,
    swanlab: Annotated[
        str | None, typer.Option("--swanlab", "--project-name", help="SwanLab project to log to as well (extra swanlab).")
    ] = None,
    experiment_name: Annotated[str | None, typer.Option(help="Of the SwanLab run; default: SwanLab's own.")] = None,
    save: Annotated[bool, typer.Option(help="Also save the logits and the optimizer's state.")] = False,
    statistics: Annotated[
        bool, typer.Option(help="Write layers.csv: what was changed where, and what it is worth.")
    ] = True,
    device: Device = "auto",
) -> None:
    """Learn one mask, outside a search."""
    from maskpro.fidelity import NO_DIFFERENCE, format_share
    from maskpro.initial_masks import parse_initial_mask
    from maskpro.machine.hardware import parse_device
    from maskpro.pattern import NMPattern, parse_layout
    from maskpro.pipeline import learning as steps
    from maskpro.trackers import swanlab_log

    for name, value in (("epoch", epoch), ("max_step", max_step)):
        if value < 1:
            raise MaskproError(f"{name} is {value}; allowed: a whole number of at least 1")
    method = parse_initial_mask(initial_mask)
    # The budget of one step is allowed with any setting that is allowed.
    one_step = settings.values.get("masks_per_step", 1)
    config = TrainerConfig(**settings.values, budget_samples=max(1, one_step))
    budget = min(epoch * config.dataset_size * config.masks_per_step, max_step * config.step_samples)
    config = replace(config, budget_samples=budget)
    dense = _dense_layers(layers, masks)
    opened = opened_workload(source, output_dir)
    initial = None if masks is None else masks_for(opened, masks, pattern, layout)
    form: dict[str, Any] = {
        "pattern": NMPattern.parse(pattern or PATTERN) if initial is None else initial.pattern,
        "layout": parse_layout(layout or LAYOUT) if initial is None else initial.layout,
        "targets": tuple(part for text in targets or ["all"] for part in text.split()),
        "dense": dense,
    }
    preflight(opened, **form, covered=None if initial is None else list(initial.masks), device=device)
    with swanlab_log(swanlab, name=experiment_name, config=asdict(config)) as log:
        summary = steps.train(
            opened,
            output_dir,
            config=config,
            **form,
            initial=initial or method,
            device=parse_device(device),
            save_logits=save,
            statistics=statistics,
            log=log,
        )
    reached = summary["fidelity"]
    shown = f"undefined: {NO_DIFFERENCE}" if reached is None else format_share(reached)
    print(f"held-out fidelity {shown}, after {summary['num_samples_seen']:,} samples: {output_dir}")


def _dense_layers(layers: DenseOptions, masks: Path | None) -> tuple[str, ...]:
    """The layers that stay dense by choice; a mask file has made its own."""
    if layers.dense and masks is not None:
        raise MaskproError(f"dense is {' '.join(layers.dense)} with mask file {masks}; allowed: without --dense or --masks")
    return layers.dense or ()


def _masks_or_magnitude(
    workload: Any, masks: Path | None, pattern: str | None, layout: str | None, dense: tuple[str, ...]
) -> Any:
    """The masks of a file, checked to be made for the workload's model; without one the magnitude mask."""
    from maskpro.pattern import NMPattern, parse_layout
    from maskpro.pipeline.masks import magnitude_mask_file

    if masks is not None:
        return masks_for(workload, masks, pattern, layout)
    parsed, parsed_layout = NMPattern.parse(pattern or PATTERN), parse_layout(layout or LAYOUT)
    return magnitude_mask_file(workload, pattern=parsed, layout=parsed_layout, dense=dense)
