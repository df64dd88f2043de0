"""What generated images are compared with: the features of real images, made here or read from a file."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskpro.errors import MaskproError
from maskpro.evaluation.distances import SAMPLE_SEED, SAMPLE_SIZE, FeatureSet
from maskpro.evaluation.features import FeatureExtractor
from maskpro.files import atomic_path
from maskpro.weight_keys import some_names

if TYPE_CHECKING:
    from maskpro.workloads.diffusion import DiffusionWorkload

# Real images whose features are taken at a time.
_CHUNK = 256
# How far a covariance may be from symmetric, of its largest value: rounding of float32 alone.
_SYMMETRY = 1e-4
# Largest value of statistics: its square, and sums of such squares, are still numbers.
_LARGEST = 1e100


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Features of real images.

    Attributes:
        statistics: "mu" `[F]` and "sigma" `[F, F]`, float64.
        sample: features `[count, F]` of some of the images, float32; None where a file holds statistics alone.
    """

    statistics: dict[str, Any]
    sample: Tensor | None


def real_features(workload: DiffusionWorkload, extractor: FeatureExtractor, cache: Path | None) -> Reference:
    """Features of the real images: of the whole training set, as FID's protocol has it.

    In `cache` they are kept under the hash of the images, the extractor and the versions that they were made with.
    """
    parts = {"train": workload.images.train, "validation": workload.images.validation}  # split off the training set
    made_from = {
        "images_sha256": {split: images_hash(images) for split, images in parts.items()},
        "features_sha256": extractor.weights_hash,
        "resizing": extractor.resizing,
        "sample": [SAMPLE_SIZE, SAMPLE_SEED],
        "versions": {package: version(package) for package in ("torch", "torch-fidelity")},
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    path = None if cache is None else cache / f"{key[:32]}.safetensors"
    if path is not None and path.is_file():
        try:
            kept = load_file(path)
            return Reference(statistics={name: kept[name].numpy() for name in ("mu", "sigma")}, sample=kept["sample"])
        except (SafetensorError, KeyError):
            pass  # broken: made again
    features = FeatureSet(sum(map(len, parts.values())))
    for images in parts.values():
        for chunk in images.split(_CHUNK):
            features.add(extractor(chunk))
    reference = Reference(statistics=features.statistics()[0], sample=features.sample.result())
    if path is not None and reference.sample is not None:
        statistics = {name: torch.from_numpy(value) for name, value in reference.statistics.items()}
        with atomic_path(path) as temporary:
            save_file({**statistics, "sample": reference.sample}, temporary)
    return reference


def images_hash(images: Tensor) -> str:
    """sha256 of the values of images."""
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()


# What numpy makes of a file that is no archive, or a broken one.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    MemoryError,
    RuntimeError,  # of an archive with a password, too
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def read_reference(path: Path, extractor: FeatureExtractor) -> Reference:
    """The statistics in a .npz file: `mu` and `sigma`, as pytorch-fid, torch-fidelity and guided-diffusion (ADM) name them.

    Other arrays of the file are passed over, pickled ones unread.

    Raises:
        MaskproError: no such file, or statistics of another number of features, or not finite, or no covariance.
    """
    if path.is_fifo():  # one would wait for ever for what nobody writes
        raise MaskproError(f"reference_statistics {path} is a pipe; allowed: a .npz file with mu and sigma")
    try:
        # The content is handed over, not the path: where a file is broken numpy leaves it open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            names = list(archive.files)
            found = {name: _real(archive[name]) for name in ("mu", "sigma")}
    except KeyError as error:
        raise MaskproError(
            f"reference_statistics {path} lacks {error.args[0].split()[0]} (it holds {some_names(names) or 'nothing'}); "
            "allowed: mu and sigma"
        ) from error
    except _UNREADABLE as error:
        raise MaskproError(
            f"reference_statistics {path} can't be read as a .npz file of numbers ({type(error).__name__}); allowed: one "
            "with mu and sigma, as pytorch-fid, guided-diffusion or maskpro reference-statistics write it"
        ) from error
    mean, covariance = found["mu"], found["sigma"]
    width = extractor.width
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise MaskproError(
            f"reference_statistics {path} holds mu {list(mean.shape)} and sigma {list(covariance.shape)}; allowed with the "
            f"{width} features of {extractor.name}: [{width}] and [{width}, {width}]"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise MaskproError(f"reference_statistics {path} holds values that are not finite; allowed: finite mu and sigma")
    largest = np.abs(covariance).max()
    if max(largest, np.abs(mean).max()) > _LARGEST:
        raise MaskproError(
            f"reference_statistics {path} holds values above {_LARGEST:g}, with which no distance can be computed; "
            "allowed: those of features"
        )
    deviations = np.sqrt(np.maximum(0.0, np.diag(covariance)))
    if (
        (np.diag(covariance) < 0).any()
        or np.abs(covariance - covariance.T).max() > _SYMMETRY * largest
        # No two features vary together more than each by itself (Cauchy and Schwarz).
        or (np.abs(covariance) - np.outer(deviations, deviations)).max() > _SYMMETRY * largest
    ):
        raise MaskproError(f"reference_statistics {path} holds a sigma that is no covariance; allowed: a symmetric one")
    return Reference(statistics=found, sample=None)


def _real(array: np.ndarray) -> np.ndarray:
    """An array of real numbers in float64; complex ones would lose a part, and texts are no numbers."""
    if array.dtype.kind not in "fiu":
        raise TypeError(f"values of {array.dtype}")
    return array.astype(np.float64)


def write_reference(path: Path, reference: Reference) -> None:
    """Write the statistics as a .npz file, which pytorch-fid and `read_reference` take; whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **reference.statistics)
