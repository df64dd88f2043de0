"""The time line of a search: events of its driver and its history, and how busy the machine was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.resumable import Rows, die_with_parent
from maskpro.errors import MaskproError
from maskpro.schedule.event_file import read_events

_POLL_SECONDS = 0.25
_SAMPLE_SECONDS = 1.0
_QUERY = ("--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
# The phases in order, each with the name of the event that ends it.
PHASES = {
    "start": "experiment",  # imports, model and images; Ray starts meanwhile
    "shared values": "trial",
    "first report": "report",
    "trials": "last history",
    "evaluation": "results",
    "report": "exit",
}
# First words of the driver's lines that are events.
_MARKS = ("experiment", "results", "report")


def run_watched(
    command: Sequence[str], *, history: Path, events: Rows, stop: Callable[[list[dict[str, Any]]], int | None]
) -> int:
    """Run a driver to its end and write every event to `events` with its time.

    Args:
        history: file of the search's history; it need not exist yet.
        stop: returns the signal to send, given the history so far; called repeatedly until it returns one.

    Returns: the exit status.
    """
    session = 1 + max((row["session"] for row in events.read()), default=0)
    lock, seen = threading.Lock(), len(list(read_events(history))) if history.is_file() else 0

    def note(kind: str, **values: Any) -> None:
        with lock:
            events.add({"session": session, "kind": kind, "time": time.time(), **values})

    note("launch", command=list(command))
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=die_with_parent,
    )
    over = threading.Event()
    threads = [
        threading.Thread(target=_follow_lines, args=(child, note)),
        threading.Thread(target=_sample, args=(child.pid, note, over)),
    ]
    for thread in threads:
        thread.start()
    sent = False
    try:
        while child.poll() is None:
            time.sleep(_POLL_SECONDS)
            known = list(read_events(history)) if history.is_file() else []
            for event in known[seen:]:
                note(event["event"], trial=event.get("trial"), samples=event.get("metrics", {}).get("num_samples_seen"))
            seen = max(seen, len(known))
            wanted = None if sent else stop(known)
            if wanted is not None:
                sent = True
                note("killed" if wanted == signal.SIGKILL else "stopped", signal=int(wanted))
                child.send_signal(wanted)
    finally:
        if child.poll() is None:
            child.terminate()
        status = child.wait()
        over.set()
        for thread in threads:
            thread.join()
        note("exit", status=status)
    return status


def _follow_lines(child: subprocess.Popen[str], note: Callable[..., None]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        name = line.partition(":")[0]
        if name in _MARKS:
            note(name)


def _sample(pid: int, note: Callable[..., None], over: threading.Event) -> None:
    smi = shutil.which("nvidia-smi")
    while not over.wait(_SAMPLE_SECONDS):
        note("device", resident_mib=_resident_mib(pid), **(_gpu(smi) if smi else {}))


def _resident_mib(pid: int) -> float:
    """Resident memory of a process and all its descendants; shared memory is counted more than once."""
    total = 0
    try:
        driver = psutil.Process(pid)
        for process in [driver, *driver.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total / 2**20


def _gpu(smi: str) -> dict[str, float]:
    try:
        answer = subprocess.run([smi, *_QUERY], capture_output=True, text=True, timeout=10)
        use, memory = (float(cell) for cell in answer.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return {}
    return {"gpu_percent": use, "gpu_mib": memory}


def spent(events: Rows) -> float:
    """Seconds of all sessions so far."""
    sessions = _sessions(events)
    return sum(rows[-1]["time"] - rows[0]["time"] for rows in sessions)


def was_killed(events: Rows) -> bool:
    """Whether `run_watched` has killed a driver once."""
    return any(row["kind"] == "killed" for row in events.read())


def _sessions(events: Rows) -> list[list[dict[str, Any]]]:
    rows = events.read()
    return [[row for row in rows if row["session"] == number] for number in sorted({row["session"] for row in rows})]


def time_line(events: Rows) -> list[dict[str, Any]]:
    """A row a session: seconds of each phase, and how busy the machine was while trials ran.

    Raises:
        MaskproError: nothing was noted.
    """
    sessions = _sessions(events)
    if not sessions:
        raise MaskproError("there are no events of a search; allowed: those of one that was begun")
    return [{"session": number, **_phases(rows), **_use(rows)} for number, rows in enumerate(sessions, 1)]


def _phases(rows: list[dict[str, Any]]) -> dict[str, Any]:
    begun, ends = rows[0]["time"], {}
    # Times of the trials' events. The driver's own lines name no trial, not even the last one, "report".
    history = [row["time"] for row in rows if row.get("trial") is not None]
    for row in rows:
        # A resumed or promoted trial counts as a started one.
        kind = {"go_on": "trial"}.get(row["kind"], row["kind"])
        if kind != "report" or row.get("trial") is not None:
            ends.setdefault(kind, row["time"])
    if history:
        ends["last history"] = history[-1]
    seconds: dict[str, Any] = {}
    for phase, mark in PHASES.items():
        if mark in ends and ends[mark] >= begun:
            seconds[phase] = round(ends[mark] - begun, 1)
            begun = ends[mark]
    killed = any(row["kind"] == "killed" for row in rows)
    whole = rows[-1]["time"] - rows[0]["time"]
    return seconds | {"ended": "killed" if killed else f"exit {rows[-1].get('status', '?')}", "whole": round(whole, 1)}


def _use(rows: list[dict[str, Any]]) -> dict[str, Any]:
    trials = [row["time"] for row in rows if row["kind"] in ("report", "checkpoint") and row.get("trial") is not None]
    samples = [row for row in rows if row["kind"] == "device"]
    within = [row for row in samples if trials and trials[0] <= row["time"] <= trials[-1]] or samples
    found: dict[str, Any] = {}
    if within:
        found["resident MiB, peak"] = round(max(row["resident_mib"] for row in samples))
        if any("gpu_percent" in row for row in within):
            busy = [row["gpu_percent"] for row in within if "gpu_percent" in row]
            found["GPU busy in trials, %"] = round(sum(busy) / len(busy))
            found["GPU MiB, peak"] = round(max(row.get("gpu_mib", 0) for row in samples))
    return found
