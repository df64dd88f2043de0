"""What this process may use of its machine: cores and memory, by its binding to cores and its control group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import joblib

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Version 1 says 2**63 less a page.
_NO_MEMORY_LIMIT = 1 << 60


class Limits(NamedTuple):
    """Of a control group and those above it; None: no limit."""

    cores: float | None
    memory: int | None


def cgroup_limits(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Limits:
    """Limits of this process's control group, the lowest of it and of the groups above.

    In version 2 a process has one group. In version 1 it has one for each controller, in a tree of its own; a machine may
    have both.

    Args:
        cgroups: where groups are mounted.
        membership: file that names this process's groups.
    """
    names = _group_names(membership)
    quotas = [_read(group / "cpu.max").partition(" ")[::2] for group in _groups(cgroups, names.get("", ""))]
    quotas += [
        (_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))
        for group in _groups(cgroups / "cpu", names.get("cpu", ""))
    ]
    memory = [_read(group / "memory.max") for group in _groups(cgroups, names.get("", ""))]
    memory += [_read(group / "memory.limit_in_bytes") for group in _groups(cgroups / "memory", names.get("memory", ""))]
    # A limit that there is not is "max" in version 2; in version 1 it is -1, or more memory than a machine can have.
    cores = [
        int(quota) / int(period) for quota, period in quotas if quota.isdecimal() and period.isdecimal() and int(period)
    ]
    sizes = [int(most) for most in memory if most.isdecimal() and int(most) < _NO_MEMORY_LIMIT]
    return Limits(min(cores, default=None), min(sizes, default=None))


def usable_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Cores that this process may use: those it is bound to, by `taskset` or a batch system, and its group's quota.

    joblib knows the quota of a container, but of no group within it; a share of a core is one.
    """
    quota = cgroup_limits(cgroups, membership).cores
    cores = int(joblib.cpu_count())
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def _group_names(membership: Path) -> dict[str, str]:
    """Controller of version 1, or "" for version 2, to the name of this process's group."""
    names: dict[str, str] = {}
    for line in _read(membership).splitlines():
        _, controllers, name = line.split(":", 2)
        names |= dict.fromkeys(controllers.split(","), name)
    return names


def _groups(cgroups: Path, name: str) -> Iterator[Path]:
    """The folder of the group of that name, and of each above it."""
    group = cgroups / name.lstrip("/")
    # A container that sees the names of its host doesn't see their folders.
    yield from (place for place in (group, *group.parents) if place.is_relative_to(cgroups) and ".." not in place.parts)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
