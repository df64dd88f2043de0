import copy
import math

import pytest
import torch
from shared_fixtures import CPU, make_trainer
from torch import nn

from maskpro.errors import MaskproError
from maskpro.hidden_targets import HiddenTargets, block_names, fading
from maskpro.initial_masks import magnitude_masked_model
from maskpro.objectives import predict_in
from maskpro.pattern import NMPattern
from maskpro.trainer_config import TrainerConfig

TWO_OF_FOUR = NMPattern(2, 4)


def masked_digits(digits, targets=("all",)):
    return magnitude_masked_model(digits.model, pattern=TWO_OF_FOUR, layout="channel", targets=targets)


def hidden_loss(hidden: HiddenTargets, masked, objective, indices) -> torch.Tensor:
    batch = objective.batch(indices)
    _, expected = hidden.dense(batch)
    with hidden.watched() as outputs:
        objective.predict(masked.model, batch)
    return hidden.losses(outputs, expected, batch)


def test_blocks_are_the_modules_right_above_learned_layers(digits):
    assert block_names(masked_digits(digits, ("down_blocks.1",))) == [
        "down_blocks.1.attentions.0",
        "down_blocks.1.resnets.0",
    ]
    everything = block_names(masked_digits(digits))
    assert "up_blocks.0.upsamplers.0" in everything
    assert not any("to_out" in name for name in everything), "lists of modules have no output"


@torch.no_grad()
def test_the_hidden_loss_begins_as_large_as_the_networks_own_and_ends_at_zero(digits):
    masked, objective = masked_digits(digits), digits.training_objective(seed=0, device=CPU)
    hidden = HiddenTargets(digits.model, masked, objective)
    indices = torch.arange(256)
    batch = objective.batch(indices)
    prediction, _ = hidden.dense(batch)
    own = objective.teacher_losses(objective.predict(masked.model, batch), prediction, batch)
    assert hidden_loss(hidden, masked, objective, indices).mean().item() == pytest.approx(own.mean().item(), rel=1e-4)
    masked.set_mask(torch.ones_like(masked.mask))
    left = hidden_loss(hidden, masked, objective, indices[:8])
    assert left.max() < 1e-9 * own.mean(), "zero, but for the order of summation"


def test_every_block_counts_alike_by_plain_arithmetic():
    """Two linear blocks of which the first one's difference is 100 times the second's."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4, bias=False)

        def forward(self, values):
            return self.inner(values)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Block(), Block()

        def forward(self, values):
            return self.first(values), self.second(values)

    class Plain:
        def batch(self, indices):
            return torch.eye(4)[indices % 4]

        def predict(self, model, batch):
            return sum(model(batch))

        def hidden_losses(self, hidden, teacher, batch):
            return (hidden - teacher).square().mean(dim=1)

    net = Net()
    with torch.no_grad():
        net.first.inner.weight.copy_(torch.tensor([[10.0, 20.0, 30.0, 40.0]] * 4))
        net.second.inner.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 4))
    masked = magnitude_masked_model(net, pattern=TWO_OF_FOUR, layout="channel")
    hidden = HiddenTargets(net, masked, Plain())
    losses = hidden_loss(hidden, masked, Plain(), torch.arange(4)).double()
    # Inputs 0 and 1 are dropped: 10 and 20 in the first block, 1 and 2 in the second, 11 and 22 in the network.
    first, second, own = (torch.tensor([a * a, b * b, 0.0, 0.0]).double() for a, b in ((10, 20), (1, 2), (11, 22)))
    assert torch.allclose(losses, own.mean() * (first / first.mean() + second / second.mean()) / 2)


def test_the_gradient_is_that_of_both_losses_and_fades(digits):
    config = {"hidden_targets": 2.0, "batch_size": 4, "budget_samples": 8, "logits": 40.0, "dataset_size": 8}
    trainer = make_trainer(digits, **config)
    plain = make_trainer(digits, **{**config, "hidden_targets": 0.0})
    # With logits of 40 the initial mask is always drawn.
    masked, objective = masked_digits(digits), digits.training_objective(seed=0, device=CPU)
    gradients = masked.weight_gradient().zero_()
    hidden = HiddenTargets(digits.model, copy.deepcopy(masked_digits(digits)), objective)
    hidden._masked = masked
    hidden_loss(hidden, masked, objective, torch.arange(4)).mean().backward()
    for runner in (trainer, plain):
        runner.train(4)
    expected = plain.masked.weight_gradient() / plain.masked.learned_base + 2.0 * fading(0.0) * gradients
    found = trainer.masked.weight_gradient() / trainer.masked.learned_base
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-7)
    assert [fading(progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 0.25, 0.0]


@pytest.mark.slow
def test_a_run_with_hidden_targets_goes_on_bit_for_bit(digits):
    settings = {"hidden_targets": 1.0, "budget_samples": 32}
    whole, first, rest = (make_trainer(digits, **settings) for _ in range(3))
    whole.train(16)
    whole.validate()
    whole.train(16)
    first.train(16)
    first.validate()
    rest.load_state_dict(*first.state_dict())
    rest.train(16)
    assert torch.equal(rest.logits, whole.logits)
    assert not torch.equal(make_trainer(digits, budget_samples=32).logits, whole.logits)


def test_hidden_targets_that_are_not_allowed_are_refused(digits):
    for settings, message in (
        ({"hidden_targets": -1.0}, "hidden_targets is -1.0; allowed: a number of at least 0"),
        ({"hidden_targets": math.inf}, "hidden_targets is inf; allowed: a number of at least 0"),
        ({"hidden_targets": 1.0, "estimator": "policy_gradient"}, "hidden_targets is 1.0 with estimator policy_gradient"),
        ({"hidden_targets": 1.0, "compile": True}, "hidden_targets is 1.0 with compile; allowed: 0"),
    ):
        with pytest.raises(MaskproError, match=message):
            TrainerConfig(**settings)


@torch.no_grad()
def test_in_bfloat16_the_dense_networks_passes_are_rounded_like_the_masked_ones(digits):
    """With a mask that keeps everything both are the same network, and most of the rounding cancels."""
    masked, objective = masked_digits(digits), digits.training_objective(seed=0, device=CPU)
    hidden = HiddenTargets(digits.model, masked, objective, precision="bfloat16")
    plain = HiddenTargets(digits.model, masked, objective)
    masked.set_mask(torch.ones_like(masked.mask))
    batch = objective.batch(torch.arange(8))
    with hidden.watched() as outputs:
        prediction = predict_in("bfloat16", objective, masked.model, batch)
    left = {}
    for name, kind in (("bfloat16", hidden), ("float32", plain)):
        output, blocks = kind.dense(batch)
        left[name] = (output - prediction).square().mean(), kind.losses(outputs, blocks, batch).mean()
    assert left["bfloat16"][0] < left["float32"][0] / 2
    assert left["bfloat16"][1] < left["float32"][1] / 2


def test_a_dense_network_in_training_mode_is_run_as_a_frozen_one(digits):
    dense = copy.deepcopy(digits.model)
    masked, objective = masked_digits(digits), digits.training_objective(seed=0, device=CPU)
    hidden, batch = HiddenTargets(dense, masked, objective), objective.batch(torch.arange(4))
    frozen, _ = hidden.dense(batch)
    modes = []
    dense.mid_block.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    dense.train()
    found, _ = hidden.dense(batch)
    assert torch.equal(found, frozen)
    assert modes == [False]
    assert dense.training
