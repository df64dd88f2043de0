"""Feature extractors for comparing sets of images: a named network, or a program from a file.

The contract of a program: `forward(images)` takes uint8 `[B, C, H, W]` in 0 to 255, for any B, and returns floating-point
features `[B, F]`. It scales and resizes the images itself. An image's features don't depend on the others in its batch.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.embedded import DIGITS_CLASSIFIER
from maskpro.embedded.classifier import load_classifier
from maskpro.errors import MaskproError
from maskpro.evaluation.exported import is_exported_program, load_exported_program
from maskpro.files import file_hash
from maskpro.masked_model import model_hash

DIGITS_FEATURES = "digits-classifier"
INCEPTION_FEATURES = "inception-v3"
# torch-fidelity's name for the same network.
_INCEPTION_ALIAS = "inception-v3-compat"

# Largest change of an image's features between batches, as a share of the largest feature: room for rounding alone.
_BATCH_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """Maps uint8 images `[B, C, H, W]` to features `[B, F]`.

    Attributes:
        weights_hash: sha256 of the weights or of the file.
        resizing: how images are resized, in words, for the records.
        width: F, where it is known.
    """

    name: str
    weights_hash: str
    resizing: str
    compute: Callable[[Tensor], Tensor] = field(repr=False)
    batch_size: int
    width: int | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features `[count, F]`, float64 on the CPU.

        Raises:
            MaskproError: the result is no finite `[count, F]`.
        """
        return torch.cat([self._part(part) for part in images.split(self.batch_size)])

    def _part(self, images: Tensor) -> Tensor:
        features: Any = self.compute(images)
        if not isinstance(features, Tensor):
            raise MaskproError(f"features {self.name} returns a {type(features).__name__}; allowed: one tensor [B, F]")
        count = self.width or "F"
        if features.ndim != 2 or len(features) != len(images) or self.width not in (None, features.shape[1]):
            raise MaskproError(
                f"features {self.name} returns {list(features.shape)} for {len(images)} images; allowed: "
                f"[{len(images)}, {count}], as many features for every image"
            )
        if not features.is_floating_point() or not features.shape[1]:
            raise MaskproError(
                f"features {self.name} returns {features.dtype} {list(features.shape)}; allowed: floating-point features"
            )
        if not features.isfinite().all():
            raise MaskproError(f"features {self.name} returns values that are not finite; allowed: finite features")
        return features.double().cpu()


def feature_names() -> list[str]:
    """The names that `open_features` knows: its own, and those that torch-fidelity has registered."""
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    return [DIGITS_FEATURES, INCEPTION_FEATURES, *FEATURE_EXTRACTORS_REGISTRY]


def open_features(
    features: str, *, device: torch.device, shape: tuple[int, ...], inception_weights: Path | None = None
) -> FeatureExtractor:
    """The extractor of that name, or from a TorchScript or torch.export file, tried on images of that shape.

    Args:
        shape: (C, H, W) of an image.

    Raises:
        MaskproError: it is neither a name nor such a file, its weights can't be loaded, or it breaks the contract.
    """
    if features == DIGITS_FEATURES:
        return _digits_classifier(device, shape)
    if features in (INCEPTION_FEATURES, _INCEPTION_ALIAS):
        if shape[0] not in (1, 3):
            raise MaskproError(f"features is {features} with images of {shape[0]} channels; allowed: 1 (shown as RGB) or 3")
        return replace(_inception(device, inception_weights), width=2048)
    if features in feature_names():
        return _tried(_registered(features, device), shape)
    return _of_file(Path(features), device, shape)


def _digits_classifier(device: torch.device, shape: tuple[int, ...]) -> FeatureExtractor:
    if shape != (1, 8, 8):
        raise MaskproError(f"features is {DIGITS_FEATURES} with images of {shape}; allowed: images of (1, 8, 8)")
    classifier = load_classifier(DIGITS_CLASSIFIER).to(device)
    return FeatureExtractor(
        name="digits classifier, penultimate layer",
        weights_hash=file_hash(DIGITS_CLASSIFIER),
        resizing="none",
        compute=lambda images: classifier.features(images.to(device)),
        batch_size=512,
        width=64,
    )


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
                    f"name torch-fidelity's {weights.name} with --inception-weights, other features with --features, or "
                    "do without (--no-frechet)"
                ) from error
    if not weights.is_file():
        raise MaskproError(f"no file {weights}; allowed for --inception-weights: torch-fidelity's Inception weights")
    try:
        # torch-fidelity reads the file with a full unpickler, so only a file that the safe one accepts is let through.
        torch.load(weights, map_location="meta", weights_only=True)
        network: nn.Module = FeatureExtractorInceptionV3(
            _INCEPTION_ALIAS, ["2048"], feature_extractor_weights_path=str(weights)
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


def _registered(name: str, device: torch.device) -> FeatureExtractor:
    """An extractor from torch-fidelity's registry, with the layer that torch-fidelity takes for the Frechet distance."""
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    extractor_class = FEATURE_EXTRACTORS_REGISTRY[name]
    layer = extractor_class.get_default_feature_layer_for_metric("fid")
    try:
        network: nn.Module = extractor_class(name, [layer]).to(device).eval()
    except Exception as error:  # downloads and unpickling have no common error class
        reason = " ".join(str(error).split())[:200]
        raise MaskproError(
            f"features {name}: its weights are not in {torch.hub.get_dir()} and could not be had "
            f"({type(error).__name__}: {reason}); put them there, name other features with --features, or do without "
            "(--no-frechet)"
        ) from error
    return FeatureExtractor(
        name=f"{name} (torch-fidelity), {layer}",
        weights_hash=model_hash(network),
        resizing="inside the network",
        compute=lambda images: network(_as_rgb(images).to(device))[0],
        batch_size=64,
    )


def _of_file(path: Path, device: torch.device, shape: tuple[int, ...]) -> FeatureExtractor:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise MaskproError(
            f"features is {str(path)!r} ({reason}); allowed: {', '.join(feature_names())}, or a TorchScript or "
            "torch.export file"
        ) from error
    kind, program = _load_program(path, content, device)
    extractor = FeatureExtractor(
        name=f"{path.name} ({kind})",
        weights_hash=file_hash(path),
        resizing="by the program itself",
        compute=lambda images: program(images.to(device)),
        batch_size=128,
    )
    try:
        return _tried(extractor, shape)
    except MaskproError as error:
        if shape[0] != 1:
            raise
        # A program for colour images gets grey ones as RGB, as the named networks do.
        colour = replace(
            extractor,
            resizing="grey images as RGB; by the program itself",
            compute=lambda images: program(_as_rgb(images).to(device)),
        )
        try:
            return _tried(colour, shape)
        except MaskproError:
            raise error from None


def _load_program(path: Path, content: bytes, device: torch.device) -> tuple[str, Callable[[Tensor], Any]]:
    """The kind of the program, recognised by the file's content, and the program itself.

    Neither way of loading runs Python code or a pickle from the file.
    """
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError):
        names = []
    if is_exported_program(names):
        return "torch.export", load_exported_program(path, content, device)
    if not any("/code/" in name for name in names):
        raise MaskproError(
            f"features {path} is neither a TorchScript nor a torch.export file; allowed: one written by torch.jit.save or "
            "torch.export.save"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)  # deprecated, and still read
            warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
            program = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise MaskproError(f"features {path} can't be loaded as TorchScript ({_short(error)})") from error
    return "TorchScript", program


def _tried(extractor: FeatureExtractor, shape: tuple[int, ...]) -> FeatureExtractor:
    """The extractor with its width, once it has kept the contract on batches of two and three random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, *shape), dtype=torch.uint8, generator=generator)
    try:
        two = extractor(images[:2])
        three = replace(extractor, width=two.shape[1])(images)
    except MaskproError:
        raise
    except Exception as error:  # whatever a program may raise
        raise MaskproError(
            f"features {extractor.name} fails on uint8 images [B, {', '.join(map(str, shape))}] ({_short(error)}); "
            "allowed: a program that takes them for any B"
        ) from error
    if (three[:2] - two).abs().max() > _BATCH_TOLERANCE * two.abs().max():
        raise MaskproError(
            f"features {extractor.name} gives an image other features in another batch; allowed: a program in evaluation "
            "mode (batch normalisation and dropout off), written after eval()"
        )
    return replace(extractor, width=two.shape[1])


def _as_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _short(error: Exception) -> str:
    """The last line of a message, where TorchScript says what went wrong below its trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1]}"[:240]
