"""Figures of an experiment, each a function of the frames of `analysis.trials`.

python -m analysis.plots results/A   writes results/A/figures/*.png

Colours are those of Okabe and Ito, and matplotlib's cividis, which colour-blind people can tell apart.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from analysis.trials import load_curves, load_description, load_layers, load_timesteps, load_trials, searched_parameters
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.schedule.folder import EXPERIMENT_FILE
from maskpro.schedule.history import METRIC


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of a figure: paper, ink, what trials and masks are drawn in; and what of cividis shows on the paper."""

    paper: str
    ink: str
    best: str
    seed: str
    suggested: str
    good: str
    shades: tuple[float, float]

    def settings(self) -> dict[str, Any]:
        """As matplotlib's rcParams."""
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

_FIDELITY = "fidelity on validation (0 = initial mask, 1 = dense)"
# Characters of the longest name of a choice that is drawn in full.
_LABEL_LENGTH = 14


def _themed(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(draw)
    def themed(*frames: Any, theme: Theme = LIGHT, **named: Any) -> Figure:
        with rc_context(theme.settings()):
            return draw(*frames, theme=theme, **named)

    return themed


def _new(title: str, *, width: float = 7.6, height: float = 4.3, columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title)
    return figure, axes


def best_trial(trials: pd.DataFrame) -> str | None:
    """trial_id of the best trial, as promotion ranks them: of those that ran to their budget, where there are any."""
    judged = trials[trials[METRIC].notna() & (trials["status"] != "failed")]
    completed = judged[judged["status"] == "completed"]
    chosen = judged if completed.empty else completed
    return None if chosen.empty else str(chosen.nsmallest(1, METRIC)["trial_id"].iloc[0])


@_themed
def learning_curves(
    trials: pd.DataFrame, curves: pd.DataFrame, *, theme: Theme, by: str = "num_samples_seen", rungs: Iterable[int] = ()
) -> Figure:
    """Fidelity of every trial by samples seen or by seconds; a cross where one was stopped early, lines at the rungs."""
    label = {"num_samples_seen": "calibration samples seen", "seconds": "seconds of training and validation"}[by]
    figure, axes = _new(f"Learning curves by {'samples' if by == 'num_samples_seen' else 'time'}")
    ax, best = axes[0, 0], best_trial(trials)
    for rung in rungs if by == "num_samples_seen" else ():
        ax.axvline(rung, color=theme.suggested, linewidth=0.7, linestyle=":")
    parts = dict(tuple(curves.groupby("trial_id")))
    # Drawn kind by kind, not trial by trial: a thousand artists take many seconds.
    kinds = {"suggested": (theme.suggested, 1.0), "seed point": (theme.seed, 1.0), "best trial": (theme.best, 2.2)}
    markers = {"ran to its budget": "o", "stopped early, failed or unfinished": "x"}
    lines: dict[str, list[Any]] = {kind: [] for kind in kinds}
    ends: dict[tuple[str, str], list[Any]] = {(kind, marker): [] for kind in kinds for marker in markers.values()}
    for trial in trials.itertuples():
        curve = parts.get(trial.trial_id)
        points = None if curve is None else curve[[by, "fidelity"]].dropna().to_numpy(float)
        if points is None or not len(points):
            continue
        is_seed = pd.notna(trial.seed_point)
        kind = "best trial" if trial.trial_id == best else "seed point" if is_seed else "suggested"
        lines[kind].append(points)
        ends[kind, "o" if trial.status == "completed" else "x"].append(points[-1])
        if is_seed:  # the others are too many to name
            color = kinds[kind][0]
            ax.annotate(f" seed {trial.seed_point}", points[-1], fontsize=7, va="center", color=color)
    for order, (kind, (color, width)) in enumerate(kinds.items(), 1):
        ax.add_collection(LineCollection(lines[kind], colors=color, linewidths=width, zorder=order), autolim=True)
        for marker in markers.values():
            places = np.array(ends[kind, marker]).reshape(-1, 2)
            ax.plot(places[:, 0], places[:, 1], marker, color=color, markersize=5, zorder=order)
    for kind, (color, _) in reversed(kinds.items()):
        ax.plot([], [], color=color, label=kind)
    for name, marker in markers.items():
        ax.plot([], [], marker, color=theme.ink, label=name)
    ax.set(xlabel=label, ylabel=_FIDELITY)
    ax.margins(x=0.1)  # room for the names of seed points
    # One that went wrong at once would leave the others no room.
    lowest = curves["fidelity"].quantile(0.02) if curves["fidelity"].notna().any() else 0.0
    ax.set_ylim(bottom=max(min(lowest, 0.0), -1.0) - 0.05)
    ax.legend(loc="lower right")
    return figure


@_themed
def best_so_far(trials: pd.DataFrame, *, theme: Theme) -> Figure:
    """The best trial's fidelity by samples spent, trial after trial in the order of their start; seed points are marked.

    Best is the lowest val_error, as promotion ranks. Where trials begin with different initial masks, another one may have
    the higher fidelity, which is in units of its own initial mask's error.
    """
    figure, axes = _new("Best so far")
    ax = axes[0, 0]
    judged = trials[(trials["status"] != "failed") & trials["fidelity"].notna()]
    spent = trials["num_samples_seen"].cumsum().loc[judged.index]
    is_best = judged[METRIC] == judged[METRIC].cummin()
    ax.step(
        spent, judged["fidelity"].where(is_best).ffill(), where="post", color=theme.best, label="best so far", linewidth=2
    )
    for color, marker, name, chosen in (
        (theme.seed, "s", "seed point", judged["seed_point"].notna()),
        (theme.suggested, "o", "suggested by the searcher", judged["seed_point"].isna()),
    ):
        ax.plot(spent[chosen], judged.loc[chosen, "fidelity"], marker, color=color, label=name, markersize=5)
    ax.set(xlabel="calibration samples spent by all trials", ylabel=_FIDELITY)
    ax.set_ylim(bottom=max(judged["fidelity"].min() if len(judged) else 0.0, -1.0) - 0.05)
    ax.legend(loc="lower right")
    return figure


def _short(label: str) -> str:
    """A label that its neighbours leave room for: `targets` may name whole layers."""
    return label if len(label) <= _LABEL_LENGTH else f"{label[:6]}\N{HORIZONTAL ELLIPSIS}{label[7 - _LABEL_LENGTH :]}"


def _turned(labels: Sequence[str], room: int) -> dict[str, Any]:
    """How an axis's labels are set that take more than `room` characters together."""
    return {"rotation": 25, "ha": "right"} if sum(map(len, labels)) > room else {}


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
        return np.log(numbers / low) / np.log(high / low), [0.0, 0.5, 1.0], [f"{tick:.3g}" for tick in ticks]
    ticks = np.linspace(low, high, 3)
    return (numbers - low) / (high - low or 1.0), [0.0, 0.5, 1.0], [f"{tick:.3g}" for tick in ticks]


def _judged(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials with a fidelity, the best, by their val_error, last: it is drawn over the others."""
    judged = trials[(trials["status"] != "failed") & trials["fidelity"].notna()]
    return judged.sort_values(METRIC, ascending=False, kind="stable")


@_themed
def parallel_coordinates(trials: pd.DataFrame, parameters: Mapping[str, Any], *, theme: Theme) -> Figure:
    """A line per trial through its parameters to its fidelity, which colours it; trials that were stopped are faint."""
    figure, axes = _new("Parallel coordinates")
    ax, judged = axes[0, 0], _judged(trials)
    shades = Normalize(
        max(judged["fidelity"].min(), -0.2) if len(judged) else 0, judged["fidelity"].max() if len(judged) else 1
    )
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


@_themed
def slices(trials: pd.DataFrame, parameters: Mapping[str, Any], *, theme: Theme) -> Figure:
    """Fidelity against each parameter by itself."""
    names = list(parameters) or ["(no parameter was searched)"]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _new("Slices: fidelity against each parameter", columns=columns, rows=rows, height=0.6 + 2.3 * rows)
    judged = _judged(trials)
    for ax, name in zip(axes.flat, names, strict=False):
        if name not in parameters:
            continue
        places, ticks, labels = _positions(judged[name], parameters[name])
        for marker, color, label, chosen in (
            ("x", theme.suggested, "stopped early", judged["status"] != "completed"),
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

    val_error is what a search goes by; a fidelity's unit is the error of its trial's own initial mask.

    Raises:
        MaskproError: too few trials, or all alike.
    """
    import optuna
    from optuna.distributions import json_to_distribution
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    judged = _judged(trials)
    if len(judged) < 4 or judged[METRIC].nunique() < 2 or not parameters:
        raise MaskproError(
            f"{len(judged)} trials have a val_error, {judged[METRIC].nunique()} different ones; allowed: at least 4 trials "
            "and 2 different values, for parameter importance"
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
            warnings.simplefilter("ignore")  # one is experimental, both warn of few trials
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(parameters))
        found[label] = {name: shares.get(name, 0.0) for name in parameters}
    return found


@_themed
def parameter_importance(found: Mapping[str, Mapping[str, float]], *, theme: Theme) -> Figure:
    """What `importances` found: a bar per parameter and evaluator, ordered by the first one."""
    first = next(iter(found.values()))
    names = sorted(first, key=lambda name: first[name])
    figure, axes = _new("Parameter importance", height=1.4 + 0.5 * len(names))
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


@_themed
def fidelity_against_cost(trials: pd.DataFrame, *, theme: Theme) -> Figure:
    """What each trial reached for the seconds that it took."""
    figure, axes = _new("Fidelity against cost")
    ax, judged = axes[0, 0], _judged(trials)
    for marker, color, label, chosen in (
        ("x", theme.suggested, "stopped early or unfinished", judged["status"] != "completed"),
        ("o", theme.best, "ran to its budget", judged["status"] == "completed"),
    ):
        ax.plot(
            judged.loc[chosen, "seconds"], judged.loc[chosen, "fidelity"], marker, color=color, label=label, markersize=5
        )
    ax.set(xlabel="seconds of training and validation", ylabel=_FIDELITY)
    ax.set_ylim(bottom=max(judged["fidelity"].min() if len(judged) else 0.0, -1.0) - 0.05)
    ax.legend(loc="lower right")
    return figure


@_themed
def layer_changes(layers: pd.DataFrame, *, theme: Theme) -> Figure:
    """Of each layer of the best mask: share of the initial mask's kept positions that it drops, and its sparsity."""
    figure, axes = _new("The best mask by layer", height=1.2 + 0.17 * max(6, len(layers)))
    ax, places = axes[0, 0], np.arange(len(layers))
    ax.barh(places, 100 * layers["changed_share"], color=theme.seed, label="changed positions")
    ax.plot(100 * layers["sparsity"], places, "|", color=theme.best, markersize=6, label="sparsity")
    ax.set_yticks(places, layers["layer"], fontsize=6)
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.set(xlabel="% of the kept positions that changed; % of the weights that are zero")
    ax.legend(loc="lower right")
    return figure


@_themed
def timestep_losses(timesteps: pd.DataFrame, *, theme: Theme) -> Figure:
    """Test loss over the noise schedule: dense network, initial and learned mask."""
    figure, axes = _new("Test loss by timestep")
    ax = axes[0, 0]
    styles = {"dense": (theme.good, ":", "o"), "initial": (theme.suggested, "--", "s"), "learned": (theme.best, "-", "^")}
    for model, (color, line, marker) in styles.items():
        part = timesteps[timesteps["model"] == model]
        ax.plot(part["tenth"], part["test_loss"].astype(float), line, marker=marker, color=color, label=model)
    ax.set_yscale("log")
    ax.set_xticks(range(1, 11))
    ax.set(xlabel="tenth of the noise schedule (1 = little noise, 10 = much)", ylabel="noise MSE on test images")
    ax.legend()
    return figure


def rungs(experiment: Path) -> list[int]:
    """Samples at which early stopping judged the trials of an experiment; none where it did not."""
    described = load_description(experiment)
    trial, space = described.get("trial", {}), described.get("space", {})
    first, last, factor = trial.get("report_samples"), trial.get("max_samples"), space.get("reduction_factor")
    if described.get("scheduler") != "asha" or not (first and last and factor and factor > 1):
        return []
    found = []
    while first < last:
        found.append(int(first))
        first *= factor
    return found


def all_figures(experiment: Path, *themes: Theme) -> tuple[list[dict[str, Figure]], dict[str, str]]:
    """The figures of an experiment by name, once for each theme; and by name the reason for those that can't be drawn.

    Raises:
        MaskproError: it is not the folder of a search.
    """
    trials, curves, layers, timesteps = (
        load(experiment) for load in (load_trials, load_curves, load_layers, load_timesteps)
    )
    has_description = (experiment / EXPERIMENT_FILE).is_file()
    parameters = searched_parameters(experiment) if has_description else {}
    parameters = {name: value for name, value in parameters.items() if name in trials.columns}
    marks = rungs(experiment) if has_description else []
    missing: dict[str, str] = {}
    no_reports = "no trial has reported yet" if _judged(trials).empty else ""
    no_parameters = no_reports or ("" if parameters else "no parameter was searched")
    found = cache(lambda: importances(trials, parameters))  # takes longer than drawing it
    drawn: tuple[tuple[str, str, Callable[[Theme], Figure]], ...] = (
        ("best_so_far", no_reports, lambda theme: best_so_far(trials, theme=theme)),
        ("learning_curves", no_reports, lambda theme: learning_curves(trials, curves, rungs=marks, theme=theme)),
        ("learning_curves_by_time", no_reports, lambda theme: learning_curves(trials, curves, by="seconds", theme=theme)),
        ("fidelity_against_cost", no_reports, lambda theme: fidelity_against_cost(trials, theme=theme)),
        ("parallel_coordinates", no_parameters, lambda theme: parallel_coordinates(trials, parameters, theme=theme)),
        ("slices", no_parameters, lambda theme: slices(trials, parameters, theme=theme)),
        ("parameter_importance", no_parameters, lambda theme: parameter_importance(found(), theme=theme)),
        (
            "timestep_losses",
            "" if len(timesteps) else "no final evaluation with losses by timestep",
            lambda theme: timestep_losses(timesteps, theme=theme),
        ),
        (
            "layer_changes",
            "" if len(layers) else "no promoted mask with a layers.csv",
            lambda theme: layer_changes(layers, theme=theme),
        ),
    )
    figures: list[dict[str, Figure]] = [{} for _ in themes]
    for name, why_not, draw in drawn:
        try:
            if why_not:
                raise MaskproError(why_not)
            for place, theme in zip(figures, themes, strict=True):
                place[name] = draw(theme)
        except MaskproError as error:
            missing[name] = str(error)
    return figures, missing


def main(experiment: Path) -> None:
    """Write the figures of an experiment into its folder `figures/`."""
    (figures,), missing = all_figures(experiment, LIGHT)
    (experiment / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        path = experiment / "figures" / f"{name}.png"
        figure.savefig(path, dpi=120)
        print(path)
    for name, reason in missing.items():
        print(f"not drawn: {name} ({reason})")


if __name__ == "__main__":
    run_command(main)
