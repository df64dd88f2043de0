"""What this process may use of its machine: cores and memory, by its binding to cores and its control group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Least value that means no limit: version 1 has 2**63 less a page.
_NO_MEMORY_LIMIT = 1 << 60


class Limits(NamedTuple):
    """Limits of a control group and the groups above it; None: no limit."""

    cores: float | None
    memory: int | None


def cgroup_limits(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Limits:
    """The lowest limits of this process's control group and the groups above it.

    In version 2 a process has one group. In version 1 it has one for each controller, and each controller has a tree of
    its own. A machine may have both versions.

    Args:
        cgroups: mount point of the groups.
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
    # "No limit" is "max" in version 2; in version 1 it is -1, or more memory than a machine can have.
    cores = [
        int(quota) / int(period) for quota, period in quotas if quota.isdecimal() and period.isdecimal() and int(period)
    ]
    sizes = [int(most) for most in memory if most.isdecimal() and int(most) < _NO_MEMORY_LIMIT]
    return Limits(min(cores, default=None), min(sizes, default=None))


def usable_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Cores that this process may use: the cores it is bound to (by `taskset` or a batch system), or its quota if lower.

    joblib knows a container's quota, but no quota of a group within it. A share of a core counts as one core.
    """
    import joblib  # a fifth of a second, which help and monitor would wait for

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
    """The folders of the group of that name and of each group above it."""
    group = cgroups / name.lstrip("/")
    # A container may see its host's names of groups, but not their folders.
    yield from (place for place in (group, *group.parents) if place.is_relative_to(cgroups) and ".." not in place.parts)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
