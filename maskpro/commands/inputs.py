"""What the single steps are given: the options they share, and the workload that is opened and tried by them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from maskpro.errors import MaskproError
from maskpro.files import check_new
from maskpro.machine.process import one_line, say_aside
from maskpro.option_groups import SourceOptions

# The options of one-shot masks; a mask file has its own pattern and layout.
PATTERN, LAYOUT = "2:4", "channel"

Output = Annotated[Path, typer.Option("--output-dir", help="New folder for the results.")]
Pattern = Annotated[str, typer.Option(help="n:m, n weights kept of every m.")]
LayoutName = Annotated[str, typer.Option("--layout", help="channel or flattened.")]
GivenPattern = Annotated[
    str | None, typer.Option("--pattern", help=f"n:m, n weights kept of every m; default: the mask file's, else {PATTERN}.")
]
GivenLayout = Annotated[
    str | None, typer.Option("--layout", help=f"channel or flattened; default: the mask file's, else {LAYOUT}.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Masks = Annotated[Path | None, typer.Option(help="Mask file; default: the magnitude mask.")]
Seed = Annotated[int, typer.Option(help="Of calibration samples and sampled masks.")]


def opened_workload(source: SourceOptions, output: Path | None = None, *, quiet: bool = False) -> Any:
    """A workload; images that don't fit into memory are kept beside the results.

    Unless `quiet`, what was converted or left out of its model is printed.
    """
    from maskpro.workloads import open_workload, workload_options

    if output is not None:
        check_new(output, "output file" if output.suffix == ".npz" else "output folder")
    assert source.workload is not None
    opened = open_workload(
        source.workload,
        model=source.model,
        data=source.data,
        options=workload_options(source.workload, source)[0],
        cache=None if output is None else output.absolute().parent,
        say=say_aside,
    )
    for note in () if quiet else opened.notes:
        print(one_line(f"model {opened.model_source}: {note}"))
    return opened


def masks_for(workload: Any, path: Path, pattern: str | None, layout: str | None) -> Any:
    """The masks of a file, checked to be made for the workload's model.

    Raises:
        MaskproError: they are not, or `pattern` or `layout` was given and is not the file's.
    """
    from maskpro.pattern import NMPattern, parse_layout
    from maskpro.pipeline.masks import load_masks_for

    content = load_masks_for(workload, path)
    for name, given, found in (
        ("pattern", pattern and NMPattern.parse(pattern), content.pattern),
        ("layout", layout and parse_layout(layout), content.layout),
    ):
        if given not in (None, found):
            raise MaskproError(f"{name} is {given} with mask file {path}, which has {found}; allowed: without --{name}")
    return content


def preflight(workload: Any, *, options: Mapping[str, Any] | None = None, device: str = "cpu", **form: Any) -> Any:
    """What the preflight of a job finds; what can't work is an error before anything is written.

    Args:
        options: by which networks will be judged.
    """
    from maskpro.machine.hardware import parse_device
    from maskpro.preflight import run_preflight

    evaluation = workload.evaluation(options or {})
    return run_preflight(workload, evaluation=evaluation, device=parse_device(device), **form)
