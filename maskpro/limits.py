"""What this process may use of its machine: cores and memory, by its binding to cores and its control group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import joblib

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class Limits(NamedTuple):
    """Of a control group and those above it; None: no limit."""

    cores: float | None
    memory: int | None


def cgroup_limits(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Limits:
    """Limits of this process's control group (version 2), the lowest of it and of the groups above.

    Args:
        cgroups: where groups are mounted.
        membership: file that names this process's group.
    """
    cores: list[float] = []
    memory: list[int] = []
    for group in _groups(cgroups, membership):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            cores.append(int(quota) / int(period))
        most = _read(group / "memory.max")
        if most.isdecimal():
            memory.append(int(most))
    return Limits(min(cores, default=None), min(memory, default=None))


def usable_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Cores that this process may use: those it is bound to, by `taskset` or a batch system, and its group's quota.

    joblib knows the quota of a container, but of no group within it; a share of a core is one.
    """
    quota = cgroup_limits(cgroups, membership).cores
    cores = int(joblib.cpu_count())
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def _groups(cgroups: Path, membership: Path) -> Iterator[Path]:
    """The folder of this process's group, and of each above it."""
    names = [line.removeprefix("0::") for line in _read(membership).splitlines() if line.startswith("0::")]
    group = cgroups / names[0].lstrip("/") if names else cgroups
    # A container that sees the names of its host doesn't see their folders.
    yield from (place for place in (group, *group.parents) if place.is_relative_to(cgroups) and ".." not in place.parts)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
