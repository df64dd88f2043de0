"""Ray, started here or joined, and what it has for trials."""

from __future__ import annotations

import math
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import NamedTuple

import ray

from maskpro.errors import MaskproError

# Trials share a GPU by default: networks of the size this is made for leave most of one idle.
_DEFAULT_GPU_SHARE = 0.25


class TrialResources(NamedTuple):
    """Of one trial, and how many trials fit on the cluster as it is now."""

    cpus: float
    gpus: float
    slots: int

    @property
    def request(self) -> dict[str, float]:
        """As Ray takes it."""
        return {"cpu": self.cpus, "gpu": self.gpus}


@contextmanager
def ray_starting(address: str | None) -> Iterator[Callable[[], None]]:
    """Ray, started here or joined beside what is done within, which waits for it by calling what it gets.

    That raises MaskproError where Ray can't be had. At the end Ray is shut down.
    """
    connected: Future[str | None] = Future()
    over = threading.Event()

    def connect() -> None:
        try:
            connected.set_result(_connect(address))
        except BaseException as error:
            connected.set_exception(error)
        # Linux ends the processes of a local Ray with the thread that started them.
        over.wait()

    threading.Thread(target=connect, name="ray-start", daemon=True).start()
    try:
        yield lambda: _announce(connected.result())
    finally:
        # Ray can be ended in good order only once it is all there. Nobody waits for that after Ctrl-C: what there is of it
        # ends with this process.
        if sys.exc_info()[0] is not KeyboardInterrupt:
            connected.exception()
        if connected.done():
            ray.shutdown()
        over.set()


def start_ray(address: str | None, *, cpus: float, gpus: float | None) -> TrialResources:
    """Start Ray here, or connect to `address`, unless that was done before: what a trial gets.

    Without `gpus` that is a share of one where there are GPUs.

    Raises:
        MaskproError: the address can't be reached, or no node has what a trial asks for.
    """
    if not ray.is_initialized():
        _announce(_connect(address))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
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
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise MaskproError(
            f"address is {address!r}; Ray could not be reached or started ({' '.join(str(error).split())[:200]}); "
            "allowed: none (a local Ray), auto, or host:port (with RAY_AUTH_MODE=token where the cluster asks for tokens)"
        ) from error
    return getattr(started, "dashboard_url", None)


def _slots(node: dict[str, float], cpus: float, gpus: float) -> int:
    by_cpu = math.floor(node.get("CPU", 0) / cpus)
    # A trial's share lies on one GPU.
    by_gpu = math.inf if gpus == 0 else math.floor(node.get("GPU", 0)) * math.floor(1 / gpus)
    return int(min(by_cpu, by_gpu))


def _check_address(address: str | None) -> None:
    """Ray waits for minutes, and then ends the process, where nothing listens at host:port."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise MaskproError(f"address is {address!r}; nothing answers there ({error}); allowed: a running Ray's") from error
