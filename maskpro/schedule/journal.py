"""A search's trials as a journal file of Optuna, for Optuna's own tools; this project never reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from maskpro.files import atomic_path

STUDY_NAME = "maskpro"
# Suffix of the symbolic link by which Optuna locks a journal.
_LOCK_SUFFIX = ".lock"


class JournalExport:
    """The journal file: it is rewritten with the trials so far and then kept open for further ones.

    It holds no running trial, so a kill leaves none behind. If a trial is promoted after it was added, its later values
    appear when the file is next rewritten.
    """

    def __init__(self, path: Path, trials: Iterable[FrozenTrial], directions: Sequence[str]):
        with atomic_path(path) as temporary:
            _open_journal(temporary, directions).add_trials(trials)
        # Optuna would wait for a lock that a kill has left. The experiment's own lock already protects the file.
        path.with_name(path.name + _LOCK_SUFFIX).unlink(missing_ok=True)
        self._study = _open_journal(path, directions)

    def add(self, trial: FrozenTrial) -> None:
        """A trial has stopped or ended."""
        self._study.add_trial(trial)


def _open_journal(path: Path, directions: Sequence[str]) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(storage=storage, study_name=STUDY_NAME, directions=directions, load_if_exists=True)
