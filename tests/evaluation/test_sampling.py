import numpy as np
import torch
from PIL import Image

from maskpro.evaluation.sampling import generate, save_grid, write_images


def images_of(digits, count, batch_size, seed=0):
    return generate(digits.model, digits.scheduler, shape=(1, 8, 8), count=count, steps=5, seed=seed, batch_size=batch_size)


def test_the_image_of_an_index_does_not_depend_on_batch_or_count(digits):
    together, apart, fewer = images_of(digits, 9, 9), images_of(digits, 9, 4), images_of(digits, 3, 9)
    # Kernels may round differently with the batch's shape: at most one grey level.
    assert (together.int() - apart.int()).abs().max() <= 1
    assert (together[:3].int() - fewer.int()).abs().max() <= 1
    assert torch.equal(together, images_of(digits, 9, 9))
    assert not torch.equal(together, images_of(digits, 9, 9, seed=1))
    assert together.dtype == torch.uint8
    assert together.shape == (9, 1, 8, 8)


def test_grids_and_images_are_pictures(digits, tmp_path):
    images = digits.images.test[:6]
    save_grid(images, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 34 + 2, 3 * 34 + 2)
    write_images(images, tmp_path / "images")
    assert len(list((tmp_path / "images").iterdir())) == 6
    with Image.open(tmp_path / "images" / "00000.png") as image:
        assert np.asarray(image).tolist() == images[0, 0].tolist()
