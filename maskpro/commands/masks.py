"""Masks of networks as they are: `maskpro prune`, `extract` and `verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from maskpro.commands.inputs import LayoutName, Output, Pattern, Seed, opened_workload, preflight
from maskpro.commands.running import results_first
from maskpro.errors import MaskproError
from maskpro.machine.process import one_line
from maskpro.option_groups import DenseOptions, SourceOptions
from maskpro.options import expanded, option


@dataclass(frozen=True, kw_only=True)
class _FittingSource(SourceOptions):
    """A workload whose model a mask must fit, or none."""

    workload: str | None = option(None, "Whose model it must fit: digits, cifar10 or causal_lm.", "--workload", "--dataset")


@results_first
@expanded
def prune(
    output_dir: Output,
    source: SourceOptions,
    layers: DenseOptions,
    pattern: Pattern = "2:4",
    layout: LayoutName = "channel",
    method: Annotated[str, typer.Option(help="magnitude, wanda, sparsegpt (its mask alone) or random.")] = "magnitude",
    ratio: Annotated[float | None, typer.Option(help="Share of weights removed; must be the pattern's.")] = None,
    seed: Seed = 0,
) -> None:
    """Prune the dense network to n:m in one shot and write it as a folder that its library loads."""
    from maskpro.initial_masks import parse_initial_mask
    from maskpro.metrics import sparsity
    from maskpro.pattern import NMPattern, parse_layout
    from maskpro.pipeline import masks as steps

    parsed, chosen = NMPattern.parse(pattern), parse_initial_mask(method)
    if ratio is not None and ratio != parsed.sparsity:
        raise MaskproError(f"ratio is {ratio}; allowed with pattern {pattern}: {parsed.sparsity}")
    opened, parsed_layout = (
        opened_workload(source, output_dir),
        parse_layout(layout),
    )
    form: dict[str, Any] = {"pattern": parsed, "layout": parsed_layout, "dense": layers.dense or ()}
    preflight(opened, **form)
    pruned = steps.prune(opened, output_dir, **form, method=chosen, seed=seed)
    print(f"pruned to {pattern} ({sparsity(pruned):.0%} of the maskable weights removed): {output_dir}")


@results_first
@expanded
def extract(
    model_path: Annotated[str, typer.Option(help="Pruned model's folder.")],
    output_dir: Output,
    original_model: Annotated[
        str | None,
        typer.Option(help="Dense model to bind the masks to: folder, hub name, or the workload's name (embedded)."),
    ] = None,
    workload: Annotated[
        str,
        typer.Option("--workload", "--dataset", help="Kind of the models: digits or cifar10 (diffusers), or causal_lm."),
    ] = "digits",
    ema: Annotated[bool, typer.Option("--ema", help="Take the weights in unet_ema/ beside the model's unet/.")] = False,
    pattern: Pattern = "2:4",
    layout: LayoutName = "channel",
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Turn zeros that are not n:m into the nearest n:m masks.")
    ] = False,
) -> None:
    """Extract the masks of a pruned model's zeros into masks.safetensors."""
    from maskpro.pattern import NMPattern, parse_layout
    from maskpro.pipeline import masks as steps

    content = steps.extract(
        model_path,
        output_dir,
        pattern=NMPattern.parse(pattern),
        layout=parse_layout(layout),
        original_model=original_model,
        nearest=nearest,
        ema=ema,
        workload=workload,
    )
    differing = content.provenance["share_of_positions_that_differ_from_the_zeros"]
    print(
        f"masks of {len(content.masks)} layers, {differing:.2%} of the positions unlike the zeros: "
        f"{output_dir / steps.MASKS_FILE}"
    )


@expanded
def verify(
    masks: Annotated[Path, typer.Argument(help="Mask file.")],
    source: _FittingSource,
    target: Annotated[
        str | None, typer.Option(help="Also say what this can speed up, and where: tensorrt or torch-sparse.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights there: float16, bfloat16 or int8; default: float16.")
    ] = None,
) -> None:
    """Check a mask file: whole, every group n:m, and (with --workload) made for that model; exit status 2 if not."""
    from maskpro.export.eligibility import parse_dtype, parse_target
    from maskpro.pipeline import masks as steps

    if target is None and dtype is not None:
        raise MaskproError(f"dtype is {dtype} without target; allowed: with --target")
    runtime = None if target is None else (parse_target(target), parse_dtype("float16" if dtype is None else dtype))

    if source.workload is None and source != _FittingSource():
        raise MaskproError(
            "workload is missing with model, data or an option of theirs; allowed: --workload digits, cifar10 or causal_lm"
        )
    opened = None if source.workload is None else opened_workload(source)
    found = steps.verify(masks, opened)
    for name, problem in found.items():
        print(one_line(f"{name}: {problem or 'ok'}"))
    wrong = [name for name, problem in found.items() if problem]
    if wrong:
        raise MaskproError(f"mask file {masks} does not fit: {len(wrong)} of {len(found)} layers, such as {wrong[0]}")
    if opened is not None:
        content = steps.load_masks_for(opened, masks)
        preflight(opened, pattern=content.pattern, layout=content.layout, covered=list(content.masks))
    for name, why in steps.unmasked_layers(masks, opened).items():
        print(one_line(f"{name}: stays dense, {why}"))
    against = "" if opened is None else f" and fit {opened.model_source}"
    print(f"{len(found)} layers keep exactly n of every m{against}: {masks}")
    if runtime is not None:
        eligible = steps.eligibility_of(masks, *runtime, opened)
        for line in (*(row.line() for row in eligible.layers), *eligible.lines()):
            print(one_line(line))
