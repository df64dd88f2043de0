"""The options that the search and the single steps share: network and images, sampling, and how images are judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from maskpro.errors import MaskproError
from maskpro.options import check_options, option

if TYPE_CHECKING:
    from maskpro.images import ImageReading

# Group of options that may be given anew to a resumed search.
SESSION = "session"


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How the images of a folder are read, and which weights of a network are taken."""

    TITLE: ClassVar[str] = "network and images"

    resize: str = option("bilinear", "Filter: bilinear, bicubic, lanczos, box, hamming or nearest.")
    crop: str = option("centre", "centre, none, celeba, a number of pixels, or left,top,right,bottom in pixels.")
    background: str = option("white", "Under transparent pixels: white, black, another colour's name or #rrggbb.")
    skip_unreadable: bool = option(False, "Skip images that can't be read.")
    ema: bool = option(False, "Take the weights in unet_ema/ beside the model's unet/.")

    @property
    def reading(self) -> ImageReading:
        """The first four options, checked."""
        from maskpro.images import ImageReading

        return ImageReading(
            resize=self.resize, crop=self.crop, background=self.background, skip_unreadable=self.skip_unreadable
        )


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How a text is cut into samples."""

    TITLE: ClassVar[str] = "language model and text"

    sequence_length: int = option(128, "Tokens in a sample (causal_lm workload).", least=2)
    text_column: str | None = option(
        None, "Column of a data set that holds the text (causal_lm).", otherwise="text, or the only one with text"
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class _NamedSource:
    """The network and its data, by name."""

    TITLE: ClassVar[str] = "network and images"

    workload: str | None = option(
        "digits", "digits (embedded), cifar10 or causal_lm (language models).", "--workload", "--dataset"
    )
    model: str | None = option(
        None,
        "Dense network: diffusers DDPM or (causal_lm) language model of transformers; folder or hub name.",
        "--model",
        "--original-model",
        otherwise="the workload's",
    )
    data: Path | None = option(
        None,
        "Folder of images (cifar10), text file, folder of text, or NAME[:CONFIGURATION[:SPLIT]] of datasets (causal_lm).",
        otherwise="the workload's",
    )


@dataclass(frozen=True, kw_only=True)
class SourceOptions(_NamedSource, ReadingOptions, TextOptions):
    """The network, the images or the text, and how they are read."""


def _parts_of_names(text: str) -> tuple[str, ...]:
    if not text.split():
        raise MaskproError(f"dense is {text!r}; allowed: parts of layer names with spaces between them")
    return tuple(text.split())


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """Which layers have no mask."""

    TITLE: ClassVar[str] = "network and images"

    dense: tuple[str, ...] | None = option(
        None,
        "Layers that stay dense: parts of their names with spaces between them.",
        parse=_parts_of_names,
        otherwise="none",
    )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How networks make images; the reader of these options checks them."""

    TITLE: ClassVar[str] = "generated images"

    sampler: str = option("ddim", "ddim (deterministic) or ddpm (ancestral).", choices=("ddim", "ddpm"), groups=(SESSION,))
    sampling_steps: int | None = option(
        None,
        "Denoising steps of an image.",
        least=1,
        otherwise="the workload's for ddim, all of the noise schedule for ddpm",
        groups=(SESSION,),
    )
    timestep_spacing: str | None = option(
        None,
        "leading, trailing, linspace or quad.",
        otherwise="leading where the steps fit, else trailing",
        groups=(SESSION,),
    )
    sampling_precision: str = option(
        "auto", "float32 or bfloat16; auto: bfloat16 on a GPU that computes in it.", groups=(SESSION,)
    )
    compile_sampling: bool | None = option(
        None, "Whether torch compiles the networks first.", otherwise="for many images on such a GPU", groups=(SESSION,)
    )


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """What judges images."""

    TITLE: ClassVar[str] = "judging images"

    features: str | None = option(
        None,
        "What judges images: inception-v3 (FID), another name, or a program's file.",
        otherwise="the workload's",
        groups=(SESSION,),
    )
    inception_weights: Path | None = option(
        None, "torch-fidelity's Inception weights (FID).", otherwise="torch's cache", groups=(SESSION,)
    )


@dataclass(frozen=True, kw_only=True)
class JudgingOptions(FeatureOptions):
    """What images are judged by, and on how many held-out samples losses and fidelity are."""

    TITLE: ClassVar[str] = "judging images"

    reference_statistics: Path | None = option(
        None, "File (.npz, mu and sigma) of real images.", otherwise="the workload's images", groups=(SESSION,)
    )
    test_samples: int | None = option(
        None,
        "Held-out samples of the final losses and of fidelity.",
        least=2,  # a standard error needs them
        otherwise="the workload's",
        groups=(SESSION,),
    )
