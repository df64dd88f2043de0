"""One page about an experiment: report.html and report.md.

python -m analysis.report results/A   writes results/A/report.html and results/A/report.md

The page holds everything itself (no network, no script), in light and dark, for wide and narrow screens. What an experiment
does not have yet, or has lost, is named instead of shown.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from analysis.experiment import OpenedExperiment
from analysis.figures.theme import DARK, LIGHT
from analysis.plots import all_figures
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.fidelity import format_share, images_judged_by, learned_against_dense
from maskpro.files import write_text
from maskpro.machine.process import one_line
from maskpro.schedule.folder import BEST_FOLDER, REPORT_FILE
from maskpro.schedule.history import METRIC, SHARE
from maskpro.schedule.trial_table import FIGURES, OF_SHARES, single_figures

_TEMPLATE = Path(__file__).with_name("report.html.jinja")

# Trials that are shown at once; the others are below a fold.
_BEST_SHOWN = 15
_FAILURES_SHOWN = 50

CAPTIONS = {
    "pareto_front": "What each trial of a search of num_dense came to: its error, and what of the network its mask leaves "
    "sparse. No trial is better than one of the front in one of them and as good in the other. In the figures of "
    "the search fidelity is common_fidelity, which relates to the initial mask of num_dense 0. Where 0 is not among the "
    "values, it compares trials of one num_dense alone.",
    "best_so_far": "How good the search's best mask was after how many calibration samples of all trials together.",
    "learning_curves": "Every trial's fidelity as it learned. Dotted lines: rungs, where early stopping judged it. Where "
    "promoted trials are trained anew, their curves fall behind a rung and rise again.",
    "learning_curves_by_time": "The same by the trial's own seconds.",
    "fidelity_against_cost": "What each trial came to for its seconds.",
    "parallel_coordinates": "Parameters of every trial and its fidelity; trials that were stopped are faint.",
    "slices": "Fidelity against each parameter by itself. Trials that were stopped early had less time to learn.",
    "parameter_importance": "Which parameters made the difference, by two of Optuna's evaluators: of few trials a hint. "
    "Trials that were stopped early count with what they had reached.",
    "timestep_losses": "Where in the noise schedule the masks lose.",
    "layer_changes": "What the best mask changed in each layer, in the order in which the network lists them.",
    "dense_curve": "What the initial mask gains where its most sensitive layers are kept dense, beside the learned mask of "
    "all layers. The curve is of 256 validation samples, the line of all of them. best/dense_curve.csv names the layers "
    "for --dense.",
}


@dataclass(kw_only=True)
class Report:
    """What is to be said of an experiment, before it becomes a page.

    Attributes:
        facts: (name, value) of what matters first.
        missing: what can't be shown, and why.
        candidates: the masks of which one was picked; empty where there was one alone.
        picked_by: what picked it.
        front: the Pareto front; empty where nothing but the error was searched for.
        warnings: what the final evaluation's figures can't tell.
        pictures: file name to caption of what the final evaluation has drawn; other versions have captions by name alone.
    """

    title: str
    headline: str
    facts: list[tuple[str, str]]
    trials: pd.DataFrame
    evaluation: pd.DataFrame
    config: Mapping[str, Any]
    protocol: Mapping[str, Any]
    description: Mapping[str, Any]
    failures: list[str]
    candidates: pd.DataFrame
    picked_by: str
    front: pd.DataFrame
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pictures: Mapping[str, str] = field(default_factory=dict)


def gather(experiment: OpenedExperiment) -> Report:
    """What an experiment's folder tells.

    Raises:
        MaskproError: a file of it is not what was written.
    """
    trials, description = experiment.trials, experiment.description
    evaluated = experiment.final_evaluation or {}
    missing = ["the description of the search (experiment.json)"] if description is None else []
    if not evaluated:
        missing.append("the final evaluation (the search has not come to its end)")
    elif experiment.is_going_on:
        missing.append(
            "the final evaluation of the whole search, which goes on: the one that is shown is an earlier session's"
        )
    try:
        config = experiment.best_config
    except MaskproError:
        config = None
    if config is None:
        missing.append("a promoted mask (best/)")
    parameters = experiment.searched_parameters
    columns = ["trial", *(name for name in parameters if name in trials), "status", "num_samples_seen"]
    columns += [name for name in (*FIGURES, *OF_SHARES, "seconds", "source") if name in trials]
    ordered = trials.sort_values(METRIC)[columns] if len(trials) else trials
    failed = trials[trials["status"] == "failed"] if len(trials) else trials
    candidates = evaluated.get("candidates", [])
    return Report(
        title=one_line(experiment.name),
        headline=_headline(evaluated, trials, experiment.best_trial),
        facts=_facts(experiment, trials, description or {}, evaluated),
        trials=ordered,
        evaluation=single_figures(experiment.evaluation).drop(columns="experiment"),
        config=config or {},
        protocol=evaluated.get("protocol", {}),
        description=description or {},
        failures=[f"trial {row.trial}: {row.failure}" for row in failed.itertuples()],
        candidates=pd.DataFrame(candidates if len(candidates) > 1 else []),
        picked_by=str(evaluated.get("picked_by", "")),
        front=experiment.pareto_front.drop(columns="experiment"),
        missing=missing,
        warnings=evaluated.get("warnings", []),
        pictures=evaluated.get("pictures", {}),
    )


def _headline(evaluated: Mapping[str, Any], trials: pd.DataFrame, best: str | None) -> str:
    if evaluated:
        return learned_against_dense(evaluated)
    if best is None:
        reported = trials[METRIC].notna().any() if len(trials) else False
        if len(trials) and (trials["status"] == "failed").all():
            return f"All {len(trials)} trials that were started have failed."
        return "No trial that may be promoted has reported yet." if reported else "No trial has reported yet."
    reached = trials.loc[trials["trial_id"] == best, "fidelity"].iloc[0]
    return f"Not evaluated yet. The best trial so far has a fidelity of {format_share(reached)} on validation samples."


def _facts(
    experiment: OpenedExperiment, trials: pd.DataFrame, description: Mapping[str, Any], evaluated: Mapping[str, Any]
) -> list[tuple[str, str]]:
    states = trials["status"].value_counts() if len(trials) else pd.Series(dtype="int64")
    facts = [("trials", f"{len(trials)} of {experiment.history.num_trials}")]
    facts += [(str(state), str(count)) for state, count in states.items()]
    if len(trials):
        spent = int(trials["num_samples_trained"].sum())
        full = description.get("trial", {}).get("max_samples")
        facts.append(("calibration samples", f"{spent:,}"))
        facts += [("in full trials", f"{spent / full:.2f}")] if full else []
        facts.append(("trial seconds", f"{trials['seconds'].sum():,.0f}"))
    dense = evaluated.get("dense_layers", {})
    if dense.get("layers"):
        facts.append(("layers that stay dense", str(len(dense["layers"]))))
        facts += [
            (f"their share of the {of}", f"{dense[name]:.1%}")
            for of, name in (("weights", "weights_share"), ("multiply-adds", "multiply_adds_share"))
        ]
    chosen = experiment.promoted
    if chosen is not None:
        facts.insert(0, ("evaluated trial", str(chosen.number)))
    if chosen is not None and SHARE in chosen.last:
        facts.insert(1, ("its num_dense", str(chosen.params["num_dense"])))
        facts.insert(2, ("its multiply-adds that stay sparse", f"{chosen.last[SHARE]:.1%}"))
        facts.insert(3, ("trials of the Pareto front", str(len(experiment.pareto_front))))
    for name in ("recovery", "fidelity"):
        if evaluated.get(name) is not None:
            facts.insert(0, (f"test {name}", format_share(evaluated[name])))
    pattern = description.get("space", {}).get("pattern")
    return facts + ([("pattern", str(pattern))] if pattern else [])


def _cell(value: Any) -> str:
    if value is None or (not isinstance(value, list | dict | str) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 or math.isinf(value) else f"{value:,.0f}"
    return str(value)


def _html_table(frame: pd.DataFrame, identity: str | None = None) -> str:
    """pandas' own table of the frame, which escapes what stands in it; empty for a frame without rows."""
    if not len(frame):
        return ""
    shown = frame.map(_cell).rename(columns=lambda name: str(name).removeprefix("num_").replace("_", " "))
    with pd.option_context("display.max_colwidth", None):
        table: str = shown.to_html(index=False, border=0, table_id=identity)
    return table


def _pairs(values: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([{"name": name, "value": value} for name, value in _flat(values)], dtype=object)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _inline(buffer.getvalue())


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def render_html(report: Report, figures: Mapping[str, tuple[str, str]], grids: Mapping[str, str]) -> str:
    """The page; `figures` are (light, dark) data addresses by name, `grids` those of the pictures by caption."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    space = report.description.get("space", {})
    details = {
        "the best mask's configuration": report.config,
        "protocol of the evaluation": report.protocol,
        "the search": {**report.description, "space": {name: value for name, value in space.items() if name != "source"}},
    }
    return environment.get_template(_TEMPLATE.name).render(
        report=report,
        evaluation=_html_table(report.evaluation, "evaluation"),
        judged_by=images_judged_by(report.protocol),
        candidates=_html_table(report.candidates, "candidates"),
        front=_html_table(report.front, "front"),
        grids=list(grids.items()),
        figures=[(name, *pair) for name, pair in figures.items()],
        captions=CAPTIONS,
        trials=_html_table(report.trials.head(_BEST_SHOWN), "trials"),
        others=_html_table(report.trials.iloc[_BEST_SHOWN:]),
        num_others=len(report.trials) - _BEST_SHOWN,
        failures_shown=_FAILURES_SHOWN,
        space_file=space.get("source", ""),
        details=[(title, _html_table(_pairs(values))) for title, values in details.items() if values],
    )


def render_markdown(report: Report) -> str:
    """The report's text and tables, without its figures."""
    lines = [f"# {report.title}", "", report.headline, ""]
    lines += _markdown_table(["", ""], [[name, value] for name, value in report.facts])
    for what in report.missing:
        lines.append(f"- not here: {what}")
    for title, frame in (
        ("Final evaluation on test samples", report.evaluation),
        (f"Candidates, picked by {report.picked_by}", report.candidates),
        ("Pareto front", report.front),
        (f"Trials, the best {_BEST_SHOWN}", report.trials.head(_BEST_SHOWN)),
    ):
        if len(frame):
            rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
            lines += ["", f"## {title}", "", *_markdown_table([str(name) for name in frame.columns], rows)]
            if frame is report.evaluation:
                lines += [line for text in report.warnings for line in ("", f"**Warning:** {text}.")]
                judged = images_judged_by(report.protocol)
                lines += ["", judged] if judged else []
    if report.failures:
        lines += ["", "## Failures", "", *(f"- {text}" for text in report.failures[:_FAILURES_SHOWN])]
    return "\n".join(lines) + "\n"


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows))
    first, *others = (f"| {' | '.join(row)} |" for row in escaped)
    return [first, "|" + "---|" * len(head), *others]


def write_report(experiment: Path) -> Path:
    """Write report.html and report.md into the experiment's folder; the path of the first.

    Raises:
        MaskproError: it is not the folder of a search.
    """
    opened = OpenedExperiment(experiment)
    report = gather(opened)
    (light, dark), missing = all_figures(opened, LIGHT, DARK)
    report.missing += [f"{name.replace('_', ' ')}: {reason}" for name, reason in missing.items()]
    figures = {name: (_png(light[name]), _png(dark[name])) for name in CAPTIONS if name in light}
    grids = {
        report.pictures.get(path.name, path.stem.replace("_", " ")): _inline(path.read_bytes())
        for path in sorted((experiment / BEST_FOLDER).glob("*.png"))
    }
    write_text(experiment / REPORT_FILE, render_html(report, figures, grids))
    write_text(experiment / "report.md", render_markdown(report))
    return experiment / REPORT_FILE


def main(experiment: Path) -> None:
    """Write report.html and report.md of an experiment into its folder."""
    print(write_report(experiment))


if __name__ == "__main__":
    run_command(main)
