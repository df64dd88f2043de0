"""The main job: a session of a search, then promotion, then what the terminal shows of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from maskpro.fidelity import format_share, learned_against_dense
from maskpro.files import says_no_room
from maskpro.machine.interruption import Interruption, exit_status, interruptible
from maskpro.machine.process import is_terminal
from maskpro.monitoring.driver_log import driver_log, say
from maskpro.schedule.folder import TRIALS_FILE, resuming
from maskpro.schedule.history import METRIC, SHARE, TrialRecord
from maskpro.schedule.ranking import best_trials, completed_by_error
from maskpro.schedule.trial_table import OF_SHARES, tabulate_front
from maskpro.tuning.experiment import Experiment, open_experiment, running_session, trial_resources, write_trials
from maskpro.tuning.parallel_parts import ray_parts
from maskpro.tuning.promotion import confirmation_plans, correlation_name, figure_label, promote, write_best
from maskpro.tuning.search import Search
from maskpro.workload_evaluation import Produce

# The exit status of a search all of whose trials failed.
NOTHING_LEARNED = 3
# Of the failures that are told at the end.
_MOST_REASONS, _LONGEST_REASON = 5, 200


def run_main_job(search: Search, write_report: Callable[[Path], Path], *, resume: bool, extend: int = 0) -> int:
    """Run a search, or resume it, promote its best trial, and report; the process's exit status.

    A stopped search leaves everything that `--resume` needs: 0 after its time budget, 130 after Ctrl-C, 143
    after SIGTERM, 129 after SIGHUP, 1 where the machine failed. 3 if all trials failed.

    Args:
        write_report: writes the report of an experiment's folder and returns its path.

    Raises:
        MaskproError: the search can't be run, or no trial came to anything.
    """
    with (
        open_experiment(search, resume=resume, extend=extend) as experiment,
        driver_log(experiment.folder),
        ExitStack() as stack,
    ):
        stack.callback(ray.shutdown)
        say(f"experiment: {experiment.folder}")
        for note in search.workload.notes:
            say(f"model {search.workload.model_source}: {note}")
        if search.dense_layers.layers:
            say(search.dense_layers.line())
        interruption = Interruption()
        try:
            with interruptible(interruption, None):
                ended_early = _run_trials(experiment)
                if ended_early.reason:
                    return _leave(experiment, ended_early)
                write_trials(experiment)
                if _tell_failures(experiment.history.searched):
                    return NOTHING_LEARNED
                report = promote(experiment, make=partial(_make_parts, experiment))
                _summarise(experiment, report)
                path = write_report(experiment.folder)
        except KeyboardInterrupt:
            reason = interruption.reason or "Ctrl-C"
            say(f"stopped by {reason} after the trials; resume with {_resuming(experiment)}")
            return exit_status(reason)
        except Exception as error:
            if not says_no_room(str(error)):
                raise
            place = experiment.folder
            say(f"paused: {place} has no room left ({error}); make room and resume with {_resuming(experiment)}")
            return 1
        say(f"report: {path}")
        return 0


def _tell_failures(records: Sequence[TrialRecord]) -> bool:
    """Say how many trials have failed, and why; True if all have."""
    failed = [record for record in records if record.failure]
    reasons: dict[str, list[int]] = {}
    for record in failed:
        reasons.setdefault(" ".join(record.failure.split())[:_LONGEST_REASON], []).append(record.number)
    if failed:
        say(f"{len(failed)} of {len(records)} trials failed, see failure in {TRIALS_FILE}")
    for reason, numbers in sorted(reasons.items(), key=lambda item: -len(item[1]))[:_MOST_REASONS]:
        say(f"  {len(numbers)}, trial {numbers[0]} the first: {reason}")
    all_failed = len(failed) == len(records) > 0
    if all_failed:
        say("all trials failed: there is no mask to promote")
    return all_failed


def _resuming(experiment: Experiment) -> str:
    return resuming(experiment.folder)


def _run_trials(experiment: Experiment) -> Interruption:
    """Run what is left; why it was ended before it was complete, if it was."""
    interruption = Interruption()
    state = experiment.search_state()
    experiment.remove_unneeded(state)
    if state.is_over and not experiment.is_left(confirmation_plans(experiment)):
        return interruption
    try:
        # Also until Ray is up, which then puts a handler of SIGTERM in place that ends the process.
        with interruptible(interruption, None), running_session(experiment, interruption) as session:
            if session.run_search() and session.run_planned(confirmation_plans(experiment)):
                return Interruption()
    except KeyboardInterrupt:  # before or after Tune's own loop
        pass
    interruption.reason = interruption.reason or "Ctrl-C"
    return interruption


def _make_parts(experiment: Experiment, model: nn.Module, produce: Produce, parts: Sequence[range]) -> Iterator[Tensor]:
    """Parts by all of Ray's nodes; Ray is started only if there are any to be made."""
    return ray_parts(trial_resources(experiment))(model, produce, parts)


def _leave(experiment: Experiment, interruption: Interruption) -> int:
    history = experiment.history
    ended = sum(record.status != "unfinished" for record in history.searched)
    least = history.min_sparse_share
    try:
        write_trials(experiment)
        if completed_by_error(history.searched, least):
            (best,) = best_trials(history.searched, 1, least)
            reached = format_share(write_best(experiment, best)["fidelity"])
            say(f"best so far: trial {best.number}, fidelity {reached}; its masks are in best/, not evaluated")
    except Exception as error:
        # What stopped the search stops this as well, and all of it is done again in the end.
        if not interruption.problem and not says_no_room(str(error)):
            raise
    stood = f"{ended} of {history.num_trials} trials ended; resume with {_resuming(experiment)}"
    if interruption.problem:
        say(f"paused: {interruption.problem}; {stood}")
        return 1
    say(f"stopped by {interruption.reason} with {stood}")
    return exit_status(interruption.reason)


def _summarise(experiment: Experiment, report: dict[str, Any]) -> None:
    """Print the trials and the final evaluation as tables, and where everything is."""
    console = Console(width=None if is_terminal(sys.stdout) else 140)
    trials, domains = experiment.trials(), experiment.search.space.domains
    shares = [name for name in OF_SHARES if name in trials]
    columns = ["trial", *domains, "status", "num_samples_seen", "fidelity", *shares, "recovery", "seconds", "source"]
    console.print(_table("trials, best first", trials.sort_values(METRIC)[columns]))
    front = tabulate_front(experiment.history.searched)
    if len(front):
        console.print(_table(f"Pareto front: {len(front)} trials", front))
        chosen = report["protocol"]
        say(
            f"promoted: {chosen['trial_id']}, num_dense {chosen['num_dense']}, {chosen[SHARE]:.1%} of the multiply-adds in "
            "layers with a mask; fidelity compares trials of one num_dense alone, val_error and common_fidelity all of them"
        )
    if len(report["candidates"]) > 1:
        console.print(_table(f"candidates, picked by {report['picked_by']}", pd.DataFrame(report["candidates"])))
    shown = list(experiment.search.evaluation.shown)
    models = pd.DataFrame(list(report["models"].values()), index=list(report["models"]))[shown]
    console.print(_table("final evaluation on test samples", models.reset_index(names="model")))
    for text in report["warnings"]:
        say(f"warning: {text}")
    say(learned_against_dense(report))
    prediction = report["prediction"]
    if prediction is not None:
        figure = experiment.search.evaluation.picked_by or ""
        correlation = prediction[correlation_name(figure)]
        text = "undefined" if correlation is None else f"{correlation:.2f}"
        what = f"validation error and {figure_label(figure)} over {len(report['candidates'])} masks"
        say(f"rank correlation of {what}: {text}")
    say(f"results: {experiment.folder}")


def _table(title: str, frame: pd.DataFrame) -> Table:
    table = Table(title=title, title_justify="left")
    for name in frame.columns:
        table.add_column(name.removeprefix("num_").replace("_", " "), justify="right")
    for row in frame.itertuples(index=False):
        texts = ("" if pd.isna(cell) else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row)
        table.add_row(*map(Text, texts))  # as they are: brackets are no markup
    return table
