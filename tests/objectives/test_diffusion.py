import copy

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from shared_fixtures import CPU
from torch.nn import functional

from maskpro.errors import MaskproError
from maskpro.initial_masks import magnitude_masked_model
from maskpro.objectives import HeldOutSamples
from maskpro.objectives.diffusion import DiffusionObjective
from maskpro.pattern import NMPattern
from maskpro.samples import CalibrationSamples


def test_the_loss_is_the_noise_mse_of_ddpm(digits):
    objective = digits.training_objective(seed=0, device=CPU)
    batch = objective.batch(torch.arange(6))
    raw = CalibrationSamples(digits.images.train, num_train_timesteps=1000, seed=0).batch(torch.arange(6))
    alphas = digits.scheduler.alphas_cumprod[raw.timesteps].view(-1, 1, 1, 1)
    expected = alphas.sqrt() * raw.images + (1 - alphas).sqrt() * raw.noise
    assert torch.allclose(batch.images, expected, atol=1e-6)
    with torch.no_grad():
        prediction = objective.predict(digits.model, batch)
    losses = objective.losses(prediction, batch)
    assert losses.shape == (6,)
    assert torch.allclose(losses.mean(), functional.mse_loss(prediction, raw.noise))
    assert objective.teacher_losses(prediction, prediction, batch).tolist() == [0.0] * 6


@pytest.mark.slow
def test_timesteps_are_sampled_more_often_where_the_initial_mask_adds_more_to_the_loss(digits):
    masked = magnitude_masked_model(
        copy.deepcopy(digits.model), pattern=NMPattern(2, 4), layout="channel", targets=("all",)
    )
    shares = digits.importance_shares(masked.model, CPU)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) >= 0.3 / len(shares)
    assert shares[0] > 5 * shares[8] > 5 * 0.3 / len(shares)
    assert digits.importance_shares(digits.model, CPU) == (1 / len(shares),) * len(shares), "where it adds nothing"


@pytest.mark.slow
def test_shares_in_bfloat16_differ_by_less_than_those_of_two_pilots(digits, monkeypatch):
    """Bound: a quarter of the total variation between the shares that two sets of 512 pilot samples give."""
    masked = magnitude_masked_model(copy.deepcopy(digits.model), pattern=NMPattern(2, 4), layout="channel")

    def shares(precision):
        return torch.tensor(digits.importance_shares(masked.model, CPU, precision))

    exact, rounded = shares("float32"), shares("bfloat16")
    monkeypatch.setattr("maskpro.objectives.diffusion._PILOT_SEED", 2**32 + 6)
    between_pilots = (shares("float32") - exact).abs().sum()
    assert 0 < (rounded - exact).abs().sum() < between_pilots / 4
    assert digits.importance_shares(digits.model, CPU, "bfloat16") == (1 / len(exact),) * len(exact), (
        "where it adds nothing"
    )


@pytest.mark.slow
def test_losses_of_importance_samples_have_the_mean_of_uniform_ones(digits):
    shares = (0.5, 0.2, 0.2, 0.1)
    means, errors = [], []
    for given in (None, shares):
        objective = digits.training_objective(seed=0, device=CPU, shares=given)
        batch = objective.batch(torch.arange(1024))
        with torch.no_grad():
            prediction = objective.predict(digits.model, batch)
        losses = objective.losses(prediction, batch)
        means.append(losses.mean().item())
        errors.append(losses.std().item() / 32)
    assert means[1] == pytest.approx(means[0], abs=4 * sum(errors))
    assert errors[1] < errors[0]


@pytest.mark.slow
def test_the_embedded_network_predicts_noise_well(digits):
    test = digits.held_out_samples("test", CPU)
    values = test.judge(digits.model)
    assert values.means().loss < 0.1
    assert values.losses.shape == values.errors.shape == (digits.budgets.test_samples,)
    assert values.errors.max() == 0


def test_held_out_samples_are_fixed_by_their_seed(digits):
    first, again, other = (
        HeldOutSamples(
            DiffusionObjective(digits.scheduler, digits.images.test, seed=seed, device=CPU, strata=70), 70, digits.model
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.judge(digits.model).losses, again.judge(digits.model).losses)
    assert not torch.equal(first.judge(digits.model).losses, other.judge(digits.model).losses)


def test_the_error_is_the_squared_difference_from_the_dense_networks_output(digits):
    objective = DiffusionObjective(digits.scheduler, digits.images.test, seed=1, device=CPU, strata=70)
    masked = magnitude_masked_model(digits.model, pattern=NMPattern(2, 4), layout="channel").model
    values = HeldOutSamples(objective, 70, digits.model).judge(masked)
    for index in (0, 69):
        batch = objective.batch(torch.tensor([index]))
        with torch.no_grad():
            difference = objective.predict(masked, batch) - objective.predict(digits.model, batch)
            loss = objective.predict(masked, batch) - batch.target
        assert values.errors[index].item() == pytest.approx(difference.square().mean().item(), rel=1e-4)
        assert values.losses[index].item() == pytest.approx(loss.square().mean().item(), rel=1e-4)


def test_a_prediction_type_that_is_none_is_refused(digits):
    scheduler = DDPMScheduler(prediction_type="flow")
    with pytest.raises(
        MaskproError, match=r"prediction_type of the model's scheduler is 'flow'; allowed: epsilon, sample, v"
    ):
        DiffusionObjective(scheduler, digits.images.test, seed=0, device=CPU)
