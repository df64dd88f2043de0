from pathlib import Path

import pytest
import torch
from shared_fixtures import needs_cifar10_sample

from maskpro.images import DataNotFoundError, cifar10_images, digits_images, folder_images
from maskpro.workloads import open_workload


def test_digits_split_is_disjoint_and_fixed():
    splits = digits_images()
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [1197, 300, 300]
    assert splits.train.dtype == torch.uint8
    assert splits.train.max() == 255
    assert torch.equal(splits.test, digits_images().test)


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


def test_missing_cifar10_names_the_option(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"CIFAR-10 was not found in .*--data"):
        cifar10_images(tmp_path, download=False)


@pytest.mark.slow
@needs_cifar10_sample
def test_real_cifar10_images_load_from_a_folder_per_class(cifar10_folder):
    splits = folder_images(cifar10_folder, resolution=32, channels=3)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [3600, 400, 1000]
    # CIFAR-10's channel means (0.49, 0.48, 0.45), within JPEG's and sampling's error.
    means = splits.train.float().mean(dim=(0, 2, 3)) / 255
    assert (means - torch.tensor([0.491, 0.482, 0.447])).abs().max() < 0.02


def broken_cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "test_batch", "batches.meta"):
        (folder / name).write_bytes(b"not what was published")
    return folder


def test_a_broken_cifar10_names_its_files_and_is_never_unpickled(tmp_path, monkeypatch):
    broken_cifar10(tmp_path)
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(
        DataNotFoundError,
        match=r"CIFAR-10 in .*cifar-10-batches-py is not whole: data_batch_1 is broken or was changed \(its MD5 is not the "
        r"published one\), .*data_batch_5 is missing, test_batch is broken",
    ):
        cifar10_images(tmp_path, download=False)


@pytest.mark.parametrize("given", ["data", "data/cifar-10-batches-py", ".", "link"])
def test_cifar10_is_known_by_its_folder_however_it_is_named(tmp_path, monkeypatch, given, model_folder):
    (tmp_path / "data").mkdir()
    folder = broken_cifar10(tmp_path / "data")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder if given == "." else tmp_path)
    with pytest.raises(DataNotFoundError, match=r"CIFAR-10 in .*cifar-10-batches-py is not whole"):
        open_workload("cifar10", model=str(model_folder), data=Path(given))


def test_counts_of_the_data_sets_that_are_read_as_they_are():
    assert digits_images().counts.line() == (
        "1,797 images read (1,197 train, 300 validation, 300 test); passed over: nothing; converted: nothing"
    )
