"""Cores and memory of a control group, made up in a folder."""

import math

import joblib
import pytest
import torch

from maskpro.machine.installation import limit_threads
from maskpro.machine.limits import Limits, cgroup_limits, usable_cores
from maskpro.tuning.resources import TrialResources, _local_settings, within_memory

GIB = 2**30


@pytest.fixture
def cgroup(tmp_path):
    """Make a tree of groups, a path to its files, with this process in `name`; what `cgroup_limits` takes."""

    def make(name, files):
        for path, text in files.items():
            (tmp_path / "cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / path).write_text(text + "\n")
        (tmp_path / "membership").write_text(f"12:cpuset:/elsewhere\n0::{name}\n")
        return tmp_path / "cgroup", tmp_path / "membership"

    return make


def test_the_lowest_limit_of_a_group_and_those_above_it_holds(cgroup):
    files = {
        "memory.max": str(64 * GIB),
        "a/cpu.max": "300000 100000",
        "a/memory.max": "max",
        "a/b/cpu.max": "max 100000",
        "a/b/memory.max": str(8 * GIB),
        "c/cpu.max": "10000 100000",
    }
    assert cgroup_limits(*cgroup("/a/b", files)) == Limits(cores=3.0, memory=8 * GIB)


@pytest.mark.parametrize("name", ["/", "/docker/1f2e", "/../../host.slice"])
def test_a_container_that_does_not_see_the_folders_of_its_host_has_its_own(cgroup, name):
    assert cgroup_limits(*cgroup(name, {"cpu.max": "150000 100000"})) == Limits(cores=1.5, memory=None)


def test_without_control_groups_or_limits_there_are_none(cgroup, tmp_path):
    assert cgroup_limits(*cgroup("/a", {"a/cpu.max": "max 100000", "a/memory.max": "max"})) == Limits(None, None)
    assert cgroup_limits(tmp_path / "none", tmp_path / "neither") == Limits(None, None)
    assert usable_cores(tmp_path / "none", tmp_path / "neither") == joblib.cpu_count()


def test_groups_of_version_1_have_a_tree_for_each_controller(cgroup):
    files = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "cpu/job/cpu.cfs_quota_us": "250000",
        "cpu/job/cpu.cfs_period_us": "100000",
        "cpu/job/step/cpu.cfs_quota_us": "-1",
        "cpu/job/step/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": str(2**63 - 4096),  # none
        "memory/slurm/memory.limit_in_bytes": str(12 * GIB),
        "memory/slurm/job/memory.limit_in_bytes": str(6 * GIB),
        "memory/other/memory.limit_in_bytes": str(GIB),
    }
    cgroups, membership = cgroup("/", files)
    membership.write_text("5:memory:/slurm/job\n3:cpu,cpuacct:/job/step\n2:name=systemd:/elsewhere\n0::/\n")
    assert cgroup_limits(cgroups, membership) == Limits(cores=2.5, memory=6 * GIB)
    assert _local_settings(cgroups, membership)["_memory"] == int(0.7 * 6 * GIB)
    # A container sees the names of its host, and its own group at the top.
    (cgroups / "memory/memory.limit_in_bytes").write_text(str(3 * GIB))
    membership.write_text("5:memory:/docker/1f2e\n3:cpu,cpuacct:/docker/1f2e\n")
    assert cgroup_limits(cgroups, membership) == Limits(cores=None, memory=3 * GIB)
    assert "_memory" not in _local_settings(cgroups, membership), "Ray itself reads the topmost group's"


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("20000 100000", 1), ("99900000 100000", math.inf)])
def test_a_quota_holds_cores_trials_and_threads_down(cgroup, quota, cores):
    place = cgroup("/a", {"a/cpu.max": quota})
    expected = min(cores, joblib.cpu_count())
    assert usable_cores(*place) == expected
    assert _local_settings(*place)["num_cpus"] == expected


def test_ray_is_told_of_a_limit_of_memory_that_it_does_not_see(cgroup):
    assert _local_settings(*cgroup("/a", {"a/memory.max": str(10 * GIB)}))["_memory"] == 7 * GIB
    # Ray itself reads the topmost group's, which is a container's.
    assert "_memory" not in _local_settings(*cgroup("/", {"memory.max": str(10 * GIB)}))


def test_torch_computes_with_no_more_threads_than_cores(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    limit_threads(2)
    limit_threads(64)
    assert asked == [2]


NODE = {"CPU": 8.0, "memory": 5 * GIB}


def test_no_more_trials_run_at_a_time_than_there_is_memory_for():
    resources = TrialResources(cpus=1.0, gpus=0.0, slots=8)
    fewer, said = within_memory(resources, [NODE], needed=2 * GIB, asked=None)
    assert fewer == TrialResources(cpus=1.0, gpus=0.0, slots=2)
    assert said == "the machine's memory is for 2 trials at a time of about 2.0 GiB each, its cores for 8; so many run: 2"
    assert within_memory(resources, [NODE], needed=GIB // 2, asked=None) == (resources, "")
    assert within_memory(resources, [NODE], needed=9 * GIB, asked=None)[0].slots == 1, "one is tried in any case"


def test_each_node_has_the_trials_that_it_has_memory_for():
    wide = {"CPU": 1.0, "memory": 500 * GIB}
    unknown = {"CPU": 2.0}
    resources = TrialResources(cpus=1.0, gpus=0.0, slots=11)
    assert within_memory(resources, [NODE, wide, unknown], needed=2 * GIB, asked=None)[0].slots == 2 + 1 + 2


def test_a_user_who_names_the_trials_at_a_time_is_told_but_not_overruled():
    resources = TrialResources(cpus=1.0, gpus=0.0, slots=8)
    same, said = within_memory(resources, [NODE], needed=2 * GIB, asked=4)
    assert same == resources
    assert said.startswith("max_concurrent is 4, but the machine's memory is for 2 trials at a time")
    assert within_memory(resources, [NODE], needed=2 * GIB, asked=2) == (resources, "")
