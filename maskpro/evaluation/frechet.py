"""Frechet distance between sets of images in a feature space, with torch-fidelity's arithmetic.

With the Inception features of the standard protocol it is FID; with any other features it is not, and not called so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.embedded import DIGITS_CLASSIFIER
from maskpro.embedded.classifier import load_classifier
from maskpro.errors import MaskproError


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """Maps uint8 images `[B, C, H, W]` to features `[B, F]`.

    Attributes:
        weights_hash: sha256 of its weights' file.
        resizing: how it resizes images, in words, for the records.
    """

    name: str
    weights_hash: str
    resizing: str
    compute: Callable[[Tensor], Tensor]
    batch_size: int

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features `[count, F]`, float64 on the CPU."""
        return torch.cat([self.compute(part).double().cpu() for part in images.split(self.batch_size)])


def open_features(name: str, *, device: torch.device, inception_weights: Path | None = None) -> FeatureExtractor:
    """The extractor "digits-classifier" or "inception-v3".

    Raises:
        MaskproError: the Inception weights can't be had.
    """
    if name == "digits-classifier":
        classifier = load_classifier(DIGITS_CLASSIFIER).to(device)
        return FeatureExtractor(
            name="digits classifier, penultimate layer",
            weights_hash=file_hash(DIGITS_CLASSIFIER),
            resizing="none",
            compute=lambda images: classifier.features(images.to(device)),
            batch_size=512,
        )
    return _inception(device, inception_weights)


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


def frechet_distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, equation 6)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return float(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


def _inception(device: torch.device, weights: Path | None) -> FeatureExtractor:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    if weights is None:
        weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
        if not weights.is_file():
            weights.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(weights), progress=False)
            except OSError as error:
                raise MaskproError(
                    f"Inception weights are not in {weights} and could not be downloaded ({type(error).__name__}); "
                    f"name torch-fidelity's {weights.name} with --inception-weights, or do without it (--no-frechet)"
                ) from error
    if not weights.is_file():
        raise MaskproError(f"no file {weights}; allowed for --inception-weights: torch-fidelity's Inception weights")
    try:
        # torch-fidelity itself reads the file with a full unpickler: let through only what the safe one accepts.
        torch.load(weights, map_location="meta", weights_only=True)
        network: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        ).to(device)
    except Exception as error:  # unpickling has no common error class
        raise MaskproError(
            f"{weights} does not hold torch-fidelity's Inception weights ({type(error).__name__})"
        ) from error
    return FeatureExtractor(
        name="Inception-v3 (torch-fidelity), 2048 features",
        weights_hash=file_hash(weights),
        resizing="bilinear as in TensorFlow 1, to 299x299, inside the network",
        compute=lambda images: network(_as_rgb(images).to(device))[0],
        batch_size=64,
    )


def _as_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
