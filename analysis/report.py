"""One page about an experiment: report.html and report.md.

python -m analysis.report results/A   writes results/A/report.html and results/A/report.md

The page holds everything itself (no network, no script), in light and dark, for wide and narrow screens. What an experiment
does not have yet, or has lost, is named instead of shown.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import DARK, LIGHT, all_figures, best_trial
from analysis.trials import (
    has_evaluation,
    load_evaluation,
    load_history,
    load_trials,
    read_evaluation,
    searched_parameters,
)
from maskpro.cli import run_command
from maskpro.errors import MaskproError
from maskpro.evaluation.fidelity import format_share, learned_against_dense
from maskpro.files import read_json, write_text
from maskpro.tuning.history import METRIC
from maskpro.tuning.trial_table import FIGURES, single_figures

# Trials that are shown at once; the others are below a fold.
_BEST_SHOWN = 15

CAPTIONS = {
    "best_so_far": "How good the search's best mask was after how many calibration samples of all trials together.",
    "learning_curves": "Every trial's fidelity as it learned. Dotted lines: rungs, where early stopping judged it.",
    "learning_curves_by_time": "The same by the trial's own seconds.",
    "fidelity_against_cost": "What each trial came to for its seconds.",
    "parallel_coordinates": "Parameters of every trial and its fidelity; trials that were stopped are faint.",
    "slices": "Fidelity against each parameter by itself. Trials that were stopped early had less time to learn.",
    "parameter_importance": "Which parameters made the difference, by two of Optuna's evaluators: of few trials a hint. "
    "Trials that were stopped early count with what they had reached.",
    "timestep_losses": "Where in the noise schedule the masks lose.",
    "layer_changes": "What the best mask changed in each layer, in the order in which the network lists them.",
}
_GRIDS = {"dense": "dense network", "initial": "initial mask", "learned": "learned mask"}

_STYLE = """
:root { --paper: #ffffff; --ink: #222222; --soft: #666a70; --line: #dddddd; --card: #f5f6f8; --accent: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181d; --ink: #e6e6e6; --soft: #a0a6ad; --line: #33373e; --card: #1f2229; --accent: #e69f00; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p.lead { font-size: 1.1rem; } .warning { color: var(--accent); }
.soft, figcaption { color: var(--soft); font-size: 0.9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.75rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: 0.5rem; padding: 0.6rem 0.8rem; }
.card b { display: block; font-size: 1.35rem; color: var(--accent); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; border: 1px solid var(--line); }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); gap: 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--card); } td:first-child, th:first-child { text-align: left; }
code { overflow-wrap: anywhere; } details { margin: 0.75rem 0; } summary { cursor: pointer; }
"""


@dataclass(kw_only=True)
class Report:
    """What is to be said of an experiment, before it becomes a page.

    Attributes:
        facts: (name, value) of what matters first.
        missing: what can't be shown, and why.
        warnings: what the final evaluation's figures can't tell.
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
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def gather(experiment: Path) -> Report:
    """Read an experiment's folder.

    Raises:
        MaskproError: it is not the folder of a search.
    """
    history, trials = load_history(experiment), load_trials(experiment)
    missing: list[str] = []

    def optional(what: str, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = read_json(experiment / name)
        except MaskproError:
            missing.append(what)
            return {}
        return found

    description = optional("the description of the search (experiment.json)", "experiment.json")
    evaluated = read_evaluation(experiment) if has_evaluation(experiment) else {}
    if not evaluated:
        missing.append("the final evaluation (the search has not come to its end)")
    config = optional("a promoted mask (best/)", "best/config.json")
    evaluation = load_evaluation(experiment) if evaluated else pd.DataFrame()
    parameters = searched_parameters(experiment) if description else {}
    columns = ["trial", *(name for name in parameters if name in trials), "status", "num_samples_seen"]
    columns += [name for name in (*FIGURES, "seconds", "source") if name in trials]
    ordered = trials.sort_values(METRIC)[columns] if len(trials) else trials
    failed = trials[trials["status"] == "failed"] if len(trials) else trials
    return Report(
        title=experiment.absolute().name,
        headline=_headline(evaluated, trials),
        facts=_facts(trials, history.num_trials, description, evaluated),
        trials=ordered,
        evaluation=single_figures(evaluation).drop(columns="experiment", errors="ignore"),
        config=config,
        protocol=evaluated.get("protocol", {}),
        description=description,
        failures=[f"trial {row.trial}: {row.failure}" for row in failed.itertuples()],
        missing=missing,
        warnings=evaluated.get("warnings", []),
    )


def _headline(evaluated: Mapping[str, Any], trials: pd.DataFrame) -> str:
    if evaluated:
        return learned_against_dense(evaluated)
    best = best_trial(trials) if len(trials) else None
    if best is None:
        return "No trial has reported yet."
    reached = trials.loc[trials["trial_id"] == best, "fidelity"].iloc[0]
    return f"Not evaluated yet. The best trial so far has a fidelity of {format_share(reached)} on validation samples."


def _facts(
    trials: pd.DataFrame, num_trials: int, description: Mapping[str, Any], evaluated: Mapping[str, Any]
) -> list[tuple[str, str]]:
    states = trials["status"].value_counts() if len(trials) else pd.Series(dtype="int64")
    facts = [("trials", f"{len(trials)} of {num_trials}")]
    facts += [(str(state), str(count)) for state, count in states.items()]
    if len(trials):
        spent = int(trials["num_samples_seen"].sum())
        full = description.get("trial", {}).get("max_samples")
        facts.append(("calibration samples", f"{spent:,}"))
        facts += [("in full trials", f"{spent / full:.2f}")] if full else []
        facts.append(("trial seconds", f"{trials['seconds'].sum():,.0f}"))
    dense = evaluated.get("dense_layers", {})
    if dense.get("layers"):
        shares = f"{dense['weights_share']:.1%} of the weights, {dense['multiply_adds_share']:.1%} of the multiply-adds"
        facts.append(("layers that stay dense", f"{len(dense['layers'])} ({shares})"))
    for name in ("recovery", "fidelity"):
        if evaluated.get(name) is not None:
            facts.insert(0, (f"test {name}", format_share(evaluated[name])))
    pattern = description.get("space", {}).get("pattern")
    return facts + ([("pattern", str(pattern))] if pattern else [])


def _judged_by(protocol: Mapping[str, Any]) -> str:
    """What the images were judged by, in a sentence; "" where they were not, or the protocol does not say."""
    features = protocol.get("frechet_features")
    if not features:
        return ""
    return (
        f"Frechet distance, kernel distance, precision and recall: {protocol['num_generated']:,} images of each network "
        f"against {protocol['frechet_reference']}, in the features {features}."
    )


def _cell(value: Any) -> str:
    if value is None or (not isinstance(value, list | dict | str) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 or math.isinf(value) else f"{value:,.0f}"
    return str(value)


def _html_table(frame: pd.DataFrame, identity: str = "") -> str:
    head = "".join(
        f"<th>{html.escape(name.removeprefix('num_').replace('_', ' '))}</th>" for name in map(str, frame.columns)
    )
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row) + "</tr>"
        for row in frame.itertuples(index=False)
    )
    name = f' id="{identity}"' if identity else ""
    return f'<div class="wide"><table{name}><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _html_pairs(values: Mapping[str, Any]) -> str:
    rows = pd.DataFrame([{"name": name, "value": _cell(value)} for name, value in _flat(values)])
    return _html_table(rows) if len(rows) else "<p>none</p>"


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


def _html_figure(name: str, light: str, dark: str) -> str:
    caption = html.escape(CAPTIONS[name])
    return (
        f'<figure id="{name}"><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def render_html(report: Report, figures: Mapping[str, tuple[str, str]], grids: Mapping[str, str]) -> str:
    """The page; `figures` are (light, dark) data addresses by name, `grids` those of sample pictures."""
    cards = "".join(
        f'<div class="card">{html.escape(name)}<b>{html.escape(value)}</b></div>' for name, value in report.facts
    )
    parts = [
        f"<h1>{html.escape(report.title)}</h1>",
        f'<p class="lead">{html.escape(report.headline)}</p>',
        f'<div class="cards">{cards}</div>',
    ]
    if report.missing:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in report.missing)
        parts.append(f'<h2>Not here</h2><ul id="missing">{items}</ul>')
    if len(report.evaluation):
        parts += ["<h2>Final evaluation on test images</h2>", _html_table(report.evaluation, "evaluation")]
        parts += [f'<p class="warning">Warning: {html.escape(text)}.</p>' for text in report.warnings]
        judged = _judged_by(report.protocol)
        parts += [f'<p class="soft">{html.escape(judged)}</p>'] if judged else []
    if grids:
        shown = "".join(
            f'<figure><img src="{grids[name]}" alt="images of the {label}"><figcaption>{label}</figcaption></figure>'
            for name, label in _GRIDS.items()
            if name in grids
        )
        parts.append(f'<h2>Images from the same noise</h2><div class="grids">{shown}</div>')
    if figures:
        drawn = "".join(_html_figure(name, *pair) for name, pair in figures.items())
        parts.append(f'<h2>The search</h2><div class="figures">{drawn}</div>')
    parts.append("<h2>Trials, best first</h2>")
    if len(report.trials):
        parts.append(_html_table(report.trials.head(_BEST_SHOWN), "trials"))
        rest = report.trials.iloc[_BEST_SHOWN:]
        if len(rest):
            parts.append(f"<details><summary>the other {len(rest)}</summary>{_html_table(rest)}</details>")
    else:
        parts.append("<p>none yet</p>")
    if report.failures:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in report.failures[:50])
        more = f"<p>and {len(report.failures) - 50} more</p>" if len(report.failures) > 50 else ""
        parts.append(f'<h2>Failures</h2><ul id="failures">{items}</ul>{more}')
    for title, values in (
        ("the best mask's configuration", report.config),
        ("protocol of the evaluation", report.protocol),
        ("the search", report.description),
    ):
        if values:
            parts.append(f"<details><summary>{title}</summary>{_html_pairs(values)}</details>")
    parts.append(
        '<p class="soft">Fidelity: 1 - E_learned / E_initial, E the mean squared difference from the dense network\'s '
        "output; 0 is the initial mask, 1 the dense network. Recovery: (L_initial - L_learned) / (L_initial - L_dense), L "
        "the loss of the noise prediction, which is noisier. "
        "Validation values chose the mask; test values chose nothing.</p>"
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Without this a browser asks a server for one.
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(report.title)} - maskpro</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def render_markdown(report: Report) -> str:
    """The report's text and tables, without its figures."""
    lines = [f"# {report.title}", "", report.headline, ""]
    lines += _markdown_table(["", ""], [[name, value] for name, value in report.facts])
    for what in report.missing:
        lines.append(f"- not here: {what}")
    for title, frame in (
        ("Final evaluation on test images", report.evaluation),
        (f"Trials, the best {_BEST_SHOWN}", report.trials.head(_BEST_SHOWN)),
    ):
        if len(frame):
            rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
            lines += ["", f"## {title}", "", *_markdown_table([str(name) for name in frame.columns], rows)]
            if frame is report.evaluation:
                lines += [line for text in report.warnings for line in ("", f"**Warning:** {text}.")]
                judged = _judged_by(report.protocol)
                lines += ["", judged] if judged else []
    if report.failures:
        lines += ["", "## Failures", "", *(f"- {text}" for text in report.failures[:50])]
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
    report = gather(experiment)
    (light, dark), missing = all_figures(experiment, LIGHT, DARK)
    report.missing += [f"{name.replace('_', ' ')}: {reason}" for name, reason in missing.items()]
    figures = {name: (_png(light[name]), _png(dark[name])) for name in CAPTIONS if name in light}
    pictures = {name: experiment / "best" / f"samples_{name}.png" for name in _GRIDS}
    grids = {name: _inline(path.read_bytes()) for name, path in pictures.items() if path.is_file()}
    write_text(experiment / "report.html", render_html(report, figures, grids))
    write_text(experiment / "report.md", render_markdown(report))
    return experiment / "report.html"


def main(experiment: Path) -> None:
    """Write report.html and report.md of an experiment into its folder."""
    print(write_report(experiment))


if __name__ == "__main__":
    run_command(main)
