"""The relation of the searched parameters to the trials' results."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from analysis.experiment import judged_trials
from analysis.figures.theme import Theme, lowest_shown, new_figure, themed
from maskpro.errors import MaskproError
from maskpro.schedule.history import METRIC

# Length, in characters, up to which the name of a choice is drawn in full.
_LABEL_LENGTH = 14


def _short(label: str) -> str:
    """A label shortened to leave room for its neighbours: `targets` may name whole layers."""
    return label if len(label) <= _LABEL_LENGTH else f"{label[:6]}\N{HORIZONTAL ELLIPSIS}{label[7 - _LABEL_LENGTH :]}"


def _turned(labels: Sequence[str], room: int) -> dict[str, Any]:
    """Settings of an axis's labels if they take more than `room` characters together."""
    return {"rotation": 25, "ha": "right"} if sum(map(len, labels)) > room else {}


def _number(tick: float) -> str:
    return f"{tick:,.0f}" if 1000 <= abs(tick) < 1e6 else f"{tick:.3g}"


def _positions(values: pd.Series, distribution: Mapping[str, Any]) -> tuple[pd.Series, list[float], list[str]]:
    """Places of a parameter's values from 0 to 1 in its range, and ticks with their names."""
    attributes = distribution["attributes"]
    if "choices" in attributes:
        choices = list(attributes["choices"])
        scale = max(1, len(choices) - 1)
        places = values.map(lambda value: choices.index(value) / scale if value in choices else np.nan)
        return places, [place / scale for place in range(len(choices))], [_short(str(choice)) for choice in choices]
    low, high = float(attributes["low"]), float(attributes["high"])
    numbers = pd.to_numeric(values, errors="coerce")
    if attributes.get("log"):
        ticks = np.geomspace(low, high, 3)
        return np.log(numbers / low) / np.log(high / low), [0.0, 0.5, 1.0], [_number(tick) for tick in ticks]
    ticks = np.linspace(low, high, 3)
    return (numbers - low) / (high - low or 1.0), [0.0, 0.5, 1.0], [_number(tick) for tick in ticks]


@themed
def parallel_coordinates(trials: pd.DataFrame, parameters: Mapping[str, Any], *, theme: Theme) -> Figure:
    """A line per trial through its parameters to its fidelity, which sets the colour; stopped trials are faint."""
    figure, axes = new_figure("Parallel coordinates")
    ax, judged = axes[0, 0], judged_trials(trials)
    lowest, highest = (lowest_shown(judged["fidelity"], -0.2), judged["fidelity"].max()) if len(judged) else (0, 1)
    shades = Normalize(lowest, highest)
    colors = ScalarMappable(shades, ListedColormap(colormaps["cividis"](np.linspace(*theme.shades, 256))))
    columns = [_positions(judged[name], distribution) for name, distribution in parameters.items()]
    heights = pd.Series(shades(judged["fidelity"].to_numpy()), index=judged.index).clip(0, 1)
    places = np.stack([*(places for places, _, _ in columns), heights], axis=1).astype(float)
    lines = np.stack(np.broadcast_arrays(np.arange(places.shape[1]), places), axis=2)
    lines_colors = colors.to_rgba(judged["fidelity"].to_numpy())
    lines_colors[:, 3] = np.where(judged["status"] == "completed", 0.9, 0.45)
    ax.add_collection(LineCollection(list(lines), colors=lines_colors, linewidths=1.4))
    for place, (_, ticks, names) in enumerate(columns):
        ax.axvline(place, color=theme.suggested, linewidth=0.8)
        for tick, name in zip(ticks, names, strict=True):
            ax.annotate(
                name, (place, tick), xytext=(-3, 0), textcoords="offset points", ha="right", va="center", fontsize=7
            )
    axis_names = [*parameters, "fidelity"]
    ax.set_xticks(range(len(axis_names)), axis_names, **_turned(axis_names, 60))
    ax.set_yticks([])
    ax.set(xlim=(-0.4, len(columns) + 0.1), ylim=(-0.05, 1.05))
    ax.set_ylabel("place in the searched range")
    figure.colorbar(colors, ax=ax, label="fidelity on validation")
    return figure


@themed
def slices(trials: pd.DataFrame, parameters: Mapping[str, Any], *, theme: Theme) -> Figure:
    """Fidelity against each parameter by itself."""
    names = list(parameters) or ["(no parameter was searched)"]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = new_figure(
        "Slices: fidelity against each parameter", columns=columns, rows=rows, height=0.6 + 2.3 * rows
    )
    judged = judged_trials(trials)
    for ax, name in zip(axes.flat, names, strict=False):
        if name not in parameters:
            continue
        places, ticks, labels = _positions(judged[name], parameters[name])
        for marker, color, label, chosen in (
            ("x", theme.suggested, "stopped early or unfinished", judged["status"] != "completed"),
            ("o", theme.best, "ran to its budget", judged["status"] == "completed"),
        ):
            ax.plot(places[chosen], judged.loc[chosen, "fidelity"], marker, color=color, label=label, markersize=4)
        ax.set_xticks(ticks, labels, **_turned(labels, 16))
        ax.set(xlabel=name, xlim=(-0.05, 1.05))
    for ax in list(axes.flat)[len(names) :]:
        ax.set_axis_off()
    for row in axes:
        row[0].set_ylabel("fidelity")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def importances(trials: pd.DataFrame, parameters: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Evaluator to parameter to the share of val_error's variance that it explains, by two of Optuna's evaluators.

    A search minimises val_error. Fidelity would not do: its unit is the error of each trial's own initial mask.

    Raises:
        MaskproError: too few trials, or all have the same val_error.
    """
    import optuna
    from optuna.distributions import json_to_distribution
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    judged = judged_trials(trials)
    if len(judged) < 4 or judged[METRIC].nunique() < 2 or not parameters:
        raise MaskproError(
            f"{len(judged)} trials have a val_error; different values: {judged[METRIC].nunique()}; allowed: at least 4 "
            "trials and 2 different values, for parameter importance"
        )
    distributions = {name: json_to_distribution(json.dumps(value)) for name, value in parameters.items()}
    optuna.logging.disable_default_handler()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="minimize")
    for _, trial in judged.iterrows():
        params = {name: _plain(trial[name]) for name in parameters}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=float(trial[METRIC])))
    found = {}
    for label, evaluator in (
        ("fANOVA", FanovaImportanceEvaluator(seed=0)),
        ("PED-ANOVA (of the better half)", PedAnovaImportanceEvaluator(target_quantile=0.5)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one evaluator is experimental, and both warn about few trials
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(parameters))
        found[label] = {name: shares.get(name, 0.0) for name in parameters}
    return found


@themed
def parameter_importance(found: Mapping[str, Mapping[str, float]], *, theme: Theme) -> Figure:
    """The result of `importances`: a bar per parameter and evaluator, ordered by the first evaluator."""
    first = next(iter(found.values()))
    names = sorted(first, key=lambda name: first[name])
    figure, axes = new_figure("Parameter importance", height=1.4 + 0.5 * len(names))
    ax = axes[0, 0]
    for offset, color, (label, shares) in zip((0.2, -0.2), (theme.seed, theme.best), found.items(), strict=True):
        places = [place + offset for place in range(len(names))]
        ax.barh(places, [shares[name] for name in names], height=0.38, color=color, label=label)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="importance (shares of 1)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
