"""From what the command line gives to a checked search: a new one, one to go on with, or one to do again."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskpro.errors import MaskproError
from maskpro.tuning.reopening import SESSION_OPTIONS, reopen_search, replay_search, warm_started
from maskpro.tuning.search import Search, SearchOptions, prepare_search


def parse_command(
    given: Mapping[str, Any], *, resume: Path | None, extend: int | None, replay: Path | None, now: datetime.datetime
) -> Search:
    """The search that the options `given` (those the user named, by name) ask for.

    Raises:
        MaskproError: something the user gave is missing or not allowed.
    """
    if extend is not None and (resume is None or extend < 1):
        raise MaskproError(f"extend is {extend}; allowed: a whole number of at least 1, together with --resume")
    if resume is not None and replay is not None:
        raise MaskproError(f"replay is {replay} together with resume; allowed: one of them")
    session = {name: value for name, value in given.items() if name in SESSION_OPTIONS}
    others = {name: value for name, value in given.items() if name not in SESSION_OPTIONS}
    if resume is not None:
        return reopen_search(resume, refused=others, session=session)
    if replay is not None:
        place: dict[str, Any] = {name: others.pop(name) for name in ("experiment", "results_dir") if name in others}
        return _warm(replay_search(replay, refused=others, place=place, session=session))
    others = _chosen_seed_points(others)
    space = others.pop("space", None)
    name = f"{space.stem if space else ''}-{now:%Y%m%d-%H%M%S}"
    return _warm(prepare_search(SearchOptions(**{"space": space, "experiment": name, **others, **session})))


def _warm(search: Search) -> Search:
    """The search with the trials that it starts from; one that follows a history suggests nothing."""
    folder = search.options.warm_start
    return search if folder is None or search.is_replay else warm_started(search, folder)


def _chosen_seed_points(given: Mapping[str, Any]) -> dict[str, Any]:
    """`config` and `seed_points` as numbers of seed points."""
    options = dict(given)
    config, text = options.pop("config", None), options.pop("seed_points", None)
    if config is not None:
        for name in ("num_trials", "only_seed_points"):
            if name in options:
                raise MaskproError(f"{name} is {options[name]} together with config; allowed: config alone")
        if text is not None:
            raise MaskproError(f"seed_points is {text} together with config; allowed: config alone")
        if config < 1:
            raise MaskproError(f"config is {config}; allowed: the number of a seed point")
        return options | {"seed_points": (config,), "only_seed_points": True}
    if text is not None:
        parts = text.replace(" ", "").split(",")
        if not all(part.isdecimal() for part in parts):
            raise MaskproError(f"seed_points is {text!r}; allowed: numbers with commas between them, such as 1,3")
        options["seed_points"] = tuple(int(part) for part in parts)
    return options
