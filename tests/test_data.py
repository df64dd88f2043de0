import pytest
import torch

from maskpro.data import CalibrationSamples, to_model_range, to_uint8
from maskpro.images import digits_images


@pytest.fixture(scope="module")
def samples():
    return CalibrationSamples(digits_images().train, num_train_timesteps=1000, seed=3)


def test_a_sample_depends_on_seed_and_index_alone(samples):
    alone = samples.batch(torch.tensor([70]))
    in_batch = samples.batch(torch.tensor([5, 70, 2_000_000]))
    for name in ("images", "timesteps", "noise"):
        assert torch.equal(getattr(alone, name)[0], getattr(in_batch, name)[1])
    other_seed = CalibrationSamples(digits_images().train, num_train_timesteps=1000, seed=4).batch(torch.tensor([70]))
    assert not torch.equal(alone.noise, other_seed.noise)


def test_more_samples_than_images_repeat_images_with_fresh_noise(samples):
    batch = samples.batch(torch.tensor([0, 1197, 2394]))
    assert torch.equal(batch.images[0], batch.images[1])
    assert not torch.equal(batch.noise[0], batch.noise[1])
    first_pass = samples.batch(torch.arange(1197)).images
    assert len(first_pass.flatten(1).unique(dim=0)) == len(digits_images().train.flatten(1).unique(dim=0))


def test_noise_is_standard_normal_and_timesteps_uniform(samples):
    batch = samples.batch(torch.arange(2000))
    assert abs(batch.noise.mean().item()) < 0.02
    assert abs(batch.noise.std().item() - 1) < 0.02
    assert batch.timesteps.min() >= 0
    assert batch.timesteps.max() < 1000
    assert abs(batch.timesteps.float().mean().item() - 499.5) < 4 * 289 / 2000**0.5


def test_importance_samples_of_timesteps_have_their_shares_and_weights_that_keep_means():
    shares = (0.5, 0.3, 0.15, 0.05)
    samples = CalibrationSamples(digits_images().train, num_train_timesteps=1000, seed=3, shares=shares)
    batch = samples.batch(torch.arange(4000))
    parts = batch.timesteps // 250
    for part, share in enumerate(shares):
        inside = parts == part
        assert inside.float().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
        assert (batch.weights[inside] == torch.tensor(1 / (4 * share))).all()
        within = batch.timesteps[inside].float() - 250 * part
        assert within.mean().item() == pytest.approx(124.5, abs=4 * 72.2 / inside.sum().item() ** 0.5), "uniform inside"
    assert batch.timesteps.min() >= 0
    assert batch.timesteps.max() < 1000
    values = batch.timesteps.double().square()
    expected = torch.arange(1000).double().square()
    error = (values * batch.weights).std() / 4000**0.5
    assert (values * batch.weights).mean() == pytest.approx(expected.mean().item(), abs=4 * error.item())


def test_uniform_samples_weigh_one(samples):
    assert samples.batch(torch.arange(9)).weights.tolist() == [1.0] * 9


def test_held_out_timesteps_fall_in_one_stratum_each():
    held_out = CalibrationSamples(digits_images().test, num_train_timesteps=1000, seed=3, strata=100)
    strata = held_out.batch(torch.arange(100)).timesteps // 10
    assert sorted(strata.tolist()) == list(range(100))


def test_uint8_round_trip():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_model_range(images)), images)
    assert to_model_range(images).min() == -1
    assert to_model_range(images).max() == 1
