"""The timesteps of a noise schedule that a sampler visits.

Sampling begins with pure noise, so the first timestep must lie where training images were almost pure noise. A sampler that
begins in the middle of the schedule makes wrong images without an error.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from maskpro.errors import MaskproError

TimestepSpacing = Literal["leading", "trailing", "linspace", "quad"]

# Earliest place of the first timestep, as a share of the schedule: DDIM's quadratic schedule begins there.
_FIRST_PLACE = 0.8


def parse_spacing(text: str | None) -> TimestepSpacing | None:
    """The timestep spacing of that name; None: chosen by the number of steps."""
    for spacing in get_args(TimestepSpacing):
        if text == spacing:
            return spacing  # type: ignore[no-any-return]
    if text is None:
        return None
    raise MaskproError(f"timestep_spacing is {text!r}; allowed: {', '.join(get_args(TimestepSpacing))}")


def resolve_spacing(every: int, steps: int, spacing: TimestepSpacing | None) -> TimestepSpacing:
    """The given spacing; for None "leading" (DDIM's uniform one) if it reaches the schedule's end, else "trailing"."""
    if spacing is not None:
        return spacing
    return "leading" if every % steps == 0 and _reaches_end(_leading(every, steps), every) else "trailing"


def sampling_timesteps(every: int, steps: int, spacing: TimestepSpacing | None = None) -> list[int]:
    """The timesteps of a schedule of `every` that `steps` steps visit, the noisiest first.

    "leading", "trailing" and "linspace" are those of Lin et al. 2023 (arXiv 2305.08891, table 2), as in diffusers, but
    without the rounding error by which its "trailing" adds a timestep of -1 for some numbers of steps. "quad" is the
    quadratic schedule of Song et al. 2021 (DDIM, appendix D.3) as in its authors' code; it begins at 0.8 of the schedule.
    It names some of the earliest timesteps several times. A repeated step changes nothing, so each is visited once.

    Raises:
        MaskproError: the steps can't be spaced so: the first timestep would lie too far from the schedule's end.
    """
    spacing = resolve_spacing(every, steps, spacing)
    timesteps = _SPACINGS[spacing](every, steps)
    if spacing == "leading" and every % steps:
        raise MaskproError(
            f"sampling_steps is {steps} with timestep_spacing leading, which would begin at timestep {timesteps[0]} of "
            f"{every}; allowed: a divisor of {every}, or timestep_spacing trailing or linspace"
        )
    if not _reaches_end(timesteps, every):
        raise MaskproError(
            f"sampling_steps is {steps} with timestep_spacing {spacing}, which would begin at timestep {timesteps[0]} of "
            f"{every} with pure noise; allowed: more steps, or timestep_spacing trailing"
        )
    return timesteps


def _reaches_end(timesteps: list[int], every: int) -> bool:
    return timesteps[0] == every - 1 or timesteps[0] >= int(_FIRST_PLACE * every)


def _leading(every: int, steps: int) -> list[int]:
    return [step * (every // steps) for step in reversed(range(steps))]


def _trailing(every: int, steps: int) -> list[int]:
    return [round(Fraction(every * left, steps)) - 1 for left in range(steps, 0, -1)]


def _linspace(every: int, steps: int) -> list[int]:
    return [int(timestep) for timestep in np.linspace(0, every - 1, steps).round()[::-1]]


def _quad(every: int, steps: int) -> list[int]:
    roots = np.linspace(0, np.sqrt(_FIRST_PLACE * every), steps)
    return sorted({int(root**2) for root in roots}, reverse=True)


_SPACINGS = {"leading": _leading, "trailing": _trailing, "linspace": _linspace, "quad": _quad}
