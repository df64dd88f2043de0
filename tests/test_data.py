import pytest
import torch
from conftest import needs_cifar10_sample

from maskpro.data import (
    CalibrationSamples,
    DataNotFoundError,
    cifar10_images,
    digits_images,
    folder_images,
    to_model_range,
    to_uint8,
)


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


def test_digits_split_is_disjoint_and_fixed():
    splits = digits_images()
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [1197, 300, 300]
    assert splits.train.dtype == torch.uint8
    assert splits.train.max() == 255
    assert torch.equal(splits.test, digits_images().test)


def test_uint8_round_trip():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_model_range(images)), images)
    assert to_model_range(images).min() == -1
    assert to_model_range(images).max() == 1


def test_a_folder_of_images_is_split_resized_and_cropped(image_folder):
    splits = folder_images(image_folder, resolution=16, channels=3)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [48, 6, 6]
    assert splits.train.shape[1:] == (3, 16, 16)
    assert folder_images(image_folder, resolution=16, channels=1).test.shape[1:] == (1, 16, 16)


def test_a_folder_with_train_and_test_keeps_them_apart(image_folder, tmp_path):
    root = tmp_path / "split"
    root.mkdir()
    (image_folder / "class0").rename(root / "train")
    (image_folder / "class1").rename(root / "test")
    splits = folder_images(root, resolution=16, channels=3)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [18, 2, 20]


def test_missing_images_give_one_sentence(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no folder of images at .*nowhere; name one with --data"):
        folder_images(tmp_path / "nowhere", resolution=8, channels=3)
    with pytest.raises(DataNotFoundError, match=r"0 images below .*--data"):
        folder_images(tmp_path, resolution=8, channels=3)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "broken2.png").write_bytes(b"not a picture")
    with pytest.raises(DataNotFoundError, match=r"broken.png is not a readable image"):
        folder_images(tmp_path, resolution=8, channels=3)


def test_missing_cifar10_names_the_option(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"CIFAR-10 was not found in .*--data"):
        cifar10_images(tmp_path, download=False)


@needs_cifar10_sample
def test_real_cifar10_images_load_from_a_folder_per_class(cifar10_folder):
    splits = folder_images(cifar10_folder, resolution=32, channels=3)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [3600, 400, 1000]
    # CIFAR-10's channel means (0.49, 0.48, 0.45), within JPEG's and sampling's error.
    means = splits.train.float().mean(dim=(0, 2, 3)) / 255
    assert (means - torch.tensor([0.491, 0.482, 0.447])).abs().max() < 0.02
