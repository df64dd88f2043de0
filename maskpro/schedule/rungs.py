"""The rungs at which successive halving judges trials, and what that makes of a search's cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from maskpro.schedule.history import TrialRecord

# Least number of trials that run to their full budget. From a single one nothing could be selected, and the first ones are
# promoted before most others are known.
MIN_COMPLETED = 4
# The same in experiments that don't record it.
UNRECORDED_MIN_COMPLETED = 3


def rungs(*, first_rung: int, max_samples: int, reduction_factor: int) -> tuple[int, ...]:
    """Samples at each rung, `reduction_factor` times those of the one before, as long as they are below `max_samples`.

    Raises:
        ValueError: rungs that never come to an end, as a changed record may ask for.
    """
    if first_rung < 1 or reduction_factor < 2 or max_samples == math.inf:
        raise ValueError(f"rungs from {first_rung} by {reduction_factor} to {max_samples} never end")
    found = []
    rung = first_rung
    while rung < max_samples:
        found.append(rung)
        rung *= reduction_factor
    return tuple(found)


def rung_lr(lr: float, *, budget: int, max_samples: int, exponent: float) -> float:
    """The learning rate of a run that ends at a rung, so that it ranks trials as the full run does.

    The best learning rate falls with the length of a run, as a power of it (Bjorck et al. 2025, "Scaling Optimal LR Across
    Token Horizons", equation 1). Without this, rungs promote trials with too large a learning rate.

    Args:
        lr: of the full run.
        budget: samples of the run.
        max_samples: samples of the full run.
        exponent: of the power law; 0: no scaling.
    """
    return lr * math.pow(max_samples / budget, exponent)


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The rungs of a search, and how many of its trials will climb them.

    Attributes:
        ends: samples at each rung, and those of the full budget.
        reduction_factor: one trial in so many is promoted.
        restarts: whether a promoted trial is trained anew.
        min_completed: least number of trials that run to their full budget.
    """

    ends: tuple[int, ...]
    reduction_factor: int
    restarts: bool
    min_completed: int

    @classmethod
    def of_record(cls, described: Mapping[str, Any]) -> Ladder | None:
        """The ladder of the search that `experiment.json` describes; None where the rungs don't tell how far trials run."""
        scheduler, trial, space = described["scheduler"], described["trial"], described["space"]
        if described["is_replay"] or scheduler not in ("asha", "none"):
            return None
        full, factor = trial["max_samples"], space["reduction_factor"]
        found = rungs(first_rung=trial["report_samples"], max_samples=full, reduction_factor=factor)
        return cls(
            ends=(*(found if scheduler == "asha" else ()), full),
            reduction_factor=factor,
            restarts=scheduler == "asha" and space.get("promotion") == "restart",
            min_completed=max(
                described.get("min_completed", UNRECORDED_MIN_COMPLETED), described["options"]["promote_top_k"]
            ),
        )

    def samples_left(self, records: Sequence[TrialRecord], num_trials: int) -> int:
        """Samples that the trials of a search are still to be trained on, if each rung promotes its share and none fails.

        Args:
            records: the search's trials so far.
            num_trials: that it is to have in all.
        """
        alive = [record for record in records if not record.failure]
        counts = [num_trials - len(records) + len(alive)]  # trials that reach each end
        for number, end in enumerate(self.ends[:-1]):
            beyond = sum(record.samples > end or (record.samples == end and not record.stopped) for record in alive)
            if number == 0 and not self.restarts:  # seed points pass the first rung
                beyond = max(beyond, sum(record.seed_point is not None for record in alive))
            counts.append(max(beyond, counts[-1] // self.reduction_factor))
        counts[-1] = max(counts[-1], min(self.min_completed, counts[0]))
        for number in reversed(range(len(counts) - 1)):
            counts[number] = max(counts[number], counts[number + 1])
        costs = self.ends if self.restarts else [end - start for start, end in pairwise((0, *self.ends))]
        whole = sum(count * cost for count, cost in zip(counts, costs, strict=True))
        return max(0, whole - sum(record.trained for record in alive))
