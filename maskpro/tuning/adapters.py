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

# Beside a trial's own settings in its Tune config: number, seed, what it goes on from ("": nothing), whether after a stop,
# its folder, and the budget of this run where it is one of several (None: the trial's only run).
NUMBER, SEED, CHECKPOINT, PROMOTED, FOLDER, BUDGET = "trial", "seed", "checkpoint", "promoted", "folder", "budget"

# A trial whose process dies (no memory, a lost node) is started again elsewhere, so many times in each of its parts.
MAX_FAILURES = 3

# Older checkpoints of a trial are removed; one more than the newest stays, for a kill between two writes.
_CHECKPOINTS_KEPT = 2


def trial_folder(trial: Trial) -> str:
    """A trial's folder in the storage.

    Tune pickles this with every trial, so it must not hold the source: a search's memory and time per trial would grow
    with its history.
    """
    return str(trial.config[FOLDER])


def failure_text(trial: Trial) -> str:
    """What a trial has failed of; the storage may not have been able to take the text."""
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
        fixed: settings that every trial's config has beside its parameters.
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
            # A trial that still runs may let another one go on.
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
        """The trial has ended and its checkpoint is safe; of one that died the callback knows more."""
        number = self._numbers.pop(trial_id)
        if not error:
            self._source.finish(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save, but Tune wants the file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a search goes on from its history."""


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
        """The first pending trial among those that live: Tune's own looks through all that ever were."""
        pending = (trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING)
        return min(pending, key=lambda trial: trial.config[NUMBER], default=None)


class HistoryCallback(Callback):
    """Writes final reports, checkpoints and errors into the history, and removes what of checkpoints nobody needs any more.

    Args:
        checkpoints: the newest of each trial that has one, by its number.
        is_excused: whether the machine is to blame for a trial's failure; such a trial stays unfinished, to go on later.
    """

    def __init__(
        self,
        source: TrialSource,
        checkpoints: Mapping[int, Checkpoint],
        *,
        is_excused: Callable[[Trial], bool] = lambda trial: False,
    ):
        self._source = source
        self._is_excused = is_excused
        self._checkpoints = {number: [checkpoint] for number, checkpoint in checkpoints.items()}
        self._lost_starts: Counter[int] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's snapshots are never restored."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A report that ends a trial by itself never comes to the scheduler."""
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
            # Tune's num_to_keep would copy the whole experiment's state to storage with every second checkpoint.
            dropped = kept.pop(0)
            remove_checkpoint(dropped.filesystem, dropped.path)
        self.remove_unneeded(number)

    def remove_unneeded(self, number: int) -> None:
        """Of a trial that has stopped or ended, leave what may still be needed.

        The history is told afterwards: a kill in between leaves it to the next session, and nothing else depends on it.
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

        It does so at once, whatever failures are allowed, where an actor dies while it is handed from one trial to the next
        (`_actor_failed` and the reset's own error handler both take the trial for failed). The trial is not to blame, and
        goes on in a part of its own: Tune would wait for ever for the reset of this one.
        """
        if self._is_excused(trial):
            return
        number = trial.config[NUMBER]
        if trial.num_failures <= MAX_FAILURES and self._lost_starts[number] < MAX_FAILURES:
            self._lost_starts[number] += 1
            self._source.put_back(number)
            return
        lines = failure_text(trial).strip().splitlines()
        self._source.history.error(number, lines[-1] if lines else "")
        self._source.finish(number)
        self.remove_unneeded(number)
