"""The best trial: the one with the lowest val_error, the earliest of equal ones.

Masks for the final evaluation come from trials that ran to their full budget (`completed_by_error`). Without such a trial,
and on the screen while a search runs, every trial with a value counts (`best_so_far`).
"""

from __future__ import annotations

from collections.abc import Iterable

from maskpro.schedule.history import METRIC, TrialRecord


def completed_by_error(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials that ran to their full budget without a failure, best first."""
    completed = [record for record in records if record.status == "completed"]
    return sorted(completed, key=lambda record: record.last[METRIC])


def best_so_far(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The best trial with a value, ended or not; confirmations and failures don't count. None: there is none."""
    counting = (record for record in records if not (record.is_confirmation or record.failure))
    valued = (record for record in counting if record.last.get(METRIC) is not None)
    return min(valued, key=lambda record: record.last[METRIC], default=None)


def best_trial(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The best trial that ran to its full budget; if there is none, the best so far."""
    records = list(records)
    return best_so_far(record for record in records if record.status == "completed") or best_so_far(records)
