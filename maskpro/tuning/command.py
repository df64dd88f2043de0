"""From what the command line gives to a checked search: a new one, one to resume, or one to do again."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskpro.errors import MaskproError
from maskpro.options import parsed
from maskpro.tuning.options import PLACE_OPTIONS, SESSION_OPTIONS, JobOptions, SearchOptions
from maskpro.tuning.reopening import reopen_search, replay_search, warm_started
from maskpro.tuning.search import Search, prepare_search


def parse_command(given: Mapping[str, Any], job: JobOptions, *, now: datetime.datetime) -> Search:
    """The search that the options of `SearchOptions` that the user named, by name, and the job's ask for.

    Raises:
        MaskproError: something the user gave is missing or not allowed.
    """
    resume, replay = job.resume, job.replay
    if job.extend is not None and (resume is None or job.extend < 1):
        raise MaskproError(f"extend is {job.extend}; allowed: a whole number of at least 1, together with --resume")
    if resume is not None and replay is not None:
        raise MaskproError(f"replay is {replay} together with resume; allowed: one of them")
    session = {name: value for name, value in given.items() if name in SESSION_OPTIONS}
    others = {name: value for name, value in given.items() if name not in SESSION_OPTIONS}
    if resume is not None or replay is not None:
        if job.config is not None:
            others["config"] = job.config
        if resume is not None:
            return reopen_search(resume, refused=others, session=session)
        assert replay is not None
        place = {name: others.pop(name) for name in PLACE_OPTIONS if name in others}
        return _warm(replay_search(replay, refused=others, place=place, session=session))
    others = parsed(SearchOptions, _with_config(others, job.config))
    space = others.get("space")
    name = f"{space.stem if isinstance(space, Path) else ''}-{now:%Y%m%d-%H%M%S}"
    return _warm(prepare_search(SearchOptions(**{"experiment": name, **others, **session})))


def _warm(search: Search) -> Search:
    """The search with the trials that it starts from; one that follows a history suggests nothing."""
    folder = search.options.warm_start
    return search if folder is None or search.is_replay else warm_started(search, folder)


def _with_config(given: Mapping[str, Any], config: int | None) -> dict[str, Any]:
    """The options, with the one seed point that `config` names."""
    options = dict(given)
    if config is None:
        return options
    for name in ("num_trials", "only_seed_points", "seed_points"):
        if name in options:
            raise MaskproError(f"{name} is {options[name]} together with config; allowed: config alone")
    if config < 1:
        raise MaskproError(f"config is {config}; allowed: the number of a seed point")
    return options | {"seed_points": (config,), "only_seed_points": True}
