"""The benchmarks train with every setting that a space may have."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import checkpoint_rounding, validation_precision

DEFAULT = Path(__file__).parents[1] / "search_spaces" / "default.py"


@pytest.fixture
def hidden(tmp_path):
    """The default space, but with targets within the network in the best known settings, which the benchmarks run."""
    source = DEFAULT.read_text()
    without = '        "hidden_targets": 0.0,\n'
    assert source.count(without) == 1
    (tmp_path / "hidden.py").write_text(source.replace(without, without.replace("0.0", "0.5")))
    return tmp_path / "hidden.py"


@pytest.fixture
def small(digits):
    return replace(digits, budgets=replace(digits.budgets, validation_samples=32, test_samples=32))


def test_the_cost_of_rounding_is_measured_with_targets_within_the_network(hidden, small, monkeypatch):
    monkeypatch.setattr(checkpoint_rounding, "_SPACE", hidden)
    monkeypatch.setattr(checkpoint_rounding, "open_workload", lambda name: small)
    rows = checkpoint_rounding.run_seed(0, max_samples=144)
    assert [row["variant"] for row in rows] == ["float32", "rounded", "stopped at every rung"]


def test_the_precision_of_validation_is_measured_with_targets_within_the_network(hidden, small, monkeypatch):
    monkeypatch.setattr(validation_precision, "_SPACE", hidden)
    found = validation_precision.masks_of_a_run(small, torch.device("cpu"), seed=0, max_samples=64)
    assert max(found) == 64
