"""The best mask: its changes in each layer, and its losses over the noise schedule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.theme import Theme, new_figure, themed

# Share of an axis by which two points are apart whose numbers can both be read.
_APART = 0.03


@themed
def layer_changes(layers: pd.DataFrame, *, theme: Theme) -> Figure:
    """For each layer of the best mask: the share of the initial mask's kept positions that it drops, and its sparsity."""
    figure, axes = new_figure("The best mask by layer", height=1.2 + 0.17 * max(6, len(layers)))
    ax, places = axes[0, 0], np.arange(len(layers))
    ax.barh(places, 100 * layers["changed_share"], color=theme.seed, label="changed positions")
    ax.plot(100 * layers["sparsity"], places, "|", color=theme.best, markersize=6, label="sparsity")
    ax.set_yticks(places, layers["layer"], fontsize=6)
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.set(xlabel="% of the kept positions that changed; % of the weights that are zero")
    ax.legend(loc="lower right")
    return figure


@themed
def timestep_losses(timesteps: pd.DataFrame, *, theme: Theme) -> Figure:
    """Test loss over the noise schedule: dense network, initial and learned mask."""
    figure, axes = new_figure("Test loss by timestep")
    ax = axes[0, 0]
    styles = {"dense": (theme.good, ":", "o"), "initial": (theme.suggested, "--", "s"), "learned": (theme.best, "-", "^")}
    for model, (color, line, marker) in styles.items():
        part = timesteps[timesteps["model"] == model]
        ax.plot(part["tenth"], part["test_loss"].astype(float), line, marker=marker, color=color, label=model)
    ax.set_yscale("log")
    ax.set_xticks(range(1, 11))
    ax.set(xlabel="tenth of the noise schedule (1 = little noise, 10 = much)", ylabel="loss on test images")
    ax.legend()
    return figure


def numbered_points(shares: Sequence[float], reached: Sequence[float]) -> list[int]:
    """Positions of the points whose numbers can be read: those far enough from the last one that has its number."""
    kept: list[int] = []
    for row, (share, value) in enumerate(zip(shares, reached, strict=True)):
        if not kept or abs(share - shares[kept[-1]]) > _APART * 100 or abs(value - reached[kept[-1]]) > _APART:
            kept.append(row)
    return kept


@themed
def dense_curve(curve: pd.DataFrame, *, learned: float | None, theme: Theme) -> Figure:
    """Fidelity of the initial mask with its most sensitive layers dense, against what stays sparse; the learned mask's."""
    figure, axes = new_figure("Layers kept dense")
    ax = axes[0, 0]
    shares, reached = 100 * curve["sparse_multiply_adds_share"], curve["fidelity"].astype(float)
    ax.plot(shares, reached, "-o", color=theme.suggested, label="initial mask, with so many layers dense")
    for row in numbered_points(shares.tolist(), reached.tolist()):
        number = str(curve["num_dense"].iloc[row])
        ax.annotate(number, (shares.iloc[row], reached.iloc[row]), textcoords="offset points", xytext=(3, 5), fontsize=6)
    if learned is not None:
        ax.axhline(learned, color=theme.best, linestyle="--", label="learned mask, no more layers dense")
    ax.invert_xaxis()
    ax.set(xlabel="% of the multiply-adds that stay sparse", ylabel="fidelity (validation)")
    ax.legend(loc="lower right")
    return figure
