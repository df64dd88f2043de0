import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics

from maskpro.evaluation.distances import FeatureStatistics, frechet_distance
from maskpro.evaluation.features import open_features

CPU = torch.device("cpu")


def statistics(features):
    parts = FeatureStatistics()
    for part in features.split(100):
        parts.add(part)
    return parts.result()


def test_statistics_of_parts_are_torch_fidelitys_of_the_whole(generator):
    features = 1e3 + torch.randn(250, 8, generator=generator, dtype=torch.float64) * torch.arange(1, 9)
    found, expected = statistics(features), fid_features_to_statistics(features)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-11, atol=1e-11)


def test_frechet_distance_of_gaussians(generator):
    features = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    same = statistics(features)
    assert abs(frechet_distance(same, same)) < 1e-8
    shifted = statistics(features + 3.0)
    assert frechet_distance(same, shifted) == pytest.approx(8 * 9.0, rel=1e-6)
    diagonal = {"mu": np.zeros(2), "sigma": np.diag([4.0, 9.0])}
    unit = {"mu": np.zeros(2), "sigma": np.eye(2)}
    assert frechet_distance(diagonal, unit) == pytest.approx((2 - 1) ** 2 + (3 - 1) ** 2)


def test_the_digits_features_tell_digits_from_noise(digits, generator):
    extractor = open_features("digits-classifier", device=CPU, shape=(1, 8, 8))
    reference = statistics(extractor(digits.images.train))
    real = frechet_distance(statistics(extractor(digits.images.test)), reference)
    noise = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8, generator=generator)
    assert frechet_distance(statistics(extractor(noise)), reference) > 10 * real
    assert len(extractor.weights_hash) == 64
