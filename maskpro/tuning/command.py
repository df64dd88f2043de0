"""From what the command line gives to a checked search: a new one, or one made of an earlier one.

An earlier search is resumed, done again (`--replay`), or gives its trials to the searcher (`--warm-start`).
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskpro.errors import MaskproError
from maskpro.files import read_json
from maskpro.options import parsed
from maskpro.schedule.folder import EXPERIMENT_FILE, HISTORY_FILE, SPACE_FILE
from maskpro.schedule.history import METRIC, History
from maskpro.schedule.remnants import is_remnant, refuse_begun
from maskpro.schedule.rungs import UNRECORDED_MIN_COMPLETED
from maskpro.schedule.searcher import contains
from maskpro.schedule.state import Plan
from maskpro.search_options import PLACE_OPTIONS, SESSION_OPTIONS, JobOptions, SearchOptions
from maskpro.tuning.search import EXPERIMENT_FORMAT, Search, load_search, prepare_search
from maskpro.tuning.shared import mask_format
from maskpro.tuning.space import FORMAT, load_space

# What of `Search.describe` is read again, with the tables before what is in them.
_RECORDED = {
    "options": dict,
    "space": dict,
    "workload": dict,
    "trial": dict,
    "num_trials": int,
    "planned": list,
    "is_replay": bool,
    "min_completed": int,
    "space.source": str,
    "space.param_space": dict,
    "workload.model_hash": str,
    "trial.max_samples": int,
    "trial.report_samples": int,
}


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


def reopen_search(folder: Path, *, refused: Mapping[str, Any], session: Mapping[str, Any]) -> Search:
    """The search that `experiment.json` in `folder` describes, to be gone on with.

    Args:
        refused: options given beside `folder`, which the experiment brings itself; any one is an error.
        session: options of this session.

    Raises:
        MaskproError: `folder` is not an experiment, of another format, or its model has changed.
    """
    for name, value in refused.items():
        allowed = ", ".join(sorted((*SESSION_OPTIONS, "extend", "dry_run")))
        raise MaskproError(f"{name} is {value} together with resume; allowed with resume: {allowed}")
    described = read_experiment(folder, "resume")
    options = SearchOptions.of_record(
        described["options"],
        space=folder / SPACE_FILE,
        results_dir=folder.absolute().parent,
        experiment=folder.absolute().name,
        **session,
    )
    planned = tuple(Plan(**plan) for plan in described["planned"])
    search = load_search(
        options,
        load_space(options.space_file),
        planned=planned,
        num_trials=described["num_trials"],
        dense_order=described.get("dense_order"),
    )
    search = replace(search, is_replay=described["is_replay"], min_completed=described["min_completed"])
    return _of_same_trials(search, described)


def replay_search(
    source: Path, *, refused: Mapping[str, Any], place: Mapping[str, Any], session: Mapping[str, Any]
) -> Search:
    """A new search that does again what the experiment `source` (its folder or experiment.json) did.

    With the history beside experiment.json it follows what was suggested and where trials were stopped, whatever order
    their reports came in; without it the same search is run with the same seed.

    Raises:
        MaskproError: `source` is not an experiment.
    """
    for name, value in refused.items():
        allowed = ", ".join(sorted((*SESSION_OPTIONS, *PLACE_OPTIONS, "dry_run")))
        raise MaskproError(f"{name} is {value} together with replay; allowed with replay: {allowed}")
    folder = source.parent if source.name == EXPERIMENT_FILE else source
    described = read_experiment(folder, "replay")
    place = {"experiment": f"{folder.absolute().name}-replay", **place}
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / SPACE_FILE
        copy.write_text(described["space"]["source"])
        options = SearchOptions.of_record(described["options"], space=copy, **place, **session)
        refuse_begun(options.folder)
        space = load_space(copy)
    planned = tuple(Plan(**plan) for plan in described["planned"])
    num_trials, is_replay = described["num_trials"], described["is_replay"]
    trials = History(folder / HISTORY_FILE).searched if (folder / HISTORY_FILE).is_file() else []
    if trials:
        planned = tuple(
            Plan(
                params=trial.params,
                source=trial.source,
                seed=trial.seed,
                samples=trial.samples if trial.stopped else None,
            )
            for trial in trials
        )
        num_trials, is_replay = len(planned), True
    order = described.get("dense_order")
    search = load_search(options, space, planned=planned, num_trials=num_trials, dense_order=order)
    search = replace(search, is_replay=is_replay, min_completed=described["min_completed"])
    return _of_same_trials(search, described)


def _of_same_trials(search: Search, described: Mapping[str, Any]) -> Search:
    """The search, if its trials can be compared with those that the experiment has had so far."""
    mine = search.describe()
    found, expected = mine["workload"]["model_hash"], described["workload"]["model_hash"]
    if found != expected:
        raise MaskproError(
            f"model {search.workload.model_source} has changed since the experiment began "
            f"(hash {found[:12]}, was {expected[:12]}); allowed: the same weights"
        )
    same = (("trial", "max_samples"), ("trial", "report_samples"), ("workload", "images"), ("workload", "tokens"))
    for record, name in (*same, ("workload", "sequence_length")):
        was, now = described[record].get(name), mine[record].get(name)
        if name == "images":
            was, now = (counts and counts.get("read") for counts in (was, now))
        if was is not None and was != now:
            raise MaskproError(
                f"{name} of the experiment is {now}, but was {was} when it began; allowed: the same data and {SPACE_FILE}"
            )
    return search


def read_experiment(folder: Path, field: str) -> dict[str, Any]:
    """The content of `experiment.json`.

    Raises:
        MaskproError: there is none in `folder`, which the option `field` named, or of another format.
    """
    if is_remnant(folder):
        raise MaskproError(
            f"{field} is {folder}, where a search was killed before anything was begun; allowed: to start it anew"
        )
    if not (folder / EXPERIMENT_FILE).is_file():
        raise MaskproError(f"{field} is {folder}; no experiment there (allowed: a folder with {EXPERIMENT_FILE})")
    described = read_json(folder / EXPERIMENT_FILE)
    if not isinstance(described, dict) or described.get("format") != EXPERIMENT_FORMAT:
        raise MaskproError(
            f"{folder / EXPERIMENT_FILE} is of another version; allowed: format {EXPERIMENT_FORMAT} (finish it with the "
            f"version that began it, or do it again with --space {folder / SPACE_FILE})"
        )
    described.setdefault("min_completed", UNRECORDED_MIN_COMPLETED)
    for name, kind in _RECORDED.items():
        table, _, entry = name.rpartition(".")
        value = (described[table] if table else described).get(entry)
        if not isinstance(value, kind):
            raise _changed(folder, name, value)
    for plan in described["planned"]:
        try:
            Plan(**plan)
        except TypeError as error:
            raise _changed(folder, "planned", plan) from error
    order = described.get("dense_order")  # the layers, the most sensitive first, which are not judged anew
    if "num_dense" in described["space"]["param_space"] and not isinstance(order, dict):
        raise _changed(folder, "dense_order", order)
    return described


def _changed(folder: Path, name: str, value: Any) -> MaskproError:
    return MaskproError(f"{folder / EXPERIMENT_FILE} has {value!r:.40} as {name}; allowed: the file as it was written")


def warm_started(search: Search, folder: Path) -> Search:
    """The search, with the ended trials of the experiment in `folder` that fit its space for the searcher to start from.

    Raises:
        MaskproError: it is not an experiment, or its trials can't be compared with this search's.
    """
    described = read_experiment(folder, "warm_start")
    mine = search.describe()
    their_data, my_data = (search.workload.comparable(record["workload"]) for record in (described, mine))
    for what, theirs, ours in (
        *((name, value, my_data[name]) for name, value in their_data.items()),
        ("another max_samples", described["trial"]["max_samples"], mine["trial"]["max_samples"]),
        ("another promotion", *(_promotion(record) for record in (described, mine))),
        ("another precision of validation", _validated_in(described), _validated_in(mine)),
        ("other fixed parameters", _fixed(described), _fixed(mine)),
        ("other layers that stay dense", *(list(record["options"].get("dense") or ()) for record in (described, mine))),
        ("another order of layers for num_dense", *(_first_dense(search, record) for record in (described, mine))),
    ):
        if theirs != ours:
            raise MaskproError(f"warm_start is {folder}, a search with {what} ({theirs}); allowed: {ours}")
    distributions = search.space.distributions
    told = []
    for trial in History(folder / HISTORY_FILE).searched:
        fits = trial.params.keys() == distributions.keys() and all(
            contains(distributions[name], value) for name, value in trial.params.items()
        )
        if fits and trial.status in ("completed", "stopped"):
            source = f"warm start from {folder.absolute().name}, {trial.name}"
            reports = [(samples, metrics[METRIC]) for samples, metrics in trial.reports.items()]
            share = search.context.sparse_shares.get(mask_format(search.context, search.space.fixed | trial.params))
            told.append((trial.params, trial.last[METRIC], source, reports, share))
    if not told:
        raise MaskproError(
            f"warm_start is {folder}; none of its trials fits; allowed: a search over {', '.join(distributions)}"
        )
    return replace(search, warm_start=tuple(told))


def _promotion(described: Mapping[str, Any]) -> str:
    """How promoted trials continued. See `Search.restarts`; a replay's own scheduler is none."""
    options, space = described["options"], described["space"]
    scheduler = options.get("scheduler") or ("none" if options.get("only_seed_points") else space.get("scheduler"))
    if scheduler != "asha" or space.get("promotion") != "restart":
        return "resume"
    exponent, first, factor = (
        space.get("rung_lr_exponent", 0.0),
        described["trial"]["report_samples"],
        space["reduction_factor"],
    )
    return f"restart, rung_lr_exponent {exponent}, rungs from {first} samples on by factors of {factor}"


def _validated_in(described: Mapping[str, Any]) -> str:
    return str(described["trial"].get("validation_precision"))


def _fixed(described: Mapping[str, Any]) -> dict[str, Any]:
    space = described["space"]
    fixed = {name: value for name, value in space["param_space"].items() if not isinstance(value, dict)}
    return {**{name: space.get(name) for name in FORMAT}, **fixed}


def _first_dense(search: Search, described: Mapping[str, Any]) -> list[str]:
    """The layers that a trial of the search may keep dense by num_dense, in the order of a record."""
    return list(described.get("dense_order", ()))[: max(search.space.choices("num_dense", 0))]
