"""What has happened in a search: an append-only file of JSON lines, and the trials that it tells of.

The file is the only thing that a search goes on from. Ray Tune's own snapshots are up to ten seconds old when a driver is
killed, and hold neither the early stopping's records nor the searcher's running trials; a line is written here before
anything acts on it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maskpro.errors import MaskproError

# What a search minimises: the mean squared difference from the dense network's output on the validation samples, the E of
# `fidelity`. Trials whose initial masks differ compare by it, where their fidelities would not.
METRIC = "val_error"
Status = Literal["completed", "stopped", "failed", "unfinished"]
# Of a checkpoint, as `MaskTrainer.state_dict` has them: each needs those before it.
PARTS = ("mask", "logits", "exact")
# What a stopped trial keeps and goes on from when it is promoted.
STOPPED_PARTS = PARTS[:2]


@dataclass(kw_only=True)
class TrialRecord:
    """One trial as the history tells it.

    Attributes:
        number: 1, 2, ... in the order of their start.
        params: the searched parameters; with the space's fixed ones they make the trial's config.
        source: "seed point 2", the searcher's name, "replay" or "confirmation of trial 3".
        seed: of its calibration samples and sampled masks.
        reports: metrics by samples seen.
        samples: calibration samples seen at the last report.
        stopped: True while it waits at a rung, or has ended there.
        stopped_at: samples at its last stop, after which it may have gone on; None: it never stopped.
        parts: how often it was started: once, and again after each stop, kill or end of a session.
        checkpoint: newest one, relative to the folder of the trials' storage; "" where there is none.
        checkpoint_samples: samples seen when it was made.
        checkpoint_parts: which of its parts have not been removed.
        promoted: True where it goes on after a stop, until its next checkpoint: from the coarse logits alone, so that
            nothing depends on whether the rest has been removed already.
        error: why it died; "" where it didn't.
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
        """Of the trial, whatever its part."""
        return f"trial_{self.number:05d}"

    @property
    def folder(self) -> str:
        """Of the trial's part: it never writes over what it goes on from."""
        return self.folders[-1]

    @property
    def folders(self) -> list[str]:
        """Of all parts that the trial has had."""
        return [self.name, *(f"{self.name}_part{part}" for part in range(2, self.parts + 1))]

    @property
    def last(self) -> dict[str, Any]:
        """Metrics of the last report, or nothing."""
        return self.reports.get(self.samples, {})

    @property
    def trained(self) -> int:
        """Samples that it was trained on: more than `samples` where its runs up to earlier rungs count as well."""
        return int(self.last.get("num_samples_trained", self.samples))

    @property
    def failure(self) -> str:
        """Why the trial came to nothing; "" where it did not."""
        return self.error or str(self.last.get("failure", ""))

    @property
    def status(self) -> Status:
        """How the trial stands; an ended one has a checkpoint of its last report, so that its mask is safe."""
        if self.failure:
            return "failed"
        if not (self.stopped or self.last.get("done")) or self.checkpoint_samples != self.samples:
            return "unfinished"
        return "completed" if self.last["done"] else "stopped"

    def needed_parts(self, *, may_go_on: bool) -> tuple[str, ...]:
        """Of its newest checkpoint: all until the trial stops or ends, then what promotion and the final evaluation take.

        Args:
            may_go_on: whether a stopped trial may, in this session or a later one.
        """
        if self.status == "unfinished":
            return PARTS
        if self.status == "completed":
            return PARTS[:1]
        return STOPPED_PARTS if self.status == "stopped" and may_go_on else ()

    @property
    def seed_point(self) -> int | None:
        """The number of the seed point that it runs."""
        kind, _, number = self.source.rpartition(" ")
        return int(number) if kind == "seed point" else None

    @property
    def is_confirmation(self) -> bool:
        """True for a trial that repeats another one with a fresh seed, and takes no part in the search."""
        return self.source.startswith("confirmation")


class History:
    """The trials of a search, in memory and in a file.

    Args:
        path: the file; None keeps the history in memory only.

    Attributes:
        session_time: when the newest session began, in ISO 8601.
        samples_before_session: calibration samples seen by all trials until then.
        failure: why a line could not be written; no further one is, as the search has come to its end.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self.failure: OSError | None = None
        self.trials: dict[int, TrialRecord] = {}
        self.warm_start: list[dict[str, Any]] = []
        self.num_trials = 0
        self.num_sessions = 0
        self.session_time = ""
        self.samples_before_session = 0
        if path is not None and path.exists():
            for number, event in enumerate(read_events(path), 1):
                self._take_in(event, path, number)

    @property
    def searched(self) -> list[TrialRecord]:
        """The trials of the search itself, in order."""
        return [trial for trial in self.trials.values() if not trial.is_confirmation]

    @property
    def unfinished(self) -> list[TrialRecord]:
        """The trials that have to go on, in order."""
        return [trial for trial in self.trials.values() if trial.status == "unfinished"]

    def session(self, num_trials: int, *, time: str) -> None:
        """The search starts, or goes on, and is to have `num_trials` trials in all."""
        self._append(event="session", num_trials=num_trials, time=time)

    def add_warm_start(self, params: dict[str, Any], value: float, source: str) -> None:
        """A trial of another experiment that the searcher is told of."""
        self._append(event="warm_start", params=params, value=value, source=source)

    def start(self, params: dict[str, Any], *, source: str, seed: int) -> TrialRecord:
        """A new trial."""
        number = max(self.trials, default=0) + 1
        self._append(event="trial", trial=number, params=params, source=source, seed=seed)
        return self.trials[number]

    def go_on(self, number: int, *, promoted: bool) -> TrialRecord:
        """A trial that was interrupted, or (promoted) one that was stopped, goes on from its checkpoint."""
        self._append(event="go_on", trial=number, promoted=promoted)
        return self.trials[number]

    def report(self, number: int, metrics: dict[str, Any], *, stopped: bool) -> None:
        """A trial has reported `metrics`, and was told to stop or not."""
        self._append(event="report", trial=number, metrics=metrics, stopped=stopped)

    def checkpoint(self, number: int, path: str, samples: int) -> None:
        """A trial's state after `samples` samples is in the folder `path`."""
        self._append(event="checkpoint", trial=number, path=path, samples=samples)

    def removed(self, number: int, left: tuple[str, ...]) -> None:
        """Of a trial's checkpoints, only these parts of the newest one are left."""
        self._append(event="removed", trial=number, left=left)

    def error(self, number: int, text: str) -> None:
        """A trial has died."""
        self._append(event="error", trial=number, text=text)

    def _append(self, **event: Any) -> None:
        if self.failure is not None:
            raise self.failure
        if self._path is not None:
            try:
                _write_line(self._path, (json.dumps(event, allow_nan=False) + "\n").encode())
            except OSError as error:
                self.failure = error
                error.filename = error.filename or str(self._path)
                raise
        self._apply(event)

    def _take_in(self, event: dict[str, Any], path: Path, line: int) -> None:
        """An event that has been read."""
        try:
            self._apply(event)
        except (LookupError, TypeError) as error:
            raise _broken(path, line, f"{type(error).__name__}: {error}") from error

    def _apply(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "session":
            self.num_trials, self.session_time = event["num_trials"], event["time"]
            self.num_sessions += 1
            self.samples_before_session = sum(record.samples for record in self.trials.values())
        elif kind == "warm_start":
            self.warm_start.append({name: event[name] for name in ("params", "value", "source")})
        elif kind == "trial":
            record = TrialRecord(number=event["trial"], params=event["params"], source=event["source"], seed=event["seed"])
            self.trials[record.number] = record
        else:
            record = self.trials[event["trial"]]
            if kind == "report":
                record.samples = event["metrics"]["num_samples_seen"]
                record.reports[record.samples] = event["metrics"]
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


def _write_line(path: Path, line: bytes) -> None:
    # One write, so that a kill leaves whole lines but for the last; that one is dropped when read.
    with path.open("ab", buffering=0) as file:
        whole = file.tell()
        if file.write(line) != len(line):  # the disk is full; half a line would break the next one
            file.truncate(whole)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file.fileno())


class HistoryReader:
    """Follows a history that another process writes; `history` is what it has told so far.

    A last line that is not whole waits for its rest.
    """

    def __init__(self, path: Path):
        self._path = path
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self.history = History()
        self._inode, self._num_bytes, self._num_lines = inode, 0, 0

    def read(self) -> bool:
        """Take in the lines that have come since the last call; False where there are none.

        A file that another one has replaced is read from its start.

        Raises:
            MaskproError: there is no file, or a line of it is broken.
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
        for number, event in enumerate(_parse(self._path, whole, self._num_lines), self._num_lines + 1):
            self.history._take_in(event, self._path, number)
        self._num_bytes += len(whole)
        self._num_lines += whole.count(b"\n")
        return bool(whole)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a history; a last line that a kill has cut short is left out.

    Raises:
        MaskproError: any other line is broken.
    """
    return _parse(path, path.read_bytes(), 0)


def _parse(path: Path, content: bytes, lines_before: int) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(content.split(b"\n")[:-1], lines_before + 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise _broken(path, number, str(error)) from error


def _broken(path: Path, number: int, why: str) -> MaskproError:
    return MaskproError(f"{path} is broken in line {number} ({why}); allowed: a history as it was written")


def drop_torn_line(path: Path) -> None:
    """Remove what a kill has left of a last line, before anything is appended."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("rb+") as file:
            file.truncate(len(whole))
