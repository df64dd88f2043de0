"""Ray Tune's three extension points (searcher, scheduler, callback) around one TrialSource, which holds all the state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSystem
from ray.tune import Callback, Checkpoint
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from maskpro.schedule.checkpoints import remove_all_but, remove_checkpoint
from maskpro.schedule.history import METRIC
from maskpro.schedule.state import TrialSource

# Keys of a trial's Tune config beside its own settings: number, seed, checkpoint to resume from ("": none), whether it is
# promoted, its folder, and the budget of this run if it is one of several (None: the trial's only run).
NUMBER, SEED, CHECKPOINT, PROMOTED, FOLDER, BUDGET = "trial", "seed", "checkpoint", "promoted", "folder", "budget"

# A failed trial's error, in its folder.
ERROR_FILE = "error.txt"

# How often each part of a trial is started again elsewhere after its process has died (no memory, a lost node).
MAX_FAILURES = 3

# What Tune itself, and `HistoryCallback`, read of a trial's last report.
_KEPT_OF_A_REPORT = ("training_iteration", "trial_id", "done", "node_ip", "pid", "num_samples_seen")

# Checkpoints kept of a trial: the newest, and one more for a kill between two writes.
_CHECKPOINTS_KEPT = 2


def trial_folder(trial: Trial) -> str:
    """A trial's folder in the storage.

    Tune pickles this function with every trial. It must not hold the source, or memory and time per trial would grow with
    the search's history.
    """
    return str(trial.config[FOLDER])


def failure_text(trial: Trial) -> str:
    """The error of a failed trial; its text may be missing if the storage could not take it."""
    if trial.error_file:
        with suppress(OSError):
            return Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    return str(trial.get_error() or "")


def open_checkpoint(storage: str, path: str) -> Checkpoint:
    """The checkpoint at `path` in the trials' storage, a folder or a URI."""
    filesystem, root = FileSystem.from_uri(storage)
    return Checkpoint(f"{root}/{path}", filesystem=filesystem)


class SourceSearcher(Searcher):
    """Hands out the source's trials.

    Args:
        fixed: settings in every trial's config beside its parameters.
    """

    def __init__(self, source: TrialSource, fixed: Mapping[str, Any]):
        super().__init__(metric=METRIC, mode="min")
        self._source = source
        self._fixed = fixed
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's snapshots are never restored."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trial."""
        record = self._source.next_trial()
        if record is None:
            # The report of a running trial may still promote another one.
            return Searcher.FINISHED if self._source.is_over else None
        self._numbers[trial_id] = record.number
        own = {
            NUMBER: record.number,
            SEED: record.seed,
            CHECKPOINT: record.checkpoint,
            PROMOTED: record.promoted,
            FOLDER: record.folder,
            BUDGET: self._source.budget(record),
        }
        return {**self._fixed, **record.params, **own}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial has ended and its checkpoint is safe; the callback handles a trial that died."""
        number = self._numbers.pop(trial_id)
        if not error:
            self._source.finish(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save, but Tune wants the file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a search resumes from its history."""


class SourceScheduler(FIFOScheduler):
    """Stops a trial where the source says so."""

    def __init__(self, source: TrialSource):
        super().__init__()
        self._source = source

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's snapshots are never restored."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue or stop."""
        stops = self._source.report(trial.config[NUMBER], result)
        decision: str = TrialScheduler.STOP if stops else TrialScheduler.CONTINUE
        return decision

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first pending live trial; Tune's own method looks through all trials since the start."""
        pending = (trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING)
        return min(pending, key=lambda trial: trial.config[NUMBER], default=None)


class HistoryCallback(Callback):
    """Writes final reports, checkpoints and errors into the history, and removes parts of checkpoints no longer needed.

    Args:
        checkpoints: trial's number to its newest checkpoint.
        storage: folder of all trials, a path or a URI; a failed trial's error is written there.
        is_excused: whether the machine is to blame for a trial's failure; such a trial stays unfinished and can resume.
        cause: why a trial was ended for good, if that is known; else "".
    """

    def __init__(
        self,
        source: TrialSource,
        checkpoints: Mapping[int, Checkpoint],
        *,
        storage: str,
        is_excused: Callable[[Trial], bool] = lambda trial: False,
        cause: Callable[[Trial], str] = lambda trial: "",
    ):
        self._source = source
        self._storage = storage
        self._is_excused = is_excused
        self._cause = cause
        self._checkpoints = {number: [checkpoint] for number, checkpoint in checkpoints.items()}
        self._lost_starts: Counter[int] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's snapshots are never restored."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Take in a report that ends a trial by itself; the scheduler never receives it."""
        if not self._source.history.trials[trial.config[NUMBER]].stopped:
            self._source.report(trial.config[NUMBER], result)

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Checkpoint, **info: Any) -> None:
        """A checkpoint is in the storage."""
        number = trial.config[NUMBER]
        path = "/".join(Path(checkpoint.path).parts[-2:])
        self._source.history.checkpoint(number, path, trial.last_result["num_samples_seen"])
        kept = self._checkpoints.setdefault(number, [])
        kept.append(checkpoint)
        while len(kept) > _CHECKPOINTS_KEPT:
            # Not Tune's num_to_keep: it would copy the whole experiment's state to storage with every second checkpoint.
            dropped = kept.pop(0)
            remove_checkpoint(dropped.filesystem, dropped.path)
        self.remove_unneeded(number)

    def remove_unneeded(self, number: int) -> None:
        """Remove the parts of a stopped or ended trial's checkpoints that are no longer needed.

        The history records it afterwards. After a kill in between, the next session does it again; nothing else depends
        on it.
        """
        record = self._source.history.trials[number]
        kept = self._checkpoints.get(number)
        needed = record.needed_parts(may_go_on=self._source.stopped_may_go_on)
        if kept and len(needed) < len(record.checkpoint_parts):
            remove_all_but(record, kept[-1].filesystem, kept[-1].path, needed)
            self._checkpoints[number] = kept[-1:]
            self._source.history.removed(number, needed)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune has given a trial up.

        If an actor dies while it passes from one trial to the next, Tune does so at once, whatever failures are allowed:
        `_actor_failed` and the reset's own error handler both count the trial as failed. The trial is not to blame. It
        resumes in a new part, as Tune would wait for this part's reset for ever.
        """
        if self._is_excused(trial):
            return
        number = trial.config[NUMBER]
        cause = self._cause(trial)
        if not cause and trial.num_failures <= MAX_FAILURES and self._lost_starts[number] < MAX_FAILURES:
            self._lost_starts[number] += 1
            self._source.put_back(number)
            return
        text = failure_text(trial)
        lines = text.strip().splitlines()
        with suppress(OSError):  # its last line is in the history
            filesystem, root = FileSystem.from_uri(f"{self._storage}/{trial_folder(trial)}")
            filesystem.create_dir(root, recursive=True)
            with filesystem.open_output_stream(f"{root}/{ERROR_FILE}") as stream:
                stream.write(text.encode())
        self._source.history.error(number, cause or (lines[-1] if lines else ""))
        self._source.finish(number)
        self.remove_unneeded(number)


class SmallRecords(Callback):
    """Keeps what Tune remembers of trials small; it must stand last, as nothing after it sees a whole report.

    Tune lets callbacks change a report. Of each figure in it Tune keeps the last ten values for each trial, ended or not.
    It also keeps the whole report with each checkpoint, and looks through its list of trials in the end. The history has
    all of that.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's snapshots are never restored."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Everybody else has seen the report."""
        for name in result.keys() - set(_KEPT_OF_A_REPORT):
            del result[name]

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Drop ended trials from the list, and what Tune knows of their reports; it wants one trial in the end."""
        ended = [trial for trial in trials if trial.is_finished()]
        for trial in ended if len(ended) < len(trials) else ended[:-1]:
            trial.run_metadata = type(trial.run_metadata)()
            trials.remove(trial)
