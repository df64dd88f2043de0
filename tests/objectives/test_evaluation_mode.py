"""A network in training mode is judged as a frozen one: its outputs depend on its inputs alone, its averages stay."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from shared_fixtures import CPU
from torch import nn

from maskpro.evaluation.sampling import SamplingPlan
from maskpro.initial_masks import input_hessians, magnitude_mask
from maskpro.masked_model import MaskedModel
from maskpro.objectives import HeldOutSamples, baseline_losses, evaluation_mode, teacher_outputs
from maskpro.objectives.diffusion import DiffusionObjective, timestep_shares
from maskpro.pattern import NMPattern
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig

SCHEDULER = DDPMScheduler(num_train_timesteps=100)
IMAGES = torch.randint(256, (40, 4, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Noise prediction with BatchNorm and Dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, images, timesteps, return_dict=True):
        return (self.dropout(self.norm(self.conv(images))),)


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


@pytest.fixture
def objective():
    return DiffusionObjective(SCHEDULER, IMAGES, seed=0, device=CPU, strata=64)


def plan():
    return SamplingPlan(scheduler=SCHEDULER, shape=(4, 8, 8), steps=3, seed=0, batch_size=4)


CALLS = {
    "held out": lambda model, objective: torch.stack(HeldOutSamples(objective, 64, model).judge(model)),
    "teacher": lambda model, objective: teacher_outputs(model, objective)(torch.arange(64)),
    "baseline": lambda model, objective: baseline_losses(model, objective, None)(torch.arange(64)),
    "timesteps": lambda model, objective: torch.tensor(
        timestep_shares(model, MaskedModel(Network(), pattern=NMPattern(2, 4)).model.train(), SCHEDULER, IMAGES, device=CPU)
    ),
    "images": lambda model, objective: plan().images(model, range(4)),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_network_in_training_mode_is_run_as_a_frozen_one(what, network, objective, monkeypatch):
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda layer: nn.init.constant_(layer.weight, 0.1))
    expected = CALLS[what](network.eval(), objective)
    network.train()
    network.conv.eval()  # a part's own mode comes back too
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert torch.equal(CALLS[what](network, objective), expected)
    assert [name for name, module in network.named_modules() if module.training] == ["", "norm", "dropout"]
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_training_a_mask_moves_nothing_but_the_logits(network, objective):
    """Neither averages nor modes, though the caller has put the masked network back into training mode."""
    masked = MaskedModel(network.train(), pattern=NMPattern(2, 4))
    masked.set_mask(magnitude_mask(masked))
    masked.model.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    held_out = HeldOutSamples(objective, 64, network)
    trainer = MaskTrainer(
        TrainerConfig(batch_size=8, dataset_size=64, budget_samples=64, target="noise"),
        masked=masked,
        objective=objective,
        validation=held_out,
    )
    trainer.train(64)
    assert trainer.validate() == trainer.validate()
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_inputs_of_layers_are_looked_at_in_evaluation_mode(network, objective):
    masked = MaskedModel(nn.Sequential(network), pattern=NMPattern(2, 4))
    masked.model.forward = lambda *inputs, **options: network(*inputs, **options)
    masked.model.train()
    before = network.norm.running_mean.clone()
    input_hessians(masked, objective, 32)
    assert torch.equal(network.norm.running_mean, before)
    assert network.norm.training


def test_the_modes_come_back_after_an_error(network):
    network.train()
    seen = []

    def fail():
        with evaluation_mode(network):
            seen.extend(module.training for module in network.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False] * 4
    assert all(module.training for module in network.modules())
