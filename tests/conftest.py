"""How the tests are shared out among processes; what they share is in `shared_fixtures.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from maskpro.machine.limits import usable_cores

# Files whose tests start Ray or join the one of `ray_cluster`. One worker runs them all, one after the other; they come
# first, as they take the longest.
RAY_FILES = {
    "tests/test_language_model_search.py",
    "tests/test_toy_workload.py",
    "tests/test_tune_main.py",
    "tests/tuning/test_cluster.py",
    "tests/tuning/test_parallel_parts.py",
    "tests/tuning/test_stored_images.py",
    "tests/tuning/test_tables.py",
}
# More workers than this would spend their time on importing torch.
MOST_WORKERS = 8


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core; none where the command line names files, whose tests are over before workers are up."""
    named = config.args if config.args_source is pytest.Config.ArgsSource.ARGS else []
    files = [name for name in named if Path(name.split("::")[0]).is_file()]
    workers = min(usable_cores(), MOST_WORKERS)
    return 0 if workers == 1 or (named and len(files) == len(named)) else workers


class RayFilesTogether(LoadFileScheduling):
    """Each file's tests go to one worker, as fixtures are made for a file, and those of all RAY_FILES to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "ray" if file in RAY_FILES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayFilesTogether | None:
    """Instead of --dist loadfile's own."""
    return RayFilesTogether(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    """The process that only hands out tests to workers doesn't import torch."""
    if config.getoption("dist", "no") == "no" or hasattr(config, "workerinput"):
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of --no-loadscope-reorder, and of a run without workers."""
    items.sort(key=lambda item: item.nodeid.split("::")[0] not in RAY_FILES)
