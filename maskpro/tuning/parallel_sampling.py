"""The final evaluation's images, made by all of Ray's nodes at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache

import ray
import torch
from torch import Tensor, nn

from maskpro.evaluation.comparison import ChunkMaker
from maskpro.evaluation.sampling import SamplingPlan
from maskpro.tuning.resources import TrialResources
from maskpro.tuning.shared import trial_device


def ray_chunks(resources: TrialResources) -> ChunkMaker:
    """Makes chunks of images in Ray tasks, each with a trial's CPUs, and a whole GPU where trials have a share of one.

    A lost task is repeated by Ray elsewhere; the images are the same, for those of a chunk depend on nothing but the chunk.
    """
    task = ray.remote(num_cpus=resources.cpus, num_gpus=1 if resources.gpus else 0)(_images)

    def make(model: nn.Module, plan: SamplingPlan, chunks: Sequence[range]) -> Iterator[Tensor]:
        # In a list, so that Ray hands over the reference: a process takes the network once, not for every chunk.
        stored = [ray.put(copy.deepcopy(model).cpu())]
        made = [task.remote(stored, plan, chunk, resources.cpus) for chunk in chunks]
        while made:
            yield ray.get(made.pop(0))

    return make


def _images(stored: list[ray.ObjectRef], plan: SamplingPlan, chunk: range, cpus: float) -> Tensor:
    torch.set_num_threads(max(1, int(cpus)))
    return plan.images(_network(stored[0]), chunk)


@lru_cache(maxsize=1)
def _network(stored: ray.ObjectRef) -> nn.Module:
    """This process's copy of the network, on the device that Ray gave it."""
    device = trial_device()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    network: nn.Module = ray.get(stored).to(device)
    return network
