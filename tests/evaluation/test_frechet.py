import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics

from maskpro.errors import MaskproError
from maskpro.evaluation.comparison import evaluate_models
from maskpro.evaluation.frechet import FeatureStatistics, frechet_distance, open_features
from maskpro.workloads import open_workload

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
    extractor = open_features("digits-classifier", device=CPU)
    reference = statistics(extractor(digits.images.train))
    real = frechet_distance(statistics(extractor(digits.images.test)), reference)
    noise = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8, generator=generator)
    assert frechet_distance(statistics(extractor(noise)), reference) > 10 * real
    assert len(extractor.weights_hash) == 64


def test_inception_weights_that_cannot_be_had_give_one_sentence(tmp_path):
    with pytest.raises(MaskproError, match=r"no file .*; allowed for --inception-weights"):
        open_features("inception-v3", device=CPU, inception_weights=tmp_path / "none.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(MaskproError, match=r"does not hold torch-fidelity's Inception weights"):
        open_features("inception-v3", device=CPU, inception_weights=tmp_path / "other.pth")


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Random weights in torch-fidelity's format, with the network that has them."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng():
        torch.manual_seed(0)
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return path, network


def test_the_inception_path_runs_with_weights_in_torch_fidelitys_format(inception, generator):
    """Random weights: the path from images to a number is tested, no FID is claimed."""
    path, network = inception
    extractor = open_features("inception-v3", device=CPU, inception_weights=path)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
    features = extractor(images)
    assert features.shape == (4, 2048)
    assert torch.equal(features, network(images)[0].double())
    assert extractor(images[:, :1]).shape == (4, 2048), "grey images are shown to it as RGB"
    assert frechet_distance(statistics(features), statistics(features)) == pytest.approx(0, abs=1e-2)


def test_the_cifar10_workload_is_judged_by_inception_features(tmp_path, inception, model_folder, image_folder):
    path = inception[0]
    workload = open_workload("cifar10", model=str(model_folder), data=image_folder)
    images = workload.images
    images = replace(images, train=images.train[:4], validation=images.validation[:2], test=images.test[:2])
    budgets = replace(workload.budgets, validation_samples=2, test_samples=2, num_generated=3, sampling_steps=2)
    workload = replace(workload, images=images, budgets=budgets)
    models, settings = {"dense": workload.model}, {"device": CPU, "inception_weights": path}
    report = evaluate_models(workload, models, folder=tmp_path / "out", cache=tmp_path / "cache", **settings)
    found, record = report["models"]["dense"]["frechet_distance"], report["protocol"]
    assert math.isfinite(found)
    assert found > 0
    assert record["frechet_features_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["frechet_features"] == "Inception-v3 (torch-fidelity), 2048 features"
    assert record["num_frechet_reference"] == 6
    assert "299x299" in record["frechet_resizing"]


def test_truncated_inception_weights_give_one_sentence(tmp_path, inception):
    weights = inception[0].read_bytes()
    (tmp_path / "half.pth").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(MaskproError, match=r"half.pth does not hold torch-fidelity's Inception weights"):
        open_features("inception-v3", device=CPU, inception_weights=tmp_path / "half.pth")


class Payload:
    """Would run code where an unsafe loader reads it."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_a_pickle_in_place_of_inception_weights_is_not_run(tmp_path):
    torch.save(Payload(), tmp_path / "evil.pth")
    with pytest.raises(MaskproError, match="does not hold torch-fidelity's Inception weights"):
        open_features("inception-v3", device=CPU, inception_weights=tmp_path / "evil.pth")
