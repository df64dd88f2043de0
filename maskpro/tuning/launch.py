"""The main job as a command: Ray starts while torch and diffusers are imported, then all is checked, run and reported."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import typer

from maskpro.machine.installation import check_installation, limit_threads
from maskpro.machine.limits import usable_cores
from maskpro.machine.ray_folders import choose_network
from maskpro.monitoring.driver_log import kept_output
from maskpro.options import Given, check_values, expanded, parsed
from maskpro.search_options import JobOptions, SearchOptions, check_space_file, named_space


def search_command(write_report: Callable[[Path], Path]) -> Callable[..., None]:
    """The command of `tune_main.py`; `write_report` writes the report of an experiment's folder and returns its path."""

    @expanded
    def command(search: Given[SearchOptions], job: JobOptions) -> None:
        """Search the best n:m masks of a frozen network with Ray Tune."""
        # What --dry-run prints is all that it is for.
        with nullcontext() if job.dry_run else kept_output():
            status = _run(search, job, write_report)
        if status:
            raise typer.Exit(status)

    return command


def _run(given: Given[SearchOptions], job: JobOptions, write_report: Callable[[Path], Path]) -> int:
    """The job from the options to the report; the process's exit status."""
    # What can be seen without torch is told before anything is started.
    values = parsed(SearchOptions, given.values)
    check_values(SearchOptions, values)
    if not (job.resume or job.replay):
        check_space_file(named_space(values.get("space")))
    if "ray" not in sys.modules:
        choose_network(os.environ, joins=given.values.get("address") is not None)
    with ExitStack() as stack:
        # A new search needs Ray in any case; one that is resumed may be complete. Ray takes about as long to start as torch
        # and diffusers take to be imported.
        wait_for_ray = None
        if not (job.dry_run or job.resume or job.replay or "torch" in sys.modules):
            from maskpro.tuning.resources import ray_starting

            wait_for_ray = stack.enter_context(ray_starting(given.values.get("address")))
        check_installation()
        limit_threads(usable_cores())
        from maskpro.tuning.command import parse_command
        from maskpro.tuning.main_job import run_main_job

        search = parse_command(given.values, job, now=datetime.datetime.now())
        if job.dry_run:
            shown: dict[str, Any] = {**search.describe(), "understood": search.understood()}
            print(json.dumps(shown, indent=2))
            return 0
        if wait_for_ray:
            wait_for_ray()
        return run_main_job(search, write_report, resume=job.resume is not None, extend=job.extend or 0)
