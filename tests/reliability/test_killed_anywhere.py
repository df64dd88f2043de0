"""`kill -9` of the driver, or of one of Ray's processes, at any moment: the resumed search ends as the undisturbed one.

The short form is `test_a_search_that_is_stopped_and_killed_ends_as_the_uninterrupted_one` in tests/test_tune_main.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
from searches import SPACE, Driver, check_files, check_runs, compared, ended_trials, new_search, to_go_on

pytestmark = [pytest.mark.full, pytest.mark.slow]
SEED = 0
KILLS = 20
# Kills of one search, each of another session of it.
KILLS_PER_SEARCH = 4


def of_history(text: str, number: int) -> Callable[[Path], bool]:
    """The moment at which the history has that many events of a kind."""

    def reached(folder: Path) -> bool:
        history = folder / "history.jsonl"
        return history.is_file() and history.read_bytes().count(f'"event": "{text}"'.encode()) >= number

    return reached


def of_file(pattern: str) -> Callable[[Path], bool]:
    """The moment at which there is such a file or folder, also a temporary one."""
    return lambda folder: next(folder.glob(pattern), None) is not None


# In the order in which a search comes to them: name, moment, most seconds from the moment to the kill.
MOMENTS: list[tuple[str, Callable[[Path], bool], float]] = [
    ("start", lambda folder: True, 25.0),
    ("folder made", of_file("*"), 0.05),
    ("first trial starts", of_history("trial", 1), 10.0),
    ("report", of_history("report", 1), 0.5),
    ("checkpoint is written", of_file("trials/trial_0000[2-5]/checkpoint_*"), 0.02),
    ("checkpoint parts removed", of_history("removed", 2), 0.02),
    ("trial promoted", of_history("go_on", 1), 1.0),
    ("best mask is written", of_file(".best.*"), 0.05),
    ("final evaluation", of_file("evaluation/*"), 3.0),
    ("evaluation's parts", of_file("evaluation/cache/*"), 3.0),
    ("final evaluation written", of_file("final_evaluation.json"), 0.5),
    ("report is written", of_file(".report.html.*"), 0.05),
]


def test_the_driver_is_killed_at_random_moments(undisturbed, tmp_path, capsys):
    draws = random.Random(SEED)
    kills, searches = [], 0
    while len(kills) < KILLS:
        folder = tmp_path / f"search_{searches}"
        folder.mkdir()
        (folder / "space.py").write_text(SPACE)
        search, log = folder / "search", folder / "output.txt"
        chosen = sorted(draws.sample(range(len(MOMENTS)), KILLS_PER_SEARCH))
        before: dict[int, str] = {}
        for name, moment, most in (MOMENTS[index] for index in chosen):
            delay = draws.uniform(0, most)
            driver = Driver(to_go_on(folder), log)
            if not driver.wait_for(partial(moment, search)):
                continue  # it ended before: such as the report of a search that was over
            time.sleep(delay)
            driver.kill()
            left_over = driver.seconds_left_over()
            check_files(search)
            now = ended_trials(search)
            kept = {number: status for number, status in before.items() if status != "stopped"}  # these may be promoted
            assert kept.items() <= now.items()
            before = now
            kills.append(name)
            with capsys.disabled():
                print(
                    f"kill {len(kills)}: {name} + {delay:.2f} s, {driver.seconds:.0f} s after the start; ended trials "
                    f"{len(now)}; Ray's processes lived on for {left_over:.1f} s",
                    flush=True,
                )
        driver = Driver(to_go_on(folder), log)
        assert driver.complete() == 0, log.read_text()
        driver.seconds_left_over()
        assert ended_trials(search).keys() >= before.keys()
        assert "Traceback" not in log.read_text()
        check_files(search)
        check_runs(search)
        pd.testing.assert_frame_equal(compared(search), undisturbed, check_exact=True)
        searches += 1
    with capsys.disabled():
        print(f"{len(kills)} kills of {searches} searches, seed {SEED}", flush=True)


@pytest.mark.parametrize("victim", ["ray::ResourceTrainable", "raylet", "gcs_server", "dashboard"])
def test_one_of_rays_processes_is_killed(undisturbed, tmp_path, victim):
    """The search ends as the undisturbed one, or pauses with a sentence that says how it is resumed."""
    (tmp_path / "space.py").write_text(SPACE)
    search, log = tmp_path / "search", tmp_path / "output.txt"
    driver = Driver(new_search(tmp_path), log)
    assert driver.wait_for(lambda: of_history("report", 3)(search)), log.read_text()
    driver.look()
    victims = [process for process in driver.of_it.values() if is_called(process, victim)]
    assert victims
    for process in victims:
        process.kill()
    status = driver.end(timeout=300)
    driver.seconds_left_over()
    assert "Traceback" not in log.read_text()
    if status:
        last = log.read_text().splitlines()[-1]
        assert "resume with --resume" in last, log.read_text()
        driver = Driver(to_go_on(tmp_path), log)
        assert driver.complete() == 0, log.read_text()
    check_files(search)
    check_runs(search)
    pd.testing.assert_frame_equal(compared(search), undisturbed, check_exact=True)


def is_called(process: psutil.Process, name: str) -> bool:
    """Whether a process's command has the name; Ray's workers call themselves by what they run."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    first = command.split(" ")[0]
    if name == "dashboard":
        return "dashboard/dashboard.py" in command
    return command.startswith(name) or Path(first).name == name
