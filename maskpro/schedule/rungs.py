"""The rungs at which successive halving judges trials."""

from __future__ import annotations


def rungs(*, first_rung: int, max_samples: int, reduction_factor: int) -> tuple[int, ...]:
    """Samples at each rung, `reduction_factor` times those of the one before, as long as they are below `max_samples`."""
    found = []
    rung = first_rung
    while rung < max_samples:
        found.append(rung)
        rung *= reduction_factor
    return tuple(found)
