"""Faults of the machine under a search, for which no trial is to blame: a full storage, a dead Ray."""

from __future__ import annotations

import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

from maskpro.files import says_no_room
from maskpro.machine.interruption import Interruption
from maskpro.masked_model import maskable_layers
from maskpro.monitoring.driver_log import say
from maskpro.pattern import NMPattern
from maskpro.schedule.history import History
from maskpro.trainer_config import TrainerConfig
from maskpro.tuning.adapters import MAX_FAILURES, failure_text
from maskpro.tuning.search import Search

# Storage of a running trial: two checkpoints of five bytes a logit.
_BYTES_PER_LOGIT = 10
# Silence of Ray's head after which a search is paused. Ray ends this process without a word after a minute of silence.
_SILENT_SECONDS = 15.0
_LAST_SECONDS = 25.0
_LOOK_SECONDS = 1.0


class FaultWatch(Callback):
    """Pauses a search after a fault of the machine; it must come before HistoryCallback, which asks it.

    Args:
        storage: storage of the trials, a folder or a URI.
        num_bytes: bytes that the running trials need there.
    """

    def __init__(self, history: History, *, storage: str, num_bytes: int, interruption: Interruption):
        self._history = history
        self._storage = storage
        self._num_bytes = num_bytes
        self._interruption = interruption

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's snapshots are never restored."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Pause if a line of the history could not be written; Tune itself only logs some of these errors."""
        if self._history.failure is not None and not self._interruption.problem:
            self._interruption.pause(*self._of_history(self._history.failure))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Pause before Tune starts a failed trial again, if a fault of the machine would end it again."""
        self.caused(trial)

    def caused(self, trial: Trial) -> bool:
        """Whether a fault of the machine has ended the trial; if so, the search is paused."""
        if self._interruption.problem:
            return True
        if self._history.failure is not None:
            self._interruption.pause(*self._of_history(self._history.failure))
            return True
        reason = self._reason(failure_text(trial))
        if reason:
            self._interruption.pause(*self._of_storage(reason))
        return bool(reason)

    def explain(self, error: Exception) -> bool:
        """Whether a fault of the machine has ended Tune itself; if so, it is noted."""
        if self._history.failure is not None:
            self._interruption.note(*self._of_history(self._history.failure))
        elif reason := self._reason(str(error)):
            self._interruption.note(*self._of_storage(reason))
        return bool(self._interruption.problem)

    def _reason(self, text: str) -> str:
        """Why the storage can't be written; "" if it can and `text` names no other full disk."""
        try:
            _probe(self._storage, self._num_bytes)
        except OSError as error:
            return _line(error)
        return "No space left on device" if says_no_room(text) else ""

    def _of_storage(self, reason: str) -> tuple[str, str]:
        return "the trials' storage", _problem(self._storage, reason, self._num_bytes)

    def _of_history(self, error: OSError) -> tuple[str, str]:
        return "the results folder", _problem(str(Path(error.filename or ".").parent), _line(error), 1 << 20)


class SilenceWatch(Callback):
    """Knows which trials have not reported for too long, and lets Tune not start them again.

    A trial's process ends itself (`MaskTrainable.step`); this is what tells that end from any other.

    Args:
        timeout: seconds from one report to the next; None: any.
    """

    def __init__(self, timeout: float | None):
        self._timeout = timeout
        self._heard: dict[str, tuple[Trial, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's snapshots are never restored."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial's time begins."""
        self._heard[trial.trial_id] = (trial, time.monotonic())
        trial.max_failures = MAX_FAILURES

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """The trial's time begins anew."""
        self.on_trial_start(iteration, trials, trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial has ended."""
        self._heard.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial has ended."""
        self._heard.pop(trial.trial_id, None)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Let a silent trial's next failure be its last."""
        if self._timeout is not None:
            for trial, _ in self._heard.values():
                if self.cause(trial):
                    trial.max_failures = 0

    def cause(self, trial: Trial) -> str:
        """Why the trial has ended, if it was for its silence; else ""."""
        _, since = self._heard.get(trial.trial_id, (trial, math.inf))
        if self._timeout is None or time.monotonic() - since < self._timeout:
            return ""
        return f"no report for {self._timeout:g} s, and so it was ended; allowed: a longer --trial-timeout"


def needed_bytes(search: Search, slots: int) -> int:
    """Bytes of the checkpoints of `slots` concurrent trials in the storage."""
    weights = sum(weight.numel() for weight in maskable_layers(search.workload.model).values())
    return math.ceil(_BYTES_PER_LOGIT * _logits_per_weight(search) * weights * max(1, slots))


def _logits_per_weight(search: Search) -> float:
    """Logits per weight: one, or for gumbel_softmax as many as a group has masks for its m weights."""
    if "gumbel_softmax" not in search.space.choices("estimator", TrainerConfig().estimator):
        return 1.0
    patterns = [NMPattern.parse(form.pattern) for form in search.context.formats]
    return max(1.0, *(pattern.num_candidates / pattern.m for pattern in patterns))


@contextmanager
def watched_ray(interruption: Interruption, *, resume: str) -> Iterator[None]:
    """Context that pauses the search in it once Ray's head has not answered for a while.

    Ray itself would continue for a minute and then end this process without a word. If the pause does not finish before
    that, this process reports the problem and ends; the history is whole at any time.

    Args:
        resume: option by which the search is resumed, for the message.
    """
    over = threading.Event()
    address = ray.get_runtime_context().gcs_address
    problem = f"Ray's head at {address} has died"

    def watch() -> None:
        silent_since = None
        while not over.wait(_LOOK_SECONDS):
            if _answers(address):
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _SILENT_SECONDS:
                interruption.pause("Ray", problem)
                if not over.wait(_LAST_SECONDS):
                    say(f"paused: {problem}; resume with {resume}")
                    os._exit(1)
                return

    threading.Thread(target=watch, name="ray-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _probe(storage: str, num_bytes: int) -> None:
    """Write `num_bytes` to a storage and remove them."""
    filesystem, root = pyarrow.fs.FileSystem.from_uri(storage)
    filesystem.create_dir(root, recursive=True)
    probe = f"{root}/.maskpro-room-{os.getpid()}"
    block = bytes(1 << 20)
    try:
        with filesystem.open_output_stream(probe) as stream:
            for start in range(0, num_bytes, len(block)):
                stream.write(block[: num_bytes - start])
    finally:
        with suppress(OSError):
            filesystem.delete_file(probe)


def _problem(place: str, reason: str, num_bytes: int) -> str:
    free = ""
    with suppress(OSError):
        free = f", {_megabytes(shutil.disk_usage(place).free)} free"
    return f"{place} can't be written ({reason}{free}); it needs about {_megabytes(num_bytes)}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _line(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())[:200]
