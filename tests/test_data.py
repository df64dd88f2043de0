import torch

from maskpro.data import to_model_range, to_uint8


def test_uint8_round_trip():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_model_range(images)), images)
    assert to_model_range(images).min() == -1
    assert to_model_range(images).max() == 1
