"""The events of a search: an append-only file of JSON lines, and the trials that follow from them.

A search resumes from this file alone. Ray Tune's own snapshots are up to ten seconds old when a driver is killed, and hold
neither the early stopping's records nor the searcher's running trials. Here a line is written before anything acts on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maskpro.errors import MaskproError
from maskpro.schedule.event_file import broken_line, check_checkpoint_path, parse_events, read_events, write_line

# The metric that a search minimises: the mean squared difference from the dense network's output on the validation samples,
# the E of `fidelity`. It compares trials with different initial masks, which fidelity does not.
METRIC = "val_error"
# The metric that a search of num_dense maximises beside it: of all Conv2d and Linear layers' multiply-adds those in layers
# with a mask. And fidelity in units of the initial mask of num_dense 0, which compares trials of any num_dense.
SHARE, COMMON_FIDELITY = "sparse_multiply_adds_share", "common_fidelity"
DIRECTIONS = {METRIC: "minimize", SHARE: "maximize"}
Status = Literal["completed", "stopped", "failed", "unfinished"]
# What each kind of event holds, and of which type.
_FIELDS: Mapping[str, Mapping[str, type]] = {
    "session": {"num_trials": int, "time": str},
    "warm_start": {"params": dict, "value": float, "source": str},
    "trial": {"trial": int, "params": dict, "source": str, "seed": int},
    "go_on": {"trial": int, "promoted": bool},
    "report": {"trial": int, "metrics": dict, "stopped": bool},
    "checkpoint": {"trial": int, "path": str, "samples": int},
    "removed": {"trial": int, "left": list},
    "error": {"trial": int, "text": str},
}
_OPTIONAL_FIELDS: Mapping[str, type] = {"min_sparse_share": float, SHARE: float, "reports": list}
# Parts of a checkpoint, as in `MaskTrainer.state_dict`; each needs the ones before it.
PARTS = ("mask", "logits", "exact")
# Parts that a stopped trial keeps, and from which it resumes when it is promoted.
STOPPED_PARTS = PARTS[:2]


@dataclass(kw_only=True)
class TrialRecord:
    """One trial, as recorded in the history.

    Attributes:
        number: 1, 2, ... in the order of their start.
        params: the searched parameters; with the space's fixed ones they make the trial's config.
        source: "seed point 2", the searcher's name, "replay" or "confirmation of trial 3".
        seed: seed of its calibration samples and sampled masks.
        reports: metrics by samples seen.
        samples: calibration samples seen at the last report.
        stopped: True while it waits at a rung, or has ended there.
        stopped_at: samples at its last stop, even if it was promoted afterwards; None: it never stopped.
        parts: number of starts: one, and one more after each stop, kill or end of a session.
        checkpoint: the newest one, relative to the folder of the trials' storage; "" where there is none.
        checkpoint_samples: samples seen when the checkpoint was made.
        checkpoint_parts: parts of the checkpoint that have not been removed.
        promoted: True from a promotion until the next checkpoint. The trial then resumes from the coarse logits alone, so
            that nothing depends on whether the rest has been removed already.
        error: why it died; "" where it did not.
    """

    number: int
    params: dict[str, Any]
    source: str
    seed: int
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    samples: int = 0
    stopped: bool = False
    stopped_at: int | None = None
    parts: int = 1
    checkpoint: str = ""
    checkpoint_samples: int = -1
    checkpoint_parts: tuple[str, ...] = PARTS
    promoted: bool = False
    error: str = ""

    @property
    def name(self) -> str:
        """Name of the trial, the same for all of its parts."""
        return f"trial_{self.number:05d}"

    @property
    def folder(self) -> str:
        """Folder of the trial's current part: a part never overwrites the checkpoint that it resumes from."""
        return self.folders[-1]

    @property
    def folders(self) -> list[str]:
        """Folders of all parts of the trial so far."""
        return [self.name, *(f"{self.name}_part{part}" for part in range(2, self.parts + 1))]

    @property
    def last(self) -> dict[str, Any]:
        """Metrics of the last report; {} without one."""
        return self.reports.get(self.samples, {})

    @property
    def trained(self) -> int:
        """Samples that it was trained on: more than `samples` where its runs up to earlier rungs count as well."""
        trained = int(self.last.get("num_samples_trained", self.samples))
        # A run that began anew repeats reports, which are not recorded; its checkpoints tell how far it is.
        begun_anew = not self.stopped and self.samples == self.stopped_at and not self.promoted
        return trained + self.checkpoint_samples if begun_anew else trained

    @property
    def failure(self) -> str:
        """Why the trial failed; "" where it did not."""
        return self.error or str(self.last.get("failure", ""))

    @property
    def status(self) -> Status:
        """Status of the trial; an ended trial has a checkpoint of its last report, so its mask is safe."""
        if self.failure:
            return "failed"
        if not (self.stopped or self.last.get("done")) or self.checkpoint_samples != self.samples:
            return "unfinished"
        return "completed" if self.last["done"] else "stopped"

    def needed_parts(self, *, may_go_on: bool) -> tuple[str, ...]:
        """Needed parts of its newest checkpoint: all until it stops or ends, then those for promotion and final evaluation.

        Args:
            may_go_on: whether a stopped trial may still be promoted, in this session or a later one.
        """
        if self.status == "unfinished":
            return PARTS
        if self.status == "completed":
            return PARTS[:1]
        return STOPPED_PARTS if self.status == "stopped" and may_go_on else ()

    @property
    def seed_point(self) -> int | None:
        """The number of the seed point that the trial runs; None for other trials."""
        kind, _, number = self.source.rpartition(" ")
        return int(number) if kind == "seed point" else None

    @property
    def is_confirmation(self) -> bool:
        """True for a trial that repeats another one with a fresh seed; it takes no part in the search."""
        return self.source.startswith("confirmation")


class History:
    """The trials of a search, in memory and in a file.

    Args:
        path: the file; None keeps the history in memory only.

    Attributes:
        session_time: start of the newest session, in ISO 8601.
        trained_before_session: calibration samples that all trials were trained on until then.
        min_sparse_share: least share of multiply-adds in layers with a mask that the promoted trial shall have; None: any.
        reported: trial's number and samples of each report, in the order of the reports.
        failure: why a line could not be written; no further line is written then, as the search ends.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self.failure: OSError | None = None
        self.trials: dict[int, TrialRecord] = {}
        self._searched: list[TrialRecord] = []
        self.warm_start: list[dict[str, Any]] = []
        self.num_trials = self.num_sessions = self.trained_before_session = 0
        self.session_time = ""
        self.min_sparse_share: float | None = None
        self.reported: list[tuple[int, int]] = []
        if path is not None and path.exists():
            for number, event in enumerate(read_events(path), 1):
                self._take_in(event, path, number)

    @property
    def searched(self) -> list[TrialRecord]:
        """The trials of the search itself, in order."""
        return list(self._searched)

    @property
    def unfinished(self) -> list[TrialRecord]:
        """The trials that have neither stopped nor ended, in order."""
        return [trial for trial in self.trials.values() if trial.status == "unfinished"]

    def session(self, num_trials: int, *, time: str, min_sparse_share: float | None = None) -> None:
        """The search starts or resumes, and shall have `num_trials` trials in all."""
        least = {} if min_sparse_share is None else {"min_sparse_share": min_sparse_share}
        self._append(event="session", num_trials=num_trials, time=time, **least)

    def add_warm_start(
        self,
        params: dict[str, Any],
        value: float,
        source: str,
        reports: Sequence[tuple[int, float]] = (),
        share: float | None = None,
    ) -> None:
        """Give the searcher another experiment's trial: last value, each report's samples and value, its share if any."""
        told = {"params": params, "value": value, "source": source, "reports": list(map(list, reports))}
        self._append(event="warm_start", **told, **({} if share is None else {SHARE: share}))

    def start(self, params: dict[str, Any], *, source: str, seed: int) -> TrialRecord:
        """A new trial starts."""
        number = max(self.trials, default=0) + 1
        self._append(event="trial", trial=number, params=params, source=source, seed=seed)
        return self.trials[number]

    def go_on(self, number: int, *, promoted: bool) -> TrialRecord:
        """An interrupted trial, or with `promoted` a stopped one, resumes from its checkpoint."""
        self._append(event="go_on", trial=number, promoted=promoted)
        return self.trials[number]

    def report(self, number: int, metrics: dict[str, Any], *, stopped: bool) -> None:
        """A trial has reported `metrics`, and stops or not."""
        self._append(event="report", trial=number, metrics=metrics, stopped=stopped)

    def checkpoint(self, number: int, path: str, samples: int) -> None:
        """A trial's state after `samples` samples is in the folder `path`."""
        self._append(event="checkpoint", trial=number, path=path, samples=samples)

    def removed(self, number: int, left: tuple[str, ...]) -> None:
        """A trial's checkpoints were removed except these parts of the newest one."""
        self._append(event="removed", trial=number, left=left)

    def error(self, number: int, text: str) -> None:
        """A trial has died."""
        self._append(event="error", trial=number, text=text)

    def _append(self, **event: Any) -> None:
        if self.failure is not None:
            raise self.failure
        if self._path is not None:
            try:
                write_line(self._path, (json.dumps(event, allow_nan=False) + "\n").encode())
            except OSError as error:
                self.failure = error
                error.filename = error.filename or str(self._path)
                raise
        self._apply(event)

    def _take_in(self, event: dict[str, Any], path: Path, line: int) -> None:
        """Apply an event that was read from the file."""
        try:
            _check(event)
            self._apply(event)
        except (LookupError, TypeError) as error:
            raise broken_line(path, line, f"{type(error).__name__}: {error}") from error

    def _apply(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "session":
            self.num_trials, self.session_time = event["num_trials"], event["time"]
            self.min_sparse_share = event.get("min_sparse_share")
            self.num_sessions += 1
            self.trained_before_session = sum(record.trained for record in self.trials.values())
        elif kind == "warm_start":
            reports = event.get("reports", [])  # an older history lacks them
            known = {name: event[name] for name in ("params", "value", "source", *(event.keys() & {SHARE}))}
            self.warm_start.append(known | {"reports": reports})
        elif kind == "trial":
            record = TrialRecord(number=event["trial"], params=event["params"], source=event["source"], seed=event["seed"])
            self.trials[record.number] = record
            self._searched += [] if record.is_confirmation else [record]
        else:
            record = self.trials[event["trial"]]
            if kind == "report":
                record.samples = event["metrics"]["num_samples_seen"]
                record.reports[record.samples] = event["metrics"]
                self.reported.append((record.number, record.samples))
                record.stopped = event["stopped"]
                if record.stopped:
                    record.stopped_at = record.samples
            elif kind == "go_on":
                record.stopped = record.stopped and not event["promoted"]
                record.promoted |= event["promoted"]
                record.parts += 1
            elif kind == "checkpoint":
                record.checkpoint, record.checkpoint_samples = event["path"], event["samples"]
                record.checkpoint_parts, record.promoted = PARTS, False
            elif kind == "removed":
                record.checkpoint_parts = tuple(event["left"])
            elif kind == "error":
                record.error = event["text"] or "unknown error"


def _check(event: dict[str, Any]) -> None:
    """Raise LookupError or TypeError where an event lacks a field, or has one of another type."""
    for name, kind in _FIELDS[event["event"]].items():
        _check_type(name, event[name], kind)
    for name in event.keys() & _OPTIONAL_FIELDS.keys():
        _check_type(name, event[name], _OPTIONAL_FIELDS[name])
    if event["event"] == "checkpoint":
        check_checkpoint_path(event["path"])
    if event["event"] != "report":
        return
    metrics = event["metrics"]
    _check_type("num_samples_seen", metrics["num_samples_seen"], int)
    for name, value in metrics.items():
        if name == "failure":
            _check_type(name, value, str)
        elif value is not None:
            _check_type(name, value, int if name in ("num_samples_seen", "num_samples_trained") else float)
    if metrics.get(METRIC) is None and not metrics.get("failure"):
        raise TypeError(f"{METRIC} is None")


def _check_type(name: str, value: Any, kind: type) -> None:
    # A bool, such as "done", is a number for Python; true in place of a count is none for us.
    is_right = isinstance(value, int | float) if kind is float else type(value) is kind
    if not is_right or (kind is int and value < 0):
        raise TypeError(f"{name} is {value!r:.40}")


class HistoryReader:
    """Follows a history that another process writes; `history` holds the events so far, less an incomplete last line."""

    def __init__(self, path: Path):
        self._path = path
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self.history = History()
        self._inode, self._num_bytes, self._num_lines = inode, 0, 0

    def read(self) -> bool:
        """Take in the lines added since the last call; False where there are none.

        A replaced file is read from its start.

        Raises:
            MaskproError: there is no file, or one of its lines is broken.
        """
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._num_bytes:
                    self._begin(found.st_ino)
                file.seek(self._num_bytes)
                new = file.read()
        except FileNotFoundError:
            raise MaskproError(f"no file {self._path}") from None
        whole = new[: new.rfind(b"\n") + 1]
        for number, event in enumerate(parse_events(self._path, whole, self._num_lines), self._num_lines + 1):
            self.history._take_in(event, self._path, number)
        self._num_bytes += len(whole)
        self._num_lines += whole.count(b"\n")
        return bool(whole)
