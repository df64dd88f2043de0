"""Optional trackers of single runs; a search has its own callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

from maskpro.errors import MaskproError

# Names of packages, of this package's extras, and of options.
Tracker = Literal["swanlab", "wandb", "mlflow"]

# Logs values by name at a number of samples seen.
Log = Callable[[Mapping[str, float], int], None]


def no_log(values: Mapping[str, float], num_samples_seen: int) -> None:
    """Log nothing."""


def check_tracker(tracker: Tracker, project: str | None) -> None:
    """Raise where a tracker's project is named and the tracker is not installed."""
    if project is not None and find_spec(tracker) is None:
        raise MaskproError(f"{tracker} is {project!r}; allowed: with the extra installed (pip install maskpro[{tracker}])")


@contextmanager
def swanlab_log(project: str | None, *, name: str | None, config: dict[str, Any]) -> Iterator[Log]:
    """Log to a SwanLab project while the block runs (None: nowhere); SWANLAB_MODE=offline keeps it on this machine."""
    check_tracker("swanlab", project)
    if project is None:
        yield no_log
        return
    import swanlab

    run = swanlab.init(project=project, name=name, config=config)
    try:
        yield lambda values, num_samples_seen: run.log(dict(values), step=num_samples_seen)
    finally:
        swanlab.finish()
