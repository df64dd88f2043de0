"""Where successive halving judges trials."""

from __future__ import annotations


def rungs(*, first_rung: int, max_samples: int, reduction_factor: int) -> tuple[int, ...]:
    """Samples at each rung: each at `reduction_factor` times the one before, as long as it is below `max_samples`."""
    found = []
    rung = first_rung
    while rung < max_samples:
        found.append(rung)
        rung *= reduction_factor
    return tuple(found)
