"""A short search by the real driver, of one trial at a time, and what must be true of its folder after a kill."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import psutil
from PIL import Image

from maskpro.mask_file import load_mask_file
from maskpro.schedule.event_file import drop_torn_line, read_events
from maskpro.schedule.history import History

ROOT = Path(__file__).parents[2]
# A rung at the first report, so that trials stop and one is promoted.
SPACE = """
from ray import tune
param_space = {"lr": tune.uniform(0.5, 4.0), "batch_size": 32, "dataset_size": 256}
seed_points = [{"lr": 2.0}, {"lr": 0.5}]
num_trials = 5
num_reports = 3
searcher = "random"
"""
HELD_OUT = ("--selection-samples", "240", "--test-samples", "480")
OPTIONS = ("--max-samples", "288", *HELD_OUT, "--num-generated", "64", "--sampling-steps", "10", "--max-concurrent", "1")
# Ray's own processes have so long to end after their driver was killed.
MOST_SECONDS_LEFT_OVER = 60.0


class Driver:
    """A driver of its own, and all the processes that it has started so far."""

    def __init__(self, arguments: Sequence[object], log: Path):
        self.log = log
        self._arguments = arguments
        self.started = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "tune_main.py"), *map(str, arguments)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.of_it: dict[int, psutil.Process] = {}

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    def look(self) -> None:
        """Note the processes that it has by now."""
        try:
            for process in psutil.Process(self._process.pid).children(recursive=True):
                self.of_it.setdefault(process.pid, process)
        except psutil.NoSuchProcess:
            pass

    def wait_for(self, moment: Callable[[], bool], *, timeout: float = 900.0) -> bool:
        """Whether the moment came while the driver ran."""
        next_look = 0.0
        while self._process.poll() is None:
            if self.seconds > next_look:
                self.look()
                next_look = self.seconds + 1.0
            if moment():
                return True
            if self.seconds > timeout:
                self.kill()
                raise TimeoutError(f"the driver hangs; its output is in {self.log}")
            time.sleep(0.002)
        return False

    def kill(self) -> None:
        """As kill -9."""
        self.look()
        self._process.kill()
        self._process.wait()

    def end(self, *, timeout: float = 900.0) -> int:
        """Its exit status once it has ended by itself."""
        self.wait_for(lambda: False, timeout=timeout)
        return self._process.wait()

    def complete(self, *, tries: int = 5) -> int:
        """The same; a driver that a busy machine has kept from starting Ray is started again."""
        status = self.end()
        if status == 2 and tries > 1 and "Ray did not start on this machine" in self.log.read_text().splitlines()[-1]:
            return Driver(self._arguments, self.log).complete(tries=tries - 1)
        return status

    def seconds_left_over(self) -> float:
        """How long its processes outlived it; those that live on after `MOST_SECONDS_LEFT_OVER` are an error."""
        ended = time.monotonic()
        _, alive = psutil.wait_procs(list(self.of_it.values()), timeout=MOST_SECONDS_LEFT_OVER)
        names = []
        for process in alive:
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    names.append(f"{process.pid} {process.name()}")
            except psutil.NoSuchProcess:
                pass
        assert not names, f"these outlive their driver: {names}"
        return time.monotonic() - ended


def new_search(folder: Path, *more: object) -> list[object]:
    """Arguments of a new search in `folder`, where its space is."""
    return ["--space", folder / "space.py", "--results-dir", folder, "--experiment", "search", *OPTIONS, *more]


def to_go_on(folder: Path) -> list[object]:
    """`--resume`, or the same command again where the kill came before there was anything to resume."""
    search = folder / "search"
    return ["--resume", search, "--max-concurrent", "1"] if (search / "experiment.json").exists() else new_search(folder)


def compared(folder: Path) -> pd.DataFrame:
    """`trials.csv` without what no run repeats."""
    return pd.read_csv(folder / "trials.csv").drop(columns=["seconds"])


def check_files(folder: Path) -> None:
    """Every file that stands under its own name, outside the trials' folders, is whole."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith(".") or "trials" in path.relative_to(folder).parts[:1]:
            continue
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue  # a temporary folder that the kill has left
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            rows = list(csv.reader(path.read_text().splitlines()))
            assert len({len(row) for row in rows}) == 1, path
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.verify()
        elif path.name == "masks.safetensors":
            load_mask_file(path)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path


def ended_trials(folder: Path) -> dict[int, str]:
    """Number to status of the trials that have ended or stopped, as the next session reads them."""
    path = folder / "history.jsonl"
    if not path.exists():
        return {}
    drop_torn_line(path)
    return {number: trial.status for number, trial in History(path).trials.items() if trial.status != "unfinished"}


def check_runs(folder: Path) -> None:
    """No trial was begun twice, none was resumed after its end but by a promotion, and no report counts twice."""
    path = folder / "history.jsonl"
    events = list(read_events(path))
    for kind, keys in (("trial", ("trial",)), ("report", ("trial",))):
        told = Counter(
            (*(event[key] for key in keys), event.get("metrics", {}).get("num_samples_seen"))
            for event in events
            if event["event"] == kind
        )
        assert max(told.values()) == 1, (kind, told)
    so_far = History()
    for number, event in enumerate(events, 1):
        if event["event"] == "go_on":
            status = so_far.trials[event["trial"]].status
            assert status == ("stopped" if event["promoted"] else "unfinished"), (number, event, status)
        so_far._take_in(event, path, number)
