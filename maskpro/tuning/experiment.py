"""A search as it runs: its folder, its sessions, and the table of its trials."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.fs
from ray import tune
from ray.tune import Callback, Checkpoint, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

from maskpro.errors import MaskproError
from maskpro.files import NO_ROOM, atomic_path, remove_leftovers, write_json, write_text
from maskpro.machine.interruption import Interruption, interruptible, parse_duration
from maskpro.monitoring.driver_log import say
from maskpro.schedule.early_stopping import SuccessiveHalving, make_pruner
from maskpro.schedule.event_file import drop_torn_line
from maskpro.schedule.folder import EXPERIMENT_FILE, HISTORY_FILE, SPACE_FILE, STUDY_FILE, TRIALS_FILE, resuming
from maskpro.schedule.history import History, TrialRecord
from maskpro.schedule.lock import hold_lock
from maskpro.schedule.remnants import clear_remnant, refuse_begun
from maskpro.schedule.rungs import Ladder
from maskpro.schedule.searcher import SearchStudy
from maskpro.schedule.state import Plan, PlannedTrials, SearchState, TrialSource
from maskpro.schedule.trial_table import tabulate_trials
from maskpro.tuning.adapters import (
    MAX_FAILURES,
    HistoryCallback,
    SmallRecords,
    SourceScheduler,
    SourceSearcher,
    open_checkpoint,
    trial_folder,
)
from maskpro.tuning.faults import FaultWatch, SilenceWatch, needed_bytes, watched_ray
from maskpro.tuning.monitor import SearchMonitor, trackers
from maskpro.tuning.resources import TrialResources, live_nodes, start_ray, within_memory
from maskpro.tuning.search import Search
from maskpro.tuning.shared import SharedValues, TrialContext, share_values
from maskpro.tuning.trainable import MaskTrainable

# More than all that a search writes before its first trial.
_PROBE_BYTES = 1 << 16


@dataclass(kw_only=True)
class Experiment:
    """A search in its folder, between sessions."""

    search: Search
    history: History

    @property
    def folder(self) -> Path:
        """Where everything of it is, but for the trials' checkpoints when they have a storage of their own."""
        return self.search.options.folder

    def trials(self) -> pd.DataFrame:
        """See `tabulate_trials`."""
        return tabulate_trials(self.search.space.param_space, self.history.searched)

    def search_state(self) -> SearchState:
        """What comes next, from the history alone."""
        search, context = self.search, self.search.context
        halving = SuccessiveHalving(
            first_rung=context.report_samples,
            max_samples=context.max_samples,
            reduction_factor=search.space.reduction_factor,
            restarts=search.restarts,
        )
        study = SearchStudy(
            search.searcher,
            distributions=search.space.distributions,
            pruner=make_pruner(search.scheduler, context.report_samples, search.space.reduction_factor),
            seed=search.options.seed,
            num_seed_points=len(search.planned),
            rungs=halving.ends if search.scheduler == "asha" else (),
            objectives=search.space.objectives,
        )
        return SearchState(
            self.history,
            study,
            planned=search.planned,
            seed=search.options.seed,
            halving=halving if search.scheduler == "asha" else None,
            min_completed=0 if search.is_replay else max(search.min_completed, search.options.promote_top_k),
            restarts=search.restarts,
        )

    def is_left(self, plans: Sequence[Plan]) -> bool:
        """True when one of the planned trials has yet to be run or finished."""
        return PlannedTrials(self.history, plans).num_left > 0

    def checkpoint(self, record: TrialRecord) -> Checkpoint:
        """The newest checkpoint of a trial that has one."""
        return open_checkpoint(self.search.context.storage, record.checkpoint)

    def checkpoints(self) -> dict[int, Checkpoint]:
        """The newest of each trial that has one, by its number."""
        records = self.history.trials.values()
        return {
            record.number: self.checkpoint(record) for record in records if record.checkpoint and record.checkpoint_parts
        }

    def remove_unneeded(self, state: SearchState) -> None:
        """Remove what a session that was killed did not come to remove."""
        checkpoints = self.checkpoints()
        callback = HistoryCallback(state, checkpoints, storage=self.search.context.storage)
        for number in checkpoints:
            callback.remove_unneeded(number)


@contextmanager
def open_experiment(search: Search, *, resume: bool, extend: int = 0) -> Iterator[Experiment]:
    """Make the experiment's folder, or take the one there is; nobody else can while this is open.

    Args:
        extend: trials to be added to those it has had so far.

    Raises:
        MaskproError: the experiment is running, or its storage can't be written.
    """
    folder = search.options.folder
    check_writable(search)
    if not resume:
        refuse_begun(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder):
        for place in (folder, folder / "evaluation", folder / "figures"):
            if resume and place.is_dir():
                remove_leftovers(place)
        if not resume:
            clear_remnant(folder)
        history = None
        try:
            history = _open_history(search, resume=resume, extend=extend)
            yield Experiment(search=search, history=history)
        except (MaskproError, OSError) as error:
            # Nothing has run yet, so nothing is worth keeping.
            if not resume and not (history and history.trials):
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise MaskproError(f"experiment {folder} has no room left ({error}); allowed: a disk with room") from error
            raise


def _open_history(search: Search, *, resume: bool, extend: int) -> History:
    """The experiment's history, after its first files where it is new."""
    folder = search.options.folder
    path = folder / HISTORY_FILE
    if not resume:
        write_text(folder / SPACE_FILE, search.space.source)
        with atomic_path(path) as temporary:
            new = History(temporary)
            for told in search.warm_start:
                new.add_warm_start(*told)
        write_json(folder / EXPERIMENT_FILE, search.describe())
    elif path.exists():
        drop_torn_line(path)
    else:
        raise MaskproError(f"resume is {folder}; it has no {HISTORY_FILE}; allowed: an experiment with its history")
    history = History(path)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    num_trials = (history.num_trials or search.num_trials) + extend
    history.session(num_trials, time=now, min_sparse_share=search.space.min_sparse_share)
    return history


def check_writable(search: Search) -> None:
    """Raise where the results or the trials' storage can't be written."""
    options = search.options
    for field, path in (("results_dir", str(options.results_dir.absolute())), ("storage_path", options.storage_path)):
        if path is None:
            continue
        try:
            filesystem, root = pyarrow.fs.FileSystem.from_uri(path)
            filesystem.create_dir(root, recursive=True)
            probe = f"{root}/.maskpro-{options.experiment}"
            try:
                with filesystem.open_output_stream(probe) as stream:
                    stream.write(bytes(_PROBE_BYTES))  # a full disk still takes an empty file
            finally:
                with suppress(OSError):
                    filesystem.delete_file(probe)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise MaskproError(
                f"{field} is {path}, which can't be written ({reason}); allowed: a writable folder, with room"
            ) from error


@dataclass(kw_only=True)
class Session:
    """Ray, and what the trials of this session share; made by `running_session`."""

    experiment: Experiment
    resources: TrialResources
    context: TrialContext
    shared: SharedValues
    interruption: Interruption

    def run_search(self) -> bool:
        """Run what is left of the search; True when it is complete."""
        state = self.experiment.search_state()
        state.study.write(self.experiment.folder / STUDY_FILE)
        history = self.experiment.history
        self._fit(state, shown=history.num_trials + len(history.trials) - len(history.searched))
        state.study.write(self.experiment.folder / STUDY_FILE)
        return self.experiment.search_state().is_over

    def run_planned(self, plans: Sequence[Plan]) -> bool:
        """Run trials beside the search to their full budget, but for those that have been run; True when all are done."""
        history = self.experiment.history
        trials = PlannedTrials(history, plans)
        self._fit(trials, shown=len(history.trials) + trials.num_new)
        return not self.experiment.is_left(plans)

    def _fit(self, source: TrialSource, *, shown: int) -> None:
        if source.is_over or self.interruption.reason:
            return
        search, history = self.experiment.search, self.experiment.history
        storage, _, name = self.context.storage.rpartition("/")
        ladder = Ladder.of_record(search.describe())
        faults = FaultWatch(
            history,
            storage=self.context.storage,
            num_bytes=needed_bytes(search, search.options.max_concurrent or self.resources.slots),
            interruption=self.interruption,
        )
        silence = SilenceWatch(self.context.trial_timeout)
        try:
            run_trials(
                source,
                trainable=tune.with_parameters(MaskTrainable, context=self.context, shared=self.shared),
                fixed=search.space.fixed,
                resources=self.resources,
                max_concurrent=search.options.max_concurrent,
                storage_path=storage,
                name=name,
                callbacks=[
                    faults,
                    HistoryCallback(
                        source,
                        self.experiment.checkpoints(),
                        storage=self.context.storage,
                        is_excused=faults.caused,
                        cause=silence.cause,
                    ),
                    silence,  # after the callback that asks it
                    SearchMonitor(history, num_trials=shown, max_samples=self.context.max_samples, ladder=ladder),
                    *trackers(search.options),
                ],
            )
        except Exception as error:
            if not faults.explain(error):
                raise


def run_trials(
    source: TrialSource,
    *,
    trainable: Any,
    fixed: Mapping[str, Any],
    resources: TrialResources,
    max_concurrent: int | None,
    storage_path: str,
    name: str,
    callbacks: list[Callback],
) -> None:
    """Run the trials of `source` with Ray Tune until there are no more or somebody asks for the end."""
    Tuner(
        tune.with_resources(trainable, resources.request),
        tune_config=TuneConfig(
            num_samples=-1,  # until the source has no more
            search_alg=SourceSearcher(source, fixed),
            scheduler=SourceScheduler(source),
            # As many as fit: one more would be suggested early, without the results of those that still run. Tune also
            # starts as many actors at once, where it would start one after the other.
            max_concurrent_trials=max_concurrent or max(1, resources.slots),
            reuse_actors=True,
            trial_name_creator=trial_folder,
            trial_dirname_creator=trial_folder,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            verbose=0,
            checkpoint_config=CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[*callbacks, SmallRecords()],
        ),
    ).fit()


@contextmanager
def running_session(experiment: Experiment, interruption: Interruption) -> Iterator[Session]:
    """Start Ray, or join it, and compute what the trials share; `interruption` learns who ends it early.

    Ray is left running.

    Raises:
        MaskproError: Ray can't be had, or a trial asks for more than a node has.
    """
    options = experiment.search.options
    budget, timeout = (
        None if text is None else parse_duration(text) for text in (options.time_budget, options.trial_timeout)
    )
    resources, note = within_memory(
        trial_resources(experiment),
        live_nodes(),
        needed=experiment.search.preflight.host_bytes,
        asked=options.max_concurrent,
    )
    if note:
        say(note)
    # After Ray, which has a handler of SIGTERM of its own.
    with interruptible(interruption, budget):
        context = replace(experiment.search.context, gpu_share=resources.gpus or 1.0, trial_timeout=timeout)
        with watched_ray(interruption, resume=resuming(experiment.folder)):
            shared = share_values(context, resources=resources.request)
            yield Session(
                experiment=experiment, resources=resources, context=context, shared=shared, interruption=interruption
            )


def trial_resources(experiment: Experiment) -> TrialResources:
    """What a trial gets of Ray, which is started or joined if it is not there yet.

    Raises:
        MaskproError: Ray can't be had, or a trial asks for more than a node has.
    """
    options = experiment.search.options
    return start_ray(options.address, cpus=options.cpus_per_trial, gpus=options.gpus_per_trial)


def write_trials(experiment: Experiment) -> None:
    """Write `trials.csv` atomically."""
    table = experiment.trials()
    columns = experiment.search.workload.of_loss if len(table) else {}
    more = table.assign(**{name: table["val_loss"].map(figure) for name, figure in columns.items()})
    with atomic_path(experiment.folder / TRIALS_FILE) as temporary:
        more.to_csv(temporary, index=False)
