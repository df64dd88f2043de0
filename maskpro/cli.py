"""The `maskpro` program: its commands, in the order of its help."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from maskpro.commands.conversion import convert
from maskpro.commands.doctor import doctor
from maskpro.commands.export import bench_export, export
from maskpro.commands.judging import evaluate, reference_statistics
from maskpro.commands.learning import baseline, train
from maskpro.commands.masks import extract, prune, verify
from maskpro.commands.running import SETTINGS, run_app
from maskpro.commands.searches import monitor, stop
from maskpro.machine.installation import check_installation, limit_threads
from maskpro.machine.limits import usable_cores


class _WithTorch(TyperCommand):
    """A command that checks the installation, which takes seconds; its help and a mistyped option come before that."""

    def invoke(self, ctx: Any) -> Any:
        """Check, then run."""
        check_installation()
        limit_threads(usable_cores())
        return super().invoke(ctx)


app = typer.Typer(
    **SETTINGS,
    no_args_is_help=True,
    help="Learn and evaluate n:m masks of diffusion networks and language models. The search itself is tune_main.py.",
)
for _command in (
    convert,
    prune,
    extract,
    verify,
    baseline,
    train,
    evaluate,
    export,
    bench_export,
    reference_statistics,
    doctor,
):
    app.command(cls=_WithTorch)(_command)
# They look at a search's folder, and need neither torch nor torchvision.
for _command in (monitor, stop):
    app.command()(_command)


def main() -> None:
    """The console script."""
    run_app(app)
