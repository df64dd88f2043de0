"""Which trial is the best: the one with the lowest val_error, the earliest of equal ones.

What is promoted ran to its full budget (`completed_by_error`). Where there is no such trial yet, and on the screen while a
search runs, any counts that has a value (`better_of`).
"""

from __future__ import annotations

from collections.abc import Iterable

from maskpro.schedule.history import METRIC, TrialRecord


def completed_by_error(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials that ran to their full budget without a failure, the best first."""
    completed = [record for record in records if record.status == "completed"]
    return sorted(completed, key=lambda record: record.last[METRIC])


def better_of(best: TrialRecord | None, record: TrialRecord) -> TrialRecord | None:
    """`record` if its val_error is the lower one; confirmations, failures and trials without a value do not count."""
    if record.is_confirmation or record.failure or record.last.get(METRIC) is None:
        return best
    return record if best is None or record.last[METRIC] < best.last[METRIC] else best


def best_so_far(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The best trial that has a value, ended or not; None: there is none."""
    best: TrialRecord | None = None
    for record in records:
        best = better_of(best, record)
    return best


def best_trial(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The best of the trials that ran to their full budget, or where there are none, the best so far."""
    records = list(records)
    return best_so_far(record for record in records if record.status == "completed") or best_so_far(records)
