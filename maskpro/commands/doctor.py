"""What is understood of a model and its data: `maskpro doctor`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maskpro.commands.inputs import Device, LayoutName, Pattern, opened_workload, preflight
from maskpro.machine.process import is_terminal, one_line
from maskpro.option_groups import SamplingOptions, SourceOptions
from maskpro.options import expanded, option


@dataclass(frozen=True, kw_only=True)
class _PositionalSource(SourceOptions):
    """A workload by its model and its data."""

    model: str | None = option(
        None,
        "Diffusers DDPM, or with --workload causal_lm language model; folder or hub name.",
        positional=True,
        otherwise="digits",
    )
    data: Path | None = option(
        None,
        "Folder of images, or text file, folder of text, or data set's name (causal_lm).",
        positional=True,
        otherwise="the workload's",
    )
    workload: str | None = option(
        None,
        "digits (embedded), cifar10 or causal_lm (language models).",
        "--workload",
        "--dataset",
        otherwise="cifar10 with a model, else digits",
    )


@expanded
def doctor(
    source: _PositionalSource,
    sampling: SamplingOptions,
    pattern: Pattern = "2:4",
    layout: LayoutName = "channel",
    device: Device = "auto",
) -> None:
    """Show what is understood of a model and its data, and what a trial will take; nothing is written."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from maskpro.doctor import understood
    from maskpro.pattern import NMPattern, parse_layout
    from maskpro.workloads import workload_options

    form: dict[str, Any] = {"pattern": NMPattern.parse(pattern), "layout": parse_layout(layout)}
    is_embedded = source.model is None and source.data is None
    name = source.workload or ("digits" if is_embedded else "cifar10")
    _, options = workload_options(name, source, sampling)
    opened = opened_workload(replace(source, workload=name), quiet=True)
    found = preflight(opened, **form, options=options, device=device)
    rows = understood(opened, found, opened.evaluation(options), **form)
    if not is_terminal(sys.stdout):  # whole lines, to be searched
        for name, text in rows.items():
            print(one_line(f"{name}: {text}"))
        return
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    for name, text in rows.items():
        table.add_row(name, Text(text))  # as it is: brackets are no markup
    Console().print(table)
