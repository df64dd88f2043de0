"""Calibration samples: pure functions of (seed, index), the same integers by every implementation."""

import importlib
import math

import numpy as np
import pytest
import torch

from maskpro import samples as samples_module
from maskpro.images import digits_images
from maskpro.philox import philox4x32, philox4x32_by_numpy
from maskpro.samples import CalibrationSamples, normal_values

# Known answers of Random123 (kat_vectors, philox4x32 10): counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# Between implementations, of float32 values that reach 6.8; from a float64 computation of the same uniform numbers, whose
# angles float32 rounds as well.
BOUND, FLOAT64_BOUND = 2e-6, 5e-6
SEEDS = [0, 3, 2**31, 2**32 - 1, 2**32 + 5, 2**63 + 11]
INDICES = torch.tensor([0, 1, 77, 123_456_789, 2**31, 2**33 + 7])


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


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_the_words_are_those_of_philox(counter, key, words):
    assert philox4x32(counter, key) == words
    tensors = philox4x32([torch.tensor([[word]]) for word in counter], key)
    assert tuple(word.item() for word in tensors) == words
    arrays = philox4x32_by_numpy([np.array([[word]]) for word in counter], key)
    assert tuple(word.item() for word in arrays) == words


@pytest.mark.parametrize("seed", SEEDS)
def test_torch_and_numpy_draw_the_same_words(seed):
    by_torch = samples_module._words_of(seed, INDICES, 0, 50)
    by_numpy = samples_module._words_of(seed, INDICES.numpy(), 0, 50)
    for mine, other in zip(by_torch, by_numpy, strict=True):
        assert np.array_equal(mine.numpy(), other)
    alone = samples_module._words_of(seed, INDICES[3:4], 7, 1)
    assert [word.item() for word in alone] == [word[3, 7].item() for word in by_torch]


def in_float64(seed, size):
    """The noise of INDICES, of the same uniform numbers, by float64's functions."""
    values = []
    words = samples_module._words_of(seed, INDICES, 1, -(-size // 4))
    for first, second in (words[:2], words[2:]):
        uniform = (first.float() * 2**-32 + 2**-33).double()
        radius, angle = (-2 * uniform.log()).sqrt(), (second >> 8).double() * (2 * math.pi / 2**24)
        values += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(values, dim=-1).flatten(1)[:, :size]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 7, 64, 3072])
def test_noise_is_equal_by_every_implementation_up_to_rounding(seed, size):
    by_torch = normal_values(seed, INDICES, size)
    by_numpy = torch.from_numpy(samples_module._drawn_by_numpy(seed, INDICES.numpy(), size)[1])
    assert by_torch.shape == by_numpy.shape == (len(INDICES), size)
    torch.testing.assert_close(by_numpy, by_torch, rtol=0, atol=BOUND)
    for found in (by_torch, by_numpy):
        torch.testing.assert_close(found.double(), in_float64(seed, size), rtol=0, atol=FLOAT64_BOUND)


@pytest.fixture
def kernels(monkeypatch):
    pytest.importorskip("triton", reason="Triton comes with torch on Linux alone")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    module = importlib.import_module("maskpro.sample_kernels")
    yield importlib.reload(module)
    monkeypatch.undo()
    importlib.reload(module)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU; see test_gpu.py")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 7, 64, 3072])
def test_the_kernel_draws_the_noise_of_torch(kernels, seed, size):
    found = kernels.normal_values(seed, INDICES, size)
    torch.testing.assert_close(found, normal_values(seed, INDICES, size), rtol=0, atol=BOUND)


def test_no_sample_at_all(kernels):
    none = torch.empty(0, dtype=torch.int64)
    assert kernels.normal_values(0, none, 5).shape == normal_values(0, none, 5).shape == (0, 5)
    images = digits_images().train
    assert CalibrationSamples(images, num_train_timesteps=1000, seed=0).batch(none).noise.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("settings", [{}, {"strata": 400}, {"shares": (0.5, 0.3, 0.15, 0.05)}], ids=str)
def test_samples_are_the_same_where_they_are_not_drawn_by_numpy(settings):
    """The way of all other devices, tried on a CPU's tensors."""
    images = digits_images().train
    samples = CalibrationSamples(images, num_train_timesteps=1000, seed=3, **settings)
    expected = samples.batch(torch.arange(400))
    found = samples._batch_elsewhere(np.arange(400))
    for name in ("images", "timesteps", "weights"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(found.noise, expected.noise, rtol=0, atol=BOUND)


def test_values_of_a_sample_and_of_neighbours_are_independent():
    """Correlations between neighbouring values, samples and seeds, and the first four moments, within their errors."""
    count = 400 * 3072
    values = normal_values(5, torch.arange(400), 3072).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean().item() - moment) < 4 * (variance / count) ** 0.5
    others = {
        "values": (values[:, 1:], values[:, :-1]),
        "pairs": (values[:, 2:], values[:, :-2]),
        "samples": (values[1:], values[:-1]),
        "seeds": (values, normal_values(6, torch.arange(400), 3072).double()),
        "magnitudes": (values[:, 1:].square() - 1, values[:, :-1].square() - 1),
    }
    for name, (first, second) in others.items():
        scale = (first.square().mean() * second.square().mean()).sqrt()
        correlation = ((first * second).mean() / scale).item()
        assert abs(correlation) < 4 / first.numel() ** 0.5, name
    below = (values < torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(-1, 1, 1).double()).double().mean(dim=(1, 2))
    expected = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).double()
    assert ((below - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()
