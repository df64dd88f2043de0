"""How far apart two sets of images are in a feature space, with torch-fidelity's arithmetic.

Frechet distance: Heusel et al. 2017. Kernel distance: Binkowski et al. 2018. Precision and recall: Kynkaanniemi
et al. 2019. The first two are FID and KID with the Inception features of the standard protocol alone; with any other
features they are not, and not called so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskpro.data import philox

# Of each set, the images whose features are kept for kernel distance, precision and recall: 82 MB of 2,048 features.
SAMPLE_SIZE = 10_000
# Which ones; far from seeds that users choose.
SAMPLE_SEED = 2**32 + 5

# Disjoint parts of the sample, whose kernel distances are independent of each other: their spread gives the error.
_BLOCKS = 10
_LARGEST_BLOCK = 1_000
# Of precision and recall, as in the paper.
NEIGHBOURS = 3
_PART = 1_000

# Fewer images than these tell little, whatever the features.
_FEW_IMAGES = 100


class FeatureStatistics:
    """Mean and covariance of features that come in parts: no more of them is held than a part."""

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

    def result(self) -> dict[str, Any]:
        """As torch-fidelity keeps them: "mu" `[F]`, and "sigma" `[F, F]` over count - 1."""
        assert self._shift is not None
        mean = self._sum / self._count
        covariance = (self._products - self._count * torch.outer(mean, mean)) / (self._count - 1)
        return {"mu": (self._shift + mean).numpy(), "sigma": covariance.numpy()}


class FeatureSample:
    """A random sample of the features of a set of `total` images that come in parts; the same images for every set."""

    def __init__(self, total: int) -> None:
        chosen = torch.from_numpy(philox(SAMPLE_SEED, 0).permutation(total)[:SAMPLE_SIZE])
        self._places = torch.full((total,), -1)
        self._places[chosen] = torch.arange(len(chosen))
        self._size, self._seen = len(chosen), 0
        self._kept: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Take in the features `[count, F]` of the images that follow."""
        if self._kept is None:
            self._kept = torch.empty(self._size, features.shape[1])
        places = self._places[self._seen : self._seen + len(features)]
        self._kept[places[places >= 0]] = features[places >= 0].float()
        self._seen += len(features)

    def result(self) -> Tensor:
        """Features `[size, F]`, float32, in random order: a part of them is a random sample too."""
        assert self._kept is not None
        assert self._seen == len(self._places)
        return self._kept


class FeatureSet:
    """What is kept of the features of a set of `total` images that come in parts: `statistics` and `sample`."""

    def __init__(self, total: int) -> None:
        self.statistics, self.sample = FeatureStatistics(), FeatureSample(total)

    def add(self, features: Tensor) -> None:
        """Take in the features `[count, F]`, float64, of the images that follow."""
        self.statistics.add(features)
        self.sample.add(features)


def frechet_distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, equation 6)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return float(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


class KernelDistance(NamedTuple):
    """A kernel distance and its standard error; None where there are too few images for it."""

    value: float | None
    error: float | None


def kernel_distance(generated: Tensor, real: Tensor) -> KernelDistance:
    """Unbiased squared MMD of two samples of features `[count, F]`, kernel (x.y / F + 1)^3 (Binkowski et al. 2018, 4.1).

    The mean over up to ten disjoint parts of at most 1,000 images, so that the parts' spread gives the standard error of
    the mean. The paper's parts overlap; their spread is no error of the mean. Both have the same expected value.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    count = min(len(generated), len(real))
    blocks = min(_BLOCKS, count // 2)
    if not blocks:
        return KernelDistance(None, None)
    size = min(_LARGEST_BLOCK, count // blocks)
    parts = [
        kernel_mmd(*(sample[start : start + size].double().numpy() for sample in (generated, real)))
        for start in range(0, blocks * size, size)
    ]
    values = torch.tensor(parts, dtype=torch.float64)
    error = values.std().item() / blocks**0.5 if blocks > 1 else None
    return KernelDistance(values.mean().item(), error)


class PrecisionRecall(NamedTuple):
    """Precision and recall; None where there are too few images for them."""

    precision: float | None
    recall: float | None


def precision_recall(generated: Tensor, real: Tensor) -> PrecisionRecall:
    """Share of the generated images within the real ones' manifold, and the reverse (Kynkaanniemi et al. 2019, equation 2).

    A manifold is the union of balls around a set's features `[count, F]` that reach to the third nearest neighbour. Both
    figures depend on how many images there are: as many of both are taken.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    count = min(len(generated), len(real))
    if count <= NEIGHBOURS:
        return PrecisionRecall(None, None)
    return PrecisionRecall(*calculate_precision_recall_part(generated[:count], real[:count], NEIGHBOURS, _PART))


def few_images_warnings(*, generated: int, real: int | None, width: int) -> list[str]:
    """What so many images (real: None where unknown) can't tell in a space of `width` features, a sentence each."""
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
