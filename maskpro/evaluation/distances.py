"""How far apart two sets of images are in a feature space, with torch-fidelity's arithmetic.

Frechet distance: Heusel et al. 2017. Kernel distance: Binkowski et al. 2018. Precision and recall: Kynkaanniemi
et al. 2019. The first two are FID and KID only with the Inception features of the standard protocol. With any other
features they are not called so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskpro.data import philox

# Images of each set whose features are kept for kernel distance, precision and recall: 82 MB for 2,048 features.
SAMPLE_SIZE = 10_000
# Seed of their choice, far from seeds that users choose.
SAMPLE_SEED = 2**32 + 5

# Disjoint parts of the sample. Their kernel distances are independent of each other, and their spread gives the error.
_BLOCKS = 10
_LARGEST_BLOCK = 1_000
# Disjoint sets of images. The spread of their distances shows how much is chance.
_SETS = 4
# Neighbours in precision and recall, as in the paper.
NEIGHBOURS = 3
_PART = 1_000

# Fewer images tell little, whatever the features.
_FEW_IMAGES = 100


class FeatureStatistics:
    """Mean and covariance of features that come in parts; only one part is held at a time."""

    def __init__(self) -> None:
        self._count = 0
        self._shift: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Take in features `[count, F]`, float64."""
        if self._shift is None:  # near the mean, so that nothing cancels in the covariance
            self._shift = features.mean(dim=0)
            self._sum = torch.zeros_like(self._shift)
            self._products = torch.zeros(len(self._sum), len(self._sum), dtype=features.dtype)
        shifted = features - self._shift
        self._count += len(features)
        self._sum += shifted.sum(dim=0)
        self._products += shifted.t() @ shifted

    def merge(self, other: FeatureStatistics) -> None:
        """Take in all features of another object."""
        if other._shift is None:
            return
        if self._shift is None:
            self._count, self._shift, self._sum, self._products = 0, other._shift, 0 * other._sum, 0 * other._products
        moved = other._shift - self._shift
        self._products += other._products + other._count * torch.outer(moved, moved)
        self._products += torch.outer(moved, other._sum) + torch.outer(other._sum, moved)
        self._sum += other._sum + other._count * moved
        self._count += other._count

    def result(self) -> dict[str, Any]:
        """The statistics as torch-fidelity keeps them: "mu" `[F]`, and "sigma" `[F, F]` over count - 1."""
        assert self._shift is not None
        mean = self._sum / self._count
        covariance = (self._products - self._count * torch.outer(mean, mean)) / (self._count - 1)
        return {"mu": (self._shift + mean).numpy(), "sigma": covariance.numpy()}


class FeatureSample:
    """A random sample of the features of `total` images that come in parts; the same images for every set of that size."""

    def __init__(self, total: int) -> None:
        chosen = torch.from_numpy(philox(SAMPLE_SEED, 0).permutation(total)[:SAMPLE_SIZE])
        self._places = torch.full((total,), -1)
        self._places[chosen] = torch.arange(len(chosen))
        self._size, self._seen = len(chosen), 0
        self._kept: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Take in the features `[count, F]` of the next images."""
        if self._kept is None:
            self._kept = torch.empty(self._size, features.shape[1])
        places = self._places[self._seen : self._seen + len(features)]
        self._kept[places[places >= 0]] = features[places >= 0].float()
        self._seen += len(features)

    def result(self) -> Tensor:
        """Features `[size, F]`, float32, in random order, so that any part of them is a random sample too."""
        assert self._kept is not None
        assert self._seen == len(self._places)
        return self._kept


class FeatureSet:
    """What is kept of the features of `total` images that come in parts.

    Attributes:
        sets: statistics of up to four disjoint sets of at least two images; all but one are equally large.
        sample: sample for kernel distance, precision and recall.
        size: number of images.
    """

    def __init__(self, total: int) -> None:
        self.sets = [FeatureStatistics() for _ in range(max(1, min(_SETS, total // 2)))]
        self.sample = FeatureSample(total)
        self.size, self._seen = total, 0

    def add(self, features: Tensor) -> None:
        """Take in the features `[count, F]`, float64, of the next images."""
        self.sample.add(features)
        ends = [self.size * (number + 1) // len(self.sets) - self._seen for number in range(len(self.sets))]
        bounds = [min(max(end, 0), len(features)) for end in ends]
        for statistics, first, end in zip(self.sets, [0, *bounds], bounds, strict=False):
            if end > first:
                statistics.add(features[first:end])
        self._seen += len(features)

    def statistics(self, parts: int = 1) -> list[dict[str, Any]]:
        """ "mu" and "sigma" of `parts` larger sets (a divisor of the number of sets); by default of all images."""
        size = len(self.sets) // parts
        found = []
        for first in range(0, len(self.sets), size):
            merged = FeatureStatistics()
            for statistics in self.sets[first : first + size]:
                merged.merge(statistics)
            found.append(merged.result())
        return found


class FrechetDistances(NamedTuple):
    """Frechet distances of one set of images to the same reference.

    Attributes:
        all: distance of all images.
        by_set: distance of each disjoint set; networks can be paired by set, as their sets come from the same noise.
        extrapolated: distance of infinitely many images; None where the sets are too small or too few.
    """

    all: float | None
    by_set: list[float]
    extrapolated: float | None


def frechet_distances(features: FeatureSet, reference: dict[str, Any]) -> FrechetDistances:
    """Frechet distance of all images, of their disjoint sets, and extrapolated to infinitely many images.

    The distance of N images is too large by an amount proportional to 1 / N (Chong and Forsyth 2020, equation 6). So a
    straight line in 1 / N is fitted to the means over sets of each size, and its value at 1 / N = 0 is taken.
    """
    whole = frechet_distance(features.statistics()[0], reference)
    count = len(features.sets)
    if count == 1:
        return FrechetDistances(whole, [], None)
    by_set = [frechet_distance(part, reference) for part in features.statistics(count)]
    if count < _SETS or features.size // count <= len(reference["mu"]):
        return FrechetDistances(whole, by_set, None)
    halves = [frechet_distance(part, reference) for part in features.statistics(2)]
    shares = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    means = torch.tensor([sum(by_set) / 4, sum(halves) / 2, whole], dtype=torch.float64)
    slope = ((shares - shares.mean()) * (means - means.mean())).sum() / (shares - shares.mean()).square().sum()
    return FrechetDistances(whole, by_set, (means.mean() - slope * shares.mean()).item())


def frechet_distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, equation 6)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return float(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


class KernelDistance(NamedTuple):
    """A kernel distance, its standard error, and the distances of its parts; None where there are too few images."""

    value: float | None
    error: float | None
    by_part: list[float]


def kernel_distance(generated: Tensor, real: Tensor) -> KernelDistance:
    """Unbiased squared MMD of two samples of features `[count, F]`, kernel (x.y / F + 1)^3 (Binkowski et al. 2018, 4.1).

    It is the mean over up to ten disjoint parts of at most 1,000 images. Their spread gives the standard error of the mean.
    The paper's parts overlap, so their spread would not. Both have the same expected value.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    count = min(len(generated), len(real))
    blocks = min(_BLOCKS, count // 2)
    if not blocks:
        return KernelDistance(None, None, [])
    size = min(_LARGEST_BLOCK, count // blocks)
    parts = [
        kernel_mmd(*(sample[start : start + size].double().numpy() for sample in (generated, real)))
        for start in range(0, blocks * size, size)
    ]
    values = torch.tensor(parts, dtype=torch.float64)
    error = values.std().item() / blocks**0.5 if blocks > 1 else None
    return KernelDistance(values.mean().item(), error, [float(part) for part in parts])


class PrecisionRecall(NamedTuple):
    """Precision and recall; None where there are too few images for them."""

    precision: float | None
    recall: float | None


def precision_recall(generated: Tensor, real: Tensor) -> PrecisionRecall:
    """Share of the generated images within the real ones' manifold, and the reverse (Kynkaanniemi et al. 2019, equation 2).

    A manifold is the union of balls around a set's features `[count, F]`; each reaches to the third nearest neighbour. Both
    figures depend on the number of images, so equally many of both sets are taken.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    count = min(len(generated), len(real))
    if count <= NEIGHBOURS:
        return PrecisionRecall(None, None)
    return PrecisionRecall(*calculate_precision_recall_part(generated[:count], real[:count], NEIGHBOURS, _PART))


def few_images_warnings(*, generated: int, real: int | None, width: int) -> list[str]:
    """Warnings about too few images (real: None where unknown) for `width` features, a sentence each."""
    found = []
    for what, count in (("generated", generated), ("real", real)):
        if count is None:
            continue
        if count <= width:
            found.append(
                f"{count:,} {what} images are too few for {width:,} features: their covariance is singular, which makes "
                "the Frechet distance too large, by an amount that differs between networks; it takes more than "
                f"{width:,} images, better ten times as many"
            )
        if count < _FEW_IMAGES:
            found.append(
                f"{count} {what} images are too few for any distance, precision or recall: these figures are mostly chance"
            )
    return found
