"""Searches that run in another terminal: `maskpro monitor` and `stop`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from maskpro.options import expanded


@expanded
def monitor(
    experiment: Annotated[Path | None, typer.Argument(help="Its folder; default: the newest one in ./results.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it as it stands, and end.")] = False,
) -> None:
    """Show a search that runs in another terminal, until it has ended, or how one has ended."""
    from rich.console import Console

    from maskpro.monitoring.control import monitor_search, newest_experiment

    with suppress(KeyboardInterrupt):
        monitor_search(experiment or newest_experiment(Path("results")), once=once, console=Console())


@expanded
def stop(
    experiment: Annotated[Path, typer.Argument(help="Its folder.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for its end.")] = 120.0,
) -> None:
    """End a search that runs on this machine, so that tune_main.py --resume can continue it."""
    from maskpro.monitoring.control import stop_search

    print(stop_search(experiment, timeout=timeout))
