"""The benchmarks train with every setting that a space may have."""

import copy
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from benchmarks import checkpoint_rounding, rung_order, search_value, validation_precision
from benchmarks.channel_permutation import best_order, permute_channels
from benchmarks.mask_methods import misplaced_share
from maskpro.masked_model import MaskedModel
from maskpro.pattern import NMPattern
from maskpro.trainer import NonFiniteLossError
from maskpro.tuning.space import load_space


def test_the_best_known_settings_have_targets_within_the_network():
    """What the tests below train with."""
    space = load_space(checkpoint_rounding._SPACE)
    points = dict(zip(space.seed_point_names, space.seed_points, strict=True))
    assert checkpoint_rounding._SPACE == validation_precision._SPACE
    assert points["best known"]["hidden_targets"] > 0


@pytest.mark.slow
def test_the_cost_of_rounding_is_measured_with_targets_within_the_network(tiny, monkeypatch):
    monkeypatch.setattr(checkpoint_rounding, "open_workload", lambda name: tiny)
    rows = checkpoint_rounding.run_seed(0, max_samples=144)
    assert [row["variant"] for row in rows] == ["float32", "rounded", "stopped at every rung"]


def test_the_precision_of_validation_is_measured_with_targets_within_the_network(tiny):
    found = validation_precision.masks_of_a_run(tiny, torch.device("cpu"), seed=0, max_samples=64)
    assert max(found) == 64


class _Trainer:
    """Its loss is not finite after 200 samples; before that its error is a hundredth of the samples."""

    num_samples_seen = 0
    lowest = None

    def train(self, num_samples):
        self.num_samples_seen += num_samples
        if self.num_samples_seen > 200:
            raise NonFiniteLossError("training loss is not finite")

    def validate(self):
        self.lowest = SimpleNamespace(error=self.num_samples_seen / 100)


def test_a_trial_of_the_search_comparison_fails_where_its_loss_is_not_finite():
    trials = object.__new__(search_value.RealTrials)
    trials.search = SimpleNamespace(context=SimpleNamespace(report_samples=100))
    trials._errors, trials._failed, trainer = {}, set(), _Trainer()
    trials._trainer = lambda params, budget: trainer
    errors = [trials.validation_error({"lr": 1.0}, samples, 900) for samples in (100, 300, 200, 900)]
    assert errors == [1.0, math.inf, 2.0, math.inf]
    assert trainer.num_samples_seen == 300, "nothing is trained after that"


def test_only_masks_along_the_input_channels_have_no_misplaced_groups():
    layer = torch.nn.Sequential(torch.nn.Conv2d(4, 1, (1, 2), bias=False))
    # Each kernel position keeps three of its four input channels or one; along the stored order all is 2:4.
    flattened = torch.tensor([[1, 0, 1, 0, 1, 0, 0, 1]], dtype=torch.bool).view(1, 4, 1, 2)
    channel = torch.tensor([[1, 0, 1, 0, 0, 1, 0, 1]], dtype=torch.bool).view(1, 4, 1, 2)
    for layout, mask, share in (("flattened", flattened, 0.5), ("channel", channel, 0.0)):
        masked = MaskedModel(copy.deepcopy(layer), pattern=NMPattern(2, 4), layout=layout)
        masked.set_mask(masked.groups({"0": mask}))
        assert misplaced_share(masked) == share


def test_a_permutation_of_channels_keeps_more_and_leaves_the_outputs_as_they_are(digits, generator):
    permuted = copy.deepcopy(digits.model)
    assert 0.1 < permute_channels(permuted) < 0.5
    images = torch.randn(2, 1, 8, 8, generator=generator)
    timesteps = torch.tensor([0, 900])
    with torch.no_grad():
        torch.testing.assert_close(permuted(images, timesteps).sample, digits.model(images, timesteps).sample)


def test_the_best_order_puts_each_large_weight_where_it_is_kept():
    """Channels 0 to 2 are large: no two fours that hold all of them keep as much as 2 and 1."""
    weight = torch.full((3, 16), 0.1)
    weight[:, :3] = 1.0
    order = best_order(weight, 8)
    assert sorted(order[:8].tolist()) == list(range(8))
    assert order[8:].tolist() == list(range(8, 16))
    assert sorted((order[:8].view(2, 4) < 3).sum(dim=1).tolist()) == [1, 2]
    assert best_order(weight, 2).tolist() == list(range(16))


def test_a_rungs_order_is_compared_over_all_settings_and_over_the_better_half():
    short = {"full run": [4.0, 3.0, 2.0, 1.0], "1/8, exponent 0": [8.0, 7.0, 5.0, 6.0], "lr": [0.1, 0.2, 0.3, 0.4]}
    (row,) = rung_order.correlations(pd.DataFrame(short))
    assert list(row.values()) == ["1/8, exponent 0", "0.80", "-1.00", "1.00"]
