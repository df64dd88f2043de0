"""The parts of the final evaluation, made on all of Ray's nodes at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache

import ray
import torch
from torch import Tensor, nn

from maskpro.tuning.resources import TrialResources
from maskpro.tuning.shared import trial_device
from maskpro.workload_evaluation import PartMaker, Produce


def ray_parts(resources: TrialResources) -> PartMaker:
    """A maker of parts in Ray tasks. Each task has a trial's CPUs, and a whole GPU where trials have a share of one.

    Ray repeats a lost task elsewhere with the same result, as a part depends on nothing but its range.
    """
    task = ray.remote(num_cpus=resources.cpus, num_gpus=1 if resources.gpus else 0)(_made)

    def make(model: nn.Module, produce: Produce, parts: Sequence[range]) -> Iterator[Tensor]:
        # Within a list Ray passes the reference: a process then loads the network once, not for every part.
        stored = [ray.put(copy.deepcopy(model).cpu())]
        made = [task.remote(stored, produce, part, resources.cpus) for part in parts]
        while made:
            yield ray.get(made.pop(0))

    return make


def _made(stored: list[ray.ObjectRef], produce: Produce, part: range, cpus: float) -> Tensor:
    torch.set_num_threads(max(1, int(cpus)))
    return produce(_network(stored[0]), part)


@lru_cache(maxsize=1)
def _network(stored: ray.ObjectRef) -> nn.Module:
    """This process's copy of the network, on the device that Ray gave it."""
    device = trial_device()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    network: nn.Module = ray.get(stored).to(device)
    return network
