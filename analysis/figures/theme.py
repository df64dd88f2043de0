"""The light and dark look of all figures.

Colours are those of Okabe and Ito, and matplotlib's cividis. Colour-blind people can tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of a figure: paper, ink, trials and masks; and the part of cividis that is visible on the paper."""

    paper: str
    ink: str
    best: str
    seed: str
    suggested: str
    good: str
    shades: tuple[float, float]

    def settings(self) -> dict[str, Any]:
        """The theme as matplotlib's rcParams."""
        inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        papers = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
        return {
            **dict.fromkeys(inks, self.ink),
            **dict.fromkeys(papers, self.paper),
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.fontsize": 8,
            "legend.framealpha": 0.6,
        }


LIGHT = Theme(
    paper="#ffffff", ink="#222222", best="#D55E00", seed="#0072B2", suggested="#999999", good="#009E73", shades=(0.0, 0.85)
)
DARK = Theme(
    paper="#16181d", ink="#e6e6e6", best="#E69F00", seed="#56B4E9", suggested="#8a8f98", good="#3ec29b", shades=(0.35, 1.0)
)
FIDELITY_LABEL = "fidelity on validation (0 = initial mask, 1 = dense)"


def themed(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Wrap a figure's function so that it draws in the colours of its argument `theme` (default: light)."""

    @wraps(draw)
    def drawn(*frames: Any, theme: Theme = LIGHT, **named: Any) -> Figure:
        with rc_context(theme.settings()):
            return draw(*frames, theme=theme, **named)

    return drawn


def lowest_shown(values: pd.Series, limit: float) -> float:
    """Where an axis or a scale of colours begins: at the lowest value, but not below `limit` if any value lies above it."""
    lowest, highest = float(values.min()), float(values.max())
    return lowest if highest <= limit else max(lowest, limit)


def new_figure(
    title: str, *, width: float = 7.6, height: float = 4.3, columns: int = 1, rows: int = 1
) -> tuple[Figure, Any]:
    """An empty figure and its axes, `[rows, columns]`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title)
    return figure, axes
