"""Gradient checkpointing: the same results from fewer kept activations."""

import copy

import pytest
import torch
from shared_fixtures import make_trainer
from torch import nn

from maskpro.errors import MaskproError
from maskpro.masked_model import MaskedModel
from maskpro.pattern import NMPattern
from maskpro.recomputation import recomputable_blocks
from maskpro.trainer_config import TrainerConfig


def trained(workload, **settings):
    """Logits and losses of a short run, and the bytes that its passes keep for the backward pass."""
    trainer, kept = make_trainer(workload, batch_size=4, dataset_size=8, budget_samples=8, lr=5.0, **settings), []

    def keep(values):
        kept.append(values.numel() * values.element_size())
        return values

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        losses = trainer.train(8)
    return trainer, losses, sum(kept)


@pytest.mark.parametrize(
    "settings",
    [{"estimator": "relaxed_subset", "hidden_targets": 1.0}, {"estimator": "straight_through", "precision": "bfloat16"}],
)
def test_results_are_bit_for_bit_the_same_from_fewer_kept_activations(digits, settings):
    (plain, losses, kept), (again, same, fewer) = (
        trained(digits, **settings, gradient_checkpointing=value) for value in (False, True)
    )
    assert torch.equal(plain.logits, again.logits)
    assert torch.equal(losses, same)
    assert not torch.equal(plain.logits, make_trainer(digits, estimator=settings["estimator"]).logits)
    assert fewer < kept / 4
    assert not any("forward" in vars(module) for module in again.masked.model.modules())


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.outer = nn.ModuleList(nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(4, 4)])}) for _ in range(2))
        self.single = nn.Linear(4, 4)


def test_blocks_are_the_outermost_elements_of_lists_with_learned_layers():
    model = Nested()
    masked = MaskedModel(copy.deepcopy(model), pattern=NMPattern(2, 4))
    assert recomputable_blocks(masked) == list(masked.model.outer)
    masked = MaskedModel(copy.deepcopy(model), pattern=NMPattern(2, 4), targets=("outer.1", "single"))
    assert recomputable_blocks(masked) == [masked.model.outer[1]]
    masked = MaskedModel(model, pattern=NMPattern(2, 4), targets=("single",))
    with pytest.raises(MaskproError, match=r"^gradient_checkpointing is True with a model that has no list of blocks; all"):
        recomputable_blocks(masked)


@pytest.mark.parametrize("other", [{"estimator": "policy_gradient"}, {"compile": True}])
def test_it_is_refused_where_there_is_no_backward_pass_and_where_torch_compiles(other):
    with pytest.raises(MaskproError, match=r"^gradient_checkpointing is True with (estimator policy_gradient|compile); al"):
        TrainerConfig(gradient_checkpointing=True, **other)
