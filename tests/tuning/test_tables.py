"""Tables that processes share through Ray's object store."""

import numpy as np
import pytest
import ray
import torch
from shared_fixtures import RAY_IN_PROCESS

from maskpro.tuning.shared import RayShelf
from maskpro.tuning.tables import start_keeper

pytestmark = [*RAY_IN_PROCESS, pytest.mark.slow]


def test_what_one_process_leaves_the_others_read_also_when_it_is_gone(joined_ray):
    keeper = start_keeper()
    shelf, values = RayShelf(keeper, ("format", "teacher")), torch.arange(6.0).view(2, 3)
    assert shelf.get(4) is None

    @ray.remote(max_calls=1)  # its process ends with it
    def leave(keeper):
        keeper.put.remote(("format", "teacher"), np.zeros(0))  # another key
        ray.get(keeper.put.remote((("format", "teacher"), 4), np.arange(6, dtype=np.float32).reshape(2, 3)))

    ray.get(leave.remote(keeper))
    assert torch.equal(shelf.get(4), values)
    shelf.put(4, values + 1)
    assert torch.equal(shelf.get(4), values), "the first one stays"
    assert RayShelf(keeper, "teacher").get(4) is None
    ray.kill(keeper)
    assert shelf.get(4) is None, "a lost keeper counts as nothing there"
