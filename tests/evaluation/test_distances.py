"""Distances between sets of features: torch-fidelity's arithmetic, the papers' formulas, and references from files."""

import math
import os
import zipfile

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics

from maskpro.errors import MaskproError
from maskpro.evaluation.distances import (
    FeatureSample,
    FeatureSet,
    FeatureStatistics,
    few_images_warnings,
    frechet_distance,
    frechet_distances,
    kernel_distance,
    precision_recall,
)
from maskpro.evaluation.features import FeatureExtractor, open_features
from maskpro.evaluation.references import Reference, read_reference, write_reference

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


def feature_set(features, size=100):
    found = FeatureSet(len(features))
    for part in features.split(size):
        found.add(part)
    return found


@pytest.mark.parametrize("total", [250, 8, 5, 3, 2])
def test_sets_are_disjoint_parts_whose_merged_statistics_are_those_of_all(generator, total):
    features = 1e3 + torch.randn(total, 3, generator=generator, dtype=torch.float64) * torch.arange(1, 4)
    found = feature_set(features, size=7)
    count = min(4, total // 2)
    ends = [total * number // count for number in range(count + 1)]
    assert len(found.sets) == count
    for statistics_of_set, first, end in zip(found.statistics(count), ends, ends[1:], strict=False):
        expected = fid_features_to_statistics(features[first:end])
        for name in expected:
            np.testing.assert_allclose(statistics_of_set[name], expected[name], rtol=1e-9, atol=1e-9)
    (whole,), expected = found.statistics(), fid_features_to_statistics(features)
    for name in expected:
        np.testing.assert_allclose(whole[name], expected[name], rtol=1e-9, atol=1e-9)


def test_the_extrapolated_distance_is_that_of_infinitely_many_images(generator):
    """Of 32 times 400 images of a distribution that is 1 away, whose own distances are too large on average."""
    real = {"mu": np.zeros(16), "sigma": np.eye(16)}
    found = []
    for _ in range(32):
        images = torch.randn(400, 16, generator=generator, dtype=torch.float64)
        images[:, 0] += 1
        found.append(frechet_distances(feature_set(images), real))
    plain, extrapolated = (
        torch.tensor([getattr(distances, name) for distances in found]) for name in ("all", "extrapolated")
    )
    assert plain.mean() - 1 > 10 * plain.std() / 32**0.5
    assert extrapolated.mean().item() == pytest.approx(1, abs=3 * extrapolated.std().item() / 32**0.5)
    assert all(len(distances.by_set) == 4 for distances in found)
    small = frechet_distances(feature_set(torch.randn(60, 16, generator=generator, dtype=torch.float64)), real)
    assert small.extrapolated is None, "its quarters have fewer images than features"
    assert frechet_distances(feature_set(torch.randn(3, 16, generator=generator, dtype=torch.float64)), real).by_set == []


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
    samples = [extractor(images).float() for images in (digits.images.test, noise, digits.images.train[:300])]
    assert kernel_distance(samples[1], samples[2]).value > 10 * kernel_distance(samples[0], samples[2]).value
    assert precision_recall(samples[0], samples[2]).precision > 0.5 > precision_recall(samples[1], samples[2]).precision


def sampled(features, chunk):
    sample = FeatureSample(len(features))
    for part in features.split(chunk):
        sample.add(part)
    return sample.result()


def test_the_sample_is_of_the_same_images_however_they_come(monkeypatch):
    features = torch.arange(50, dtype=torch.float64)[:, None]
    whole = sampled(features, 50)
    assert torch.equal(whole.sort(dim=0).values, features.float()), "of few images it takes all"
    assert not torch.equal(whole, features.float()), "in random order: its first part is a random sample too"
    assert torch.equal(sampled(features, 7), whole)
    monkeypatch.setattr("maskpro.evaluation.distances.SAMPLE_SIZE", 10)
    assert torch.equal(sampled(features, 7), whole[:10])


def test_the_kernel_distance_of_few_images_is_the_papers_formula(generator):
    first, second = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)

    def kernel(x, y):
        return (x @ y / 5 + 1) ** 3

    within = sum(kernel(part[i], part[j]) for part in (first, second) for i in range(3) for j in range(3) if i != j) / 6
    between = sum(kernel(x, y) for x in first for y in second) / 9
    value = (within - 2 * between).item()
    assert kernel_distance(first, second) == (pytest.approx(value), None, [pytest.approx(value)])
    assert kernel_distance(first[:1], second) == (None, None, [])


def test_the_kernel_distance_is_unbiased_and_its_error_is_that_of_the_mean(generator):
    """Of 300 pairs of sets from one distribution the mean is 0, and the spread is what each one's error says."""
    found = [kernel_distance(*torch.randn(2, 80, 4, generator=generator)) for _ in range(300)]
    values, errors = torch.tensor([distance[:2] for distance in found]).t()
    spread = values.std()
    assert abs(values.mean()) < 3 * spread / 300**0.5
    assert 0.85 < errors.square().mean().sqrt() / spread < 1.15
    shifted = torch.randn(80, 4, generator=generator)
    far = kernel_distance(shifted + 2, torch.randn(80, 4, generator=generator))
    assert far.value > 5 * far.error


def test_precision_and_recall_are_the_papers_definition(generator):
    generated = torch.randn(40, 3, generator=generator)
    real = torch.randn(60, 3, generator=generator) * 2
    found = precision_recall(generated, real)
    assert found == pytest.approx((_share_within(generated, real[:40]), _share_within(real[:40], generated)))
    assert 0 < found.recall < found.precision, "a narrow set lies within a wide one, which it does not cover"
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(generated + 100, real) == (0, 0)
    assert precision_recall(generated[:3], real) == (None, None)


def _share_within(points, manifold):
    inside = 0
    for point in points:
        for centre in manifold:
            radius = sorted(math.dist(centre, other) for other in manifold)[3]
            if math.dist(point, centre) <= radius:
                inside += 1
                break
    return inside / len(points)


def test_too_few_images_are_said_in_a_sentence_each():
    assert few_images_warnings(generated=50_000, real=50_000, width=2048) == []
    assert few_images_warnings(generated=65, real=None, width=64) == [
        "65 generated images are too few for any distance, precision or recall: these figures are mostly chance"
    ]
    (singular,) = few_images_warnings(generated=2048, real=50_000, width=2048)
    assert singular.startswith("2,048 generated images are too few for 2,048 features: their covariance is singular")
    assert len(few_images_warnings(generated=2, real=2, width=64)) == 4
    rank = np.linalg.matrix_rank(
        statistics(torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64))["sigma"]
    )
    assert rank == 63, "of as many images as features the covariance is singular"


WIDE = FeatureExtractor(name="x", weights_hash="", resizing="", compute=lambda images: images, batch_size=1, width=3)


def test_statistics_are_written_and_read_as_pytorch_fid_has_them(tmp_path, generator):
    found = statistics(torch.randn(50, 3, generator=generator, dtype=torch.float64))
    write_reference(tmp_path / "own.npz", Reference(statistics=found, sample=None))
    with np.load(tmp_path / "own.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"mu", "sigma"}
    read = read_reference(tmp_path / "own.npz", WIDE)
    assert frechet_distance(read.statistics, found) == pytest.approx(0, abs=1e-9)
    assert read.sample is None
    # As guided-diffusion's files: float32, more arrays; and one that is a pickle.
    single = {name: value.astype(np.float32) for name, value in found.items()}
    np.savez(tmp_path / "adm.npz", **single, mu_s=np.zeros(7), sigma_s=np.eye(7), x=np.array([Payload()], dtype=object))
    read = read_reference(tmp_path / "adm.npz", WIDE)
    assert read.statistics["mu"].dtype == np.float64
    assert frechet_distance(read.statistics, found) == pytest.approx(0, abs=1e-5)


class Payload:
    """Would run code where an unsafe loader reads it."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


GOOD = {"mu": np.zeros(3), "sigma": np.eye(3)}
BAD = {
    "lacks": ({"mu": np.zeros(3)}, r"lacks sigma \(it holds mu\); allowed: mu and sigma"),
    "other names": ({"MU": np.zeros(3), "arr_0": np.eye(3)}, r"lacks mu \(it holds MU, arr_0\); allowed: mu and sigma"),
    "empty": ({}, r"lacks mu \(it holds nothing\); allowed: mu and sigma"),
    "width": ({"mu": np.zeros(4), "sigma": np.eye(4)}, r"holds mu \[4\] and sigma \[4, 4\]; allowed with the 3 features"),
    "rank": ({**GOOD, "sigma": np.ones(3)}, r"sigma \[3\]; allowed"),
    "nan": ({**GOOD, "mu": np.full(3, np.nan)}, "values that are not finite"),
    "symmetry": ({**GOOD, "sigma": np.triu(np.ones((3, 3)))}, "a sigma that is no covariance"),
    "negative": ({**GOOD, "sigma": -np.eye(3)}, "a sigma that is no covariance"),
    "indefinite": ({**GOOD, "sigma": np.eye(3) + 5 * np.eye(3)[[1, 0, 2]]}, "a sigma that is no covariance"),
    "huge": ({**GOOD, "sigma": 1e308 * np.eye(3)}, "values above 1e\\+100"),
    "pickle": ({**GOOD, "mu": np.array([Payload()] * 3, dtype=object)}, "can't be read as a .npz file of numbers"),
    "text": ({**GOOD, "mu": np.array(["a", "b", "c"])}, "can't be read as a .npz file of numbers"),
    "numbers as text": ({**GOOD, "mu": np.array(["1", "2", "3"])}, "can't be read as a .npz file of numbers"),
    "complex": ({**GOOD, "mu": np.ones(3) * 1j}, "can't be read as a .npz file of numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_reference_statistics_that_do_not_fit_give_one_sentence(case, tmp_path):
    arrays, problem = BAD[case]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(MaskproError, match=problem) as caught:
        read_reference(tmp_path / "x.npz", WIDE)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_reference_statistics_give_one_sentence(tmp_path):
    np.savez(tmp_path / "whole.npz", **GOOD)
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    contents = {"text": b"text", "empty": b"", "half": whole[: len(whole) // 2], "one": (tmp_path / "one.npy").read_bytes()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MaskproError, match=f"reference_statistics .*{name} can't be read as a .npz file"):
            read_reference(tmp_path / name, WIDE)
    np.savez_compressed(tmp_path / "packed.npz", **GOOD)
    packed = bytearray((tmp_path / "packed.npz").read_bytes())
    for place in range(60, 140):  # bytes of the compressed mu
        packed[place] ^= 255
    (tmp_path / "packed.npz").write_bytes(packed)
    locked = bytearray(whole)
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[whole.index(header) + flags] |= 1  # the bit that says that a password is needed
    (tmp_path / "locked.npz").write_bytes(locked)
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("mu.npy", (tmp_path / "one").read_bytes())
    damaged = bytearray((tmp_path / "lzma.npz").read_bytes())
    damaged[50] ^= 255
    (tmp_path / "lzma.npz").write_bytes(damaged)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(MaskproError, match=r"pipe.npz is a pipe; allowed: a \.npz file"):
        read_reference(tmp_path / "pipe.npz", WIDE)
    for path in (tmp_path, *(tmp_path / f"{name}.npz" for name in ("none", "packed", "locked", "lzma"))):
        with pytest.raises(MaskproError, match=r"can't be read as a \.npz file"):
            read_reference(path, WIDE)
