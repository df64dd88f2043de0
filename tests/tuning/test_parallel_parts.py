"""Images of the final evaluation, made by several processes."""

import pytest
import torch
from shared_fixtures import RAY_IN_PROCESS

from maskpro.evaluation.sampling import SamplingPlan
from maskpro.tuning.parallel_parts import ray_parts
from maskpro.tuning.resources import start_ray
from maskpro.workload_evaluation import make_parts

pytestmark = [*RAY_IN_PROCESS, pytest.mark.slow]


def test_all_nodes_together_make_the_images_that_one_process_makes(digits, joined_ray):
    resources = start_ray(joined_ray.address, cpus=1.0, gpus=0.0)
    chunks = [range(8), range(12, 20), range(20, 22)]
    for sampler in ("ddim", "ddpm"):
        plan = SamplingPlan(scheduler=digits.scheduler, shape=(1, 8, 8), sampler=sampler, steps=3, seed=0, batch_size=4)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as many as a task has
        try:
            expected = list(make_parts(digits.model, plan.images, chunks))
        finally:
            torch.set_num_threads(threads)
        found = list(ray_parts(resources)(digits.model, plan.images, chunks))
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        other = list(ray_parts(resources)(digits.model, plan.images, chunks[1:]))
        assert all(torch.equal(*pair) for pair in zip(other, expected[1:], strict=True))
