"""The best trial: the one with the lowest val_error, the earliest of equal ones.

Masks for the final evaluation come from trials that ran to their full budget (`completed_by_error`). Without such a trial,
and on the screen while a search runs, every trial with a value counts (`best_so_far`). With `min_share` only trials count
of whose network's multiply-adds at least this share is in layers with a mask.
"""

from __future__ import annotations

from collections.abc import Iterable

from maskpro.errors import MaskproError
from maskpro.schedule.history import METRIC, SHARE, TrialRecord


def completed_by_error(records: Iterable[TrialRecord], min_share: float | None = None) -> list[TrialRecord]:
    """The trials that ran to their full budget without a failure, best first."""
    completed = [record for record in records if record.status == "completed" and _counts(record, min_share)]
    return sorted(completed, key=lambda record: record.last[METRIC])


def best_trials(records: Iterable[TrialRecord], count: int, min_share: float | None = None) -> list[TrialRecord]:
    """The `count` best trials that may be promoted.

    Raises:
        MaskproError: there is none.
    """
    records = list(records)
    completed = completed_by_error(records, min_share)
    if not completed and completed_by_error(records):
        raise MaskproError(
            f"min_sparse_share is {min_share}, which no trial has that ran to its full budget, so there is no mask to "
            "promote; allowed: more trials (--resume with --extend)"
        )
    if not completed:
        raise MaskproError(
            "no trial ran to its full budget without an error, so there is no mask to promote; see failure in trials.csv"
        )
    return completed[:count]


def best_so_far(records: Iterable[TrialRecord], min_share: float | None = None) -> TrialRecord | None:
    """The best trial with a value, ended or not; confirmations and failures don't count. None: there is none."""
    counting = (
        record for record in records if not (record.is_confirmation or record.failure) and _counts(record, min_share)
    )
    valued = (record for record in counting if record.last.get(METRIC) is not None)
    return min(valued, key=lambda record: record.last[METRIC], default=None)


def best_trial(records: Iterable[TrialRecord], min_share: float | None = None) -> TrialRecord | None:
    """The best trial that ran to its full budget; if there is none, the best so far."""
    records = list(records)
    completed = (record for record in records if record.status == "completed")
    return best_so_far(completed, min_share) or best_so_far(records, min_share)


def pareto_front(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Of trials that ran to their full budget those than which none has a lower error with as large a share, or as low an
    error with a larger one; the largest share first.
    """
    completed = [record for record in completed_by_error(records) if SHARE in record.last]
    front: list[TrialRecord] = []
    for record in sorted(completed, key=lambda record: (-record.last[SHARE], record.last[METRIC])):
        equal = bool(front) and all(front[-1].last[name] == record.last[name] for name in (METRIC, SHARE))
        if not front or record.last[METRIC] < front[-1].last[METRIC] or equal:
            front.append(record)
    return front


def _counts(record: TrialRecord, min_share: float | None) -> bool:
    return min_share is None or record.last.get(SHARE, 0.0) >= min_share
