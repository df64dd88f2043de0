"""One function builds every run: what runs share changes none of them."""

from dataclasses import replace

import pytest
import torch

from maskpro.mask_file import MaskFile
from maskpro.pattern import NMPattern
from maskpro.runs import MaskFormat, RunCache, build_trainer, initial_masked
from maskpro.trainer_config import TrainerConfig

CPU = torch.device("cpu")
FORM = MaskFormat("2:4", "channel")


@pytest.fixture(scope="module")
def small(digits):
    return replace(digits, budgets=replace(digits.budgets, validation_samples=32))


def learned(workload, config, form=FORM, **options):
    trainer = build_trainer(workload, config, form, seed=0, device=CPU, **options)
    trainer.train(16)
    trainer.validate()
    return trainer


def config(**settings):
    return TrainerConfig(**{"batch_size": 8, "dataset_size": 16, "budget_samples": 16, "lr": 5.0, **settings})


@pytest.mark.slow
def test_what_runs_share_changes_none_of_them(small):
    cache = RunCache()
    for settings, options in (
        ({"timesteps": "importance"}, {}),
        ({"estimator": "policy_gradient", "timesteps": "importance"}, {}),
        ({"estimator": "policy_gradient", "timesteps": "importance", "target": "noise"}, {"targets": ("up_blocks",)}),
        ({"estimator": "policy_gradient", "seed": 1}, {}),
        ({"estimator": "policy_gradient", "timesteps": "importance"}, {"targets": ("up_blocks",)}),
    ):
        alone = learned(small, config(**settings), **options)
        beside = learned(small, config(**settings), cache=cache, **options)
        assert torch.equal(alone.logits, beside.logits)
        assert alone.best == beside.best
        assert len({name for name in cache.tables if name[0] == "teacher"}) == 1
    assert list(cache.validation) == ["float32"]


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_the_initial_mask_does_not_depend_on_what_is_learned(small, method):
    form = MaskFormat("2:4", "flattened", method)
    whole = initial_masked(small, small.model, form, seed=3).layer_masks()
    part = build_trainer(small, config(), form, seed=3, device=CPU, targets=("mid_block",)).masked
    assert {layer.name.split(".")[0] for layer in part.layers if layer.learned} == {"mid_block"}
    for name, mask in part.layer_masks().items():
        assert torch.equal(mask, whole[name])


def test_a_run_from_given_masks_equals_the_one_from_the_method_that_made_them(small):
    masked = initial_masked(small, small.model, FORM, seed=0)
    given = MaskFile(pattern=NMPattern(2, 4), layout="channel", base_hash="", masks=masked.layer_masks(), provenance={})
    settings = config(estimator="policy_gradient")
    first, second = learned(small, settings), learned(small, settings, masks=given)
    assert torch.equal(first.logits, second.logits)
