import math

import pytest
import torch

from maskpro.objectives.diffusion import DiffusionObjective
from maskpro.tuning.trainable import FAILURE_PENALTY, MaskTrainable, TrialContext

FIRST = {"lr": 2.0, "batch_size": 16, "dataset_size": 64}
SECOND = {"lr": 1.0, "batch_size": 24, "dataset_size": 80, "estimator": "policy_gradient", "target": "teacher"}


@pytest.fixture(scope="module")
def context(digits):
    return TrialContext(
        workload=digits,
        pattern="2:4",
        layout="channel",
        targets=("all",),
        max_samples=96,
        report_samples=40,
        seed=0,
    )


@pytest.fixture
def start(context, monkeypatch):
    monkeypatch.setattr("ray.get_gpu_ids", list)

    class Started(MaskTrainable):
        """As tune.with_parameters would make it, without an object store."""

        def setup(self, config):
            super().setup(config, context=context)

    return Started


def results(trial):
    """What a trial reports, less clocks and names."""
    rows = []
    while not rows or not rows[-1]["done"]:
        row = trial.train()
        rows.append({name: row[name] for name in ("num_samples_seen", "val_loss", "val_loss_now", "train_loss", "done")})
    return rows


def test_a_trial_reports_at_fixed_numbers_of_samples_and_ends_at_its_budget(start):
    rows = results(start(dict(SECOND)))
    assert [row["num_samples_seen"] for row in rows] == [40, 80, 96]
    assert [row["done"] for row in rows] == [False, False, True]
    lowest = [min(row["val_loss_now"] for row in rows[: count + 1]) for count in range(3)]
    assert [row["val_loss"] for row in rows] == lowest


def test_trials_on_a_reused_actor_equal_trials_on_fresh_ones(start):
    reused = start(dict(FIRST))
    found = [results(reused)]
    for config in (SECOND, FIRST):
        assert reused.reset(dict(config))
        found.append(results(reused))
    assert found == [results(start(dict(config))) for config in (FIRST, SECOND, FIRST)]
    assert found[0] == found[2]


@pytest.mark.parametrize("config", [FIRST, SECOND])
def test_a_restored_trial_goes_on_bit_for_bit(start, config, tmp_path):
    whole = results(start(dict(config)))
    first = start(dict(config))
    first.train()
    first.save_checkpoint(str(tmp_path))
    second = start(dict(config))
    second.load_checkpoint(str(tmp_path))
    assert results(second) == whole[1:]


def test_a_loss_that_is_not_finite_ends_the_trial_with_a_finite_penalty(start, monkeypatch):
    trial = start(dict(FIRST))
    original = DiffusionObjective.teacher_losses
    monkeypatch.setattr(DiffusionObjective, "teacher_losses", lambda *inputs: original(*inputs) * math.nan)
    result = trial.train()
    assert result["done"]
    assert result["failure"] == "training loss is not finite after 40 samples"
    assert result["val_loss"] == FAILURE_PENALTY * trial._initial_val_loss


def test_a_trial_that_makes_things_worse_is_told_from_one_that_does_nothing(start):
    """A random walk: raw steps far too large. Its metric is its own, while the mask it would promote is the initial one."""
    raw = {"estimator": "policy_gradient", "target": "noise", "raw_step": True, "lr": 1e5}
    trial = start({**raw, "batch_size": 8, "dataset_size": 64})
    worst = results(trial)[-1]
    assert worst["val_loss"] > trial._initial_val_loss
    assert trial._trainer.best_val_loss == trial._initial_val_loss


def test_a_trial_without_an_assigned_gpu_stays_on_the_cpu(start, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert start(dict(FIRST))._trainer.logits.device.type == "cpu"
