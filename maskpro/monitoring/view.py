"""What a search looks like: its state at one moment, as lines of text or as a live table; imports neither Ray nor torch."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from maskpro.fidelity import format_share
from maskpro.machine.process import one_line
from maskpro.schedule.history import METRIC, History, TrialRecord
from maskpro.schedule.ranking import best_so_far
from maskpro.schedule.rungs import Ladder

# Between two changes of a live view.
REFRESH_SECONDS = 0.5
# Failures that are shown, and of each so many characters.
_ERRORS_SHOWN = 3
_ERROR_LENGTH = 160
_BAR_WIDTH = 40
# The clocks of two hosts may differ so much; a clock that is further behind has been set back.
_CLOCK_SKEW_SECONDS = 60.0

# What a row of the view is called, and what it says.
Row = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The trial of the search with the lowest val_error at its last report; it may still run."""

    number: int
    val_error: float
    fidelity: float | None
    params: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SearchSnapshot:
    """A search at one moment.

    Attributes:
        num_trials: in all, those that are still to come included.
        unfinished: trials that run, or will be resumed.
        to_come: trials that have not been started.
        samples: calibration samples that all trials were trained on.
        full_samples: what that would be if each trial ran once, to its full budget; None: unknown.
        elapsed: seconds since the newest session began; None: unknown, as where the clock has been set back.
        seconds_left: an estimate from this session's pace; None: too early to say.
        errors: failures of trials, one line each, newest trial last.
        num_reports: of all trials.
    """

    num_trials: int
    unfinished: int
    completed: int
    stopped: int
    failed: int
    to_come: int
    best: Best | None
    samples: int
    full_samples: int | None
    elapsed: float | None
    seconds_left: float | None
    errors: tuple[str, ...]
    num_reports: int

    @property
    def ended(self) -> int:
        """Trials that are done, in whatever way; a stopped one may still be promoted."""
        return self.completed + self.stopped + self.failed

    @property
    def has_work(self) -> bool:
        """Whether a trial runs, waits to be resumed or has to be started."""
        return self.unfinished > 0 or self.to_come > 0


def take_snapshot(
    history: History,
    *,
    num_trials: int,
    max_samples: int | None,
    now: datetime.datetime,
    ladder: Ladder | None = None,
) -> SearchSnapshot:
    """The search that `history` tells of, as it stands at `now`.

    Args:
        num_trials: that it is to have in all.
        max_samples: calibration samples of a trial that runs to its full budget; None: unknown.
        ladder: how far the search's trials run; None: unknown.
    """
    # One look at each trial: what is asked for twice a second must not take long with a thousand of them.
    statuses = {number: record.status for number, record in history.trials.items()}
    counts = Counter(statuses.values())
    unfinished = [record for number, record in history.trials.items() if statuses[number] == "unfinished"]
    failed = [record for number, record in history.trials.items() if statuses[number] == "failed"]
    samples = sum(record.trained for record in history.trials.values())
    to_come = max(0, num_trials - len(statuses))
    elapsed = _seconds_since(history.session_time, now)
    if ladder is None:
        left = _samples_left(history, unfinished, to_come=to_come, max_samples=max_samples)
    else:
        left = _samples_left_on(ladder, history, num_trials=num_trials)
    seen = samples - history.trained_before_session
    return SearchSnapshot(
        num_trials=max(num_trials, len(statuses)),
        unfinished=len(unfinished),
        completed=counts["completed"],
        stopped=counts["stopped"],
        failed=len(failed),
        to_come=to_come,
        best=_best(history),
        samples=samples,
        full_samples=None if max_samples is None else max_samples * max(num_trials, len(statuses)),
        elapsed=elapsed,
        seconds_left=None if left is None or not elapsed or seen <= 0 else left * elapsed / seen,
        errors=tuple(_error_line(record) for record in failed[-_ERRORS_SHOWN:]),
        num_reports=sum(len(record.reports) for record in history.trials.values()),
    )


def _best(history: History) -> Best | None:
    best = best_so_far(history.trials.values(), history.min_sparse_share)
    if best is None:
        return None
    figures = best.last
    return Best(number=best.number, val_error=figures[METRIC], fidelity=figures.get("fidelity"), params=best.params)


def _samples_left_on(ladder: Ladder, history: History, *, num_trials: int) -> float:
    searched = history.searched
    beside = [record for record in history.trials.values() if record.is_confirmation]
    num_searched = max(history.num_trials, len(searched))
    to_come = max(0, num_trials - num_searched - len(beside))
    full = ladder.ends[-1]
    left_beside = sum(full - record.samples for record in beside if not record.failure)
    return ladder.samples_left(searched, num_searched) + left_beside + to_come * full


def _samples_left(
    history: History, unfinished: Sequence[TrialRecord], *, to_come: int, max_samples: int | None
) -> float | None:
    """If the trials that are left see as many as those that have ended; one that has seen more goes to its full budget."""
    num_ended = len(history.trials) - len(unfinished)
    if not num_ended:
        return None
    seen_by_unfinished = sum(record.samples for record in unfinished)
    mean = (sum(record.samples for record in history.trials.values()) - seen_by_unfinished) / num_ended
    most = mean if max_samples is None else max_samples
    ends = (mean if record.samples < mean else max(most, record.samples) for record in unfinished)
    return to_come * mean + sum(ends) - seen_by_unfinished


def _seconds_since(time: str, now: datetime.datetime) -> float | None:
    try:
        seconds = (now - datetime.datetime.fromisoformat(time)).total_seconds()
    except (TypeError, ValueError):  # no time, or one without a time zone
        return None
    return None if seconds < -_CLOCK_SKEW_SECONDS else max(0.0, seconds)


def _error_line(record: TrialRecord) -> str:
    text = " ".join(record.failure.split())
    return f"trial {record.number}: {text if len(text) <= _ERROR_LENGTH else f'{text[:_ERROR_LENGTH]}...'}"


def summary_rows(snapshot: SearchSnapshot, devices: Sequence[Row] = (), *, is_running: bool = True) -> list[Row]:
    """What there is to say of a search: names and texts, in the order they are shown.

    Args:
        devices: rows about the machine.
    """
    return [
        ("trials", _trials(snapshot, is_running)),
        ("best so far", _describe_best(snapshot)),
        ("samples seen", _budget(snapshot)),
        ("time", _time(snapshot, is_running)),
        *devices,
        *(("failure", line) for line in snapshot.errors),
    ]


def plain_summary(title: str, rows: Sequence[Row]) -> str:
    """A block of lines, for a file or a pipe."""
    return "\n".join(map(one_line, [title, *(f"  {name}: {text}" for name, text in rows)]))


def live_view(title: str, snapshot: SearchSnapshot, rows: Sequence[Row]) -> RenderableType:
    """The same in a terminal, with a bar of the trials that have ended."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    total = max(1, snapshot.num_trials)
    table.add_row("", ProgressBar(total=total, completed=snapshot.ended, width=_BAR_WIDTH, complete_style="green"))
    for name, text in rows:
        table.add_row(name, Text(text, style="red" if name == "failure" else ""))
    return Group(Text(title, style="bold"), table)


def _trials(snapshot: SearchSnapshot, is_running: bool) -> str:
    counts = {
        "running" if is_running else "unfinished": snapshot.unfinished,
        "completed": snapshot.completed,
        "stopped": snapshot.stopped,
        "failed": snapshot.failed,
        "to come": snapshot.to_come,
    }
    return f"{', '.join(f'{count:,} {name}' for name, count in counts.items())}; {snapshot.num_trials:,} in all"


def _describe_best(snapshot: SearchSnapshot) -> str:
    best = snapshot.best
    if best is None:  # failed trials can't be promoted, nor those that leave less than min_sparse_share sparse
        return "no trial that may be promoted has reported yet" if snapshot.num_reports else "no trial has reported yet"
    params = ", ".join(f"{name} {_short(value)}" for name, value in best.params.items())
    reached = format_share(best.fidelity)
    return f"trial {best.number}, fidelity {reached}, {METRIC} {best.val_error:.3g}{f' ({params})' if params else ''}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _budget(snapshot: SearchSnapshot) -> str:
    if not snapshot.full_samples:
        return f"{snapshot.samples:,}"
    share = snapshot.samples / snapshot.full_samples
    return f"{snapshot.samples:,}, {share:.0%} of {snapshot.full_samples:,} (all trials to their full budget)"


def _time(snapshot: SearchSnapshot, is_running: bool) -> str:
    if snapshot.elapsed is None:
        return "unknown"
    elapsed = f"{format_seconds(snapshot.elapsed)} in this session"
    if not is_running:
        return elapsed.replace("this", "its last")
    if not snapshot.has_work or snapshot.seconds_left is None:
        return elapsed
    return f"{elapsed}, about {format_seconds(snapshot.seconds_left)} left"


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units, such as 45 s, 12 min 05 s, 3 h 20 min or 2 d 4 h."""
    whole = round(seconds)
    days, hours, minutes = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
