"""The benchmarks train with every setting that a space may have."""

from dataclasses import replace

import pytest
import torch

from benchmarks import checkpoint_rounding, validation_precision
from maskpro.tuning.space import load_space


@pytest.fixture
def small(digits):
    return replace(digits, budgets=replace(digits.budgets, validation_samples=32, test_samples=32))


def test_the_best_known_settings_have_targets_within_the_network():
    """What the tests below train with."""
    space = load_space(checkpoint_rounding._SPACE)
    points = dict(zip(space.seed_point_names, space.seed_points, strict=True))
    assert checkpoint_rounding._SPACE == validation_precision._SPACE
    assert points["best known"]["hidden_targets"] > 0


@pytest.mark.slow
def test_the_cost_of_rounding_is_measured_with_targets_within_the_network(small, monkeypatch):
    monkeypatch.setattr(checkpoint_rounding, "open_workload", lambda name: small)
    rows = checkpoint_rounding.run_seed(0, max_samples=144)
    assert [row["variant"] for row in rows] == ["float32", "rounded", "stopped at every rung"]


def test_the_precision_of_validation_is_measured_with_targets_within_the_network(small):
    found = validation_precision.masks_of_a_run(small, torch.device("cpu"), seed=0, max_samples=64)
    assert max(found) == 64
