"""Ray, started here or joined, and what it has for trials."""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray

from maskpro.errors import MaskproError
from maskpro.machine.limits import CGROUPS, MEMBERSHIP, cgroup_limits, usable_cores
from maskpro.machine.process import keep_warnings, raise_file_limit
from maskpro.machine.ray_folders import provide_token, ray_folder
from maskpro.machine.ray_leftovers import end_with_this_process

# Trials share a GPU by default: networks of the size this is made for leave most of one idle.
_DEFAULT_GPU_SHARE = 0.25

# Share of a memory limit that Ray counts as the trials'; the rest is its object store's, as Ray itself divides it.
_TRIALS_SHARE = 0.7
# Ray waits half a minute for its own processes, which no setting changes; on a busy machine that is too short.
_TRIES = 3
# Ray's own processes have dozens each on two cores, and more on more.
_LEAST_FILES = 256
_PAUSE_SECONDS = 5.0


class TrialResources(NamedTuple):
    """Resources of one trial, and how many trials fit on the cluster as it is now."""

    cpus: float
    gpus: float
    slots: int

    @property
    def request(self) -> dict[str, float]:
        """As Ray takes it."""
        return {"cpu": self.cpus, "gpu": self.gpus}


class RayNotUp(Exception):
    """Ray did not come up in its own time, as on a busy machine."""


@contextmanager
def ray_starting(address: str | None) -> Iterator[Callable[[], None]]:
    """Ray, started here or joined beside what is done within, which waits for it by calling what it gets.

    That raises MaskproError where Ray can't be had. At the end Ray is shut down. Where it is not up by then, as after a
    mistake or Ctrl-C, nobody waits for it: what there is of it ends with this process.
    """
    start = _Start(address)
    try:
        yield lambda: _announce(start.connected.result())
    finally:
        start.unwanted.set()
        if start.connected.done():
            ray.shutdown()
        start.over.set()


class _Start:
    """Ray's start in threads of its own, with more than one try.

    Linux ends the processes of a local Ray with the thread that started them. So the thread of a try that has failed ends,
    and takes along what is left of that try; the one that has succeeded stays for as long as Ray does.

    Attributes:
        connected: host and port of Ray's dashboard, or why Ray can't be had.
        unwanted: no further try is worth it.
        over: Ray has been shut down.
    """

    def __init__(self, address: str | None):
        self._address = address
        self.connected: Future[str | None] = Future()
        self.unwanted, self.over = threading.Event(), threading.Event()
        self._leftovers = end_with_this_process() if address is None and sys.platform == "linux" else None
        usable_cores()  # it imports joblib, which a thread can't do once the process ends
        threading.Thread(target=self._run, name="ray-tries", daemon=True).start()

    def _run(self) -> None:
        for number in range(1, _TRIES + 1):
            tried: Future[str | None] = Future()
            thread = threading.Thread(target=self._try, args=(tried,), name="ray-start", daemon=True)
            thread.start()
            error = tried.exception()
            if error is None:
                self.connected.set_result(tried.result())
                return
            thread.join()
            if not isinstance(error, RayNotUp):
                self._end_leftovers()
                self.connected.set_exception(error)
                return
            if number == _TRIES or self.unwanted.is_set():
                break
            print(f"Ray is not up yet (load {_load()}); trying again, {number + 1} of {_TRIES}", flush=True)
            self.unwanted.wait(_PAUSE_SECONDS)
        self._end_leftovers()
        self.connected.set_exception(
            MaskproError(
                f"address is {self._address!r}; Ray did not start on this machine in {number} tries "
                f"({error}; load {_load()}); allowed: a machine that is less busy, or the address of a Ray that runs"
            )
        )

    def _try(self, tried: Future[str | None]) -> None:
        try:
            tried.set_result(_connect(self._address))
        except BaseException as error:
            tried.set_exception(error)
        else:
            self.over.wait()
            self._end_leftovers()

    def _end_leftovers(self) -> None:
        if self._leftovers is not None:
            self._leftovers.communicate()


def _load() -> str:
    return f"{os.getloadavg()[0]:.0f} on {usable_cores()} cores"


def start_ray(address: str | None, *, cpus: float, gpus: float | None) -> TrialResources:
    """Start Ray here, or connect to `address`, unless that was done before: what a trial gets.

    Without `gpus` that is a share of one where there are GPUs.

    Raises:
        MaskproError: the address can't be reached, or no node has what a trial asks for.
    """
    if not ray.is_initialized():
        _announce(_Start(address).connected.result())
    nodes = live_nodes()
    if gpus is None:
        gpus = _DEFAULT_GPU_SHARE if any(node.get("GPU", 0) for node in nodes) else 0.0
    for field, resource, wanted in (("gpus_per_trial", "GPU", gpus), ("cpus_per_trial", "CPU", cpus)):
        most = max(node.get(resource, 0) for node in nodes)
        if wanted > most:
            raise MaskproError(f"{field} is {wanted}; allowed: at most {most:g}, the most that one node has")
    slots = sum(_slots(node, cpus, gpus) for node in nodes)
    return TrialResources(cpus=cpus, gpus=gpus, slots=slots)


def _announce(dashboard: str | None) -> None:
    if dashboard:
        print(f"Ray dashboard: http://{dashboard}", flush=True)


def _connect(address: str | None) -> str | None:
    """Start or join Ray; host and port of its dashboard where it has one."""
    _check_address(address)
    try:
        started = ray.init(
            # Without "local" it would join whatever Ray happens to run on this machine.
            address=address or "local",
            include_dashboard=None if address else True,
            log_to_driver=False,
            logging_level="ERROR",
            **({} if address else _local_settings()),
        )
    except MaskproError:
        raise
    except Exception as error:  # Ray's own of a start that takes too long is of no other class
        reason = " ".join(str(error).split())[:200]
        if address is None and _may_pass(error):
            raise RayNotUp(reason) from error
        raise MaskproError(
            f"address is {address!r}; Ray could not be reached or started ({reason}); "
            "allowed: none (a local Ray), auto, or host:port (with RAY_AUTH_MODE=token where the cluster asks for tokens)"
        ) from error
    return getattr(started, "dashboard_url", None)


def _may_pass(error: Exception) -> bool:
    """Whether the next try may do better: not where a file or a value is the matter."""
    return isinstance(error, TimeoutError | ConnectionError) or not isinstance(error, OSError | ValueError)


def _local_settings(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> dict[str, Any]:
    """Settings of a Ray that is started here: this process's cores and memory, and a folder that can be written.

    Args:
        cgroups, membership: as of `cgroup_limits`.
    """
    if raise_file_limit() < _LEAST_FILES:
        raise MaskproError(
            f"the limit of open files is {raise_file_limit()}, at which Ray's processes end; allowed: at least "
            f"{_LEAST_FILES}, such as by ulimit -n 4096 (or the address of a Ray that runs)"
        )
    provide_token(os.environ)
    folder, note = ray_folder(os.environ)
    # Ray counts a container's cores and memory, but not those of `taskset`, a batch system, or a group within it.
    cores = usable_cores(cgroups, membership)
    for line in (note, keep_warnings(os.environ), _fewer_cores(cores)):
        if line:
            print(line, flush=True)
    settings: dict[str, Any] = {"num_cpus": cores}
    memory = cgroup_limits(cgroups, membership).memory
    if memory is not None and memory != cgroup_limits(cgroups, Path(os.devnull)).memory:
        settings["_memory"] = int(_TRIALS_SHARE * memory)
    return settings if folder is None else settings | {"_temp_dir": str(folder)}


def _fewer_cores(cores: int) -> str:
    of_machine = os.cpu_count() or cores
    return "" if cores >= of_machine else f"trials have {cores} of this machine's {of_machine} cores, as this process has"


def within_memory(
    resources: TrialResources, nodes: Sequence[Mapping[str, float]], *, needed: int, asked: int | None
) -> tuple[TrialResources, str]:
    """The resources with no more trials at a time than the nodes have memory for, and what there is to say of it.

    Args:
        nodes: what each has, as Ray counts it.
        needed: bytes of a trial.
        asked: trials at a time that the user has named, who is told but not overruled.
    """
    fitting = sum(_slots_within_memory(node, resources, needed) for node in nodes)
    wanted = asked or resources.slots
    if fitting >= wanted:
        return resources, ""
    short = f"the machine's memory is for {fitting} trials at a time of about {needed / 2**30:.1f} GiB each"
    if asked is not None:
        return resources, f"max_concurrent is {asked}, but {short}"
    return resources._replace(slots=max(1, fitting)), f"{short}, its cores for {wanted}; so many run: {max(1, fitting)}"


def _slots_within_memory(node: Mapping[str, float], resources: TrialResources, needed: int) -> int:
    slots = _slots(node, resources.cpus, resources.gpus)
    return min(slots, int(node["memory"] // needed)) if "memory" in node else slots


def live_nodes() -> list[dict[str, float]]:
    """What each of Ray's nodes has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _slots(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpu = math.floor(node.get("CPU", 0) / cpus)
    # A trial's share lies on one GPU.
    by_gpu = math.inf if gpus == 0 else math.floor(node.get("GPU", 0)) * math.floor(1 / gpus)
    return int(min(by_cpu, by_gpu))


def _check_address(address: str | None, environment: Mapping[str, str] = os.environ) -> None:
    """Ray waits for minutes, and then ends the process, where nothing listens at host:port."""
    named = f"address is {address!r}"
    # Ray takes the variable for "auto", and nothing of it for a local Ray.
    if address == "auto" and environment.get("RAY_ADDRESS"):
        address = environment["RAY_ADDRESS"]
        named = f"address is 'auto' with RAY_ADDRESS={address}"
        if address.startswith("ray://"):
            raise MaskproError(f"{named}; allowed: host:port on a node of the cluster (a Ray client can't run a search)")
    host, _, port = (address or "").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:  # a port above 65,535
        raise MaskproError(f"{named}; nothing answers there ({error}); allowed: a running Ray's") from error
