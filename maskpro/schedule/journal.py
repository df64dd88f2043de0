"""A search's trials as a journal file of Optuna, for Optuna's own tools; nothing of this project reads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from maskpro.files import atomic_path

STUDY_NAME = "maskpro"
# Optuna's lock of a journal is a symbolic link with this suffix.
_LOCK_SUFFIX = ".lock"


class JournalExport:
    """The file, written anew with the trials that there are and kept open for those that follow.

    No running trial is in it, so a kill leaves none behind. A trial that is promoted after it was added has its later
    values in the file once that is written anew.
    """

    def __init__(self, path: Path, trials: Iterable[FrozenTrial]):
        with atomic_path(path) as temporary:
            _open_journal(temporary).add_trials(trials)
        # Left by a kill, it would be waited for; whoever writes an experiment holds its own lock.
        path.with_name(path.name + _LOCK_SUFFIX).unlink(missing_ok=True)
        self._study = _open_journal(path)

    def add(self, trial: FrozenTrial) -> None:
        """A trial has stopped or ended."""
        self._study.add_trial(trial)


def _open_journal(path: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(storage=storage, study_name=STUDY_NAME, direction="minimize", load_if_exists=True)
