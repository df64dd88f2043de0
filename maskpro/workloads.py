"""Workloads: a model, its images, the features that judge its samples, and budgets, bundled under a name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from maskpro.dense_layers import DenseLayers, dense_layers
from maskpro.embedded import DIGITS_MODEL
from maskpro.errors import MaskproError
from maskpro.images import (
    CIFAR10_FOLDER,
    IN_MEMORY_BYTES,
    ImageReading,
    ImageSplits,
    Split,
    cifar10_images,
    digits_images,
    folder_images,
)
from maskpro.names import Precision
from maskpro.objectives import HeldOutSamples
from maskpro.objectives.diffusion import DiffusionObjective, timestep_shares
from maskpro.pattern import Layout, NMPattern
from maskpro.pretrained import CIFAR10_HUB_MODEL, load_pretrained, resolution

# Seeds of the fixed held-out sets, far from those that users choose for calibration samples and masks.
VALIDATION_SEED = 2**32 + 1
TEST_SEED = 2**32 + 2
SELECTION_SEED = 2**32 + 4
HeldOut = Literal["validation", "selection", "test"]
_HELD_OUT_SEEDS: dict[HeldOut, int] = {"validation": VALIDATION_SEED, "selection": SELECTION_SEED, "test": TEST_SEED}

# Taken before the hub's checkpoint where it is there: the place for the EMA weights (FID about 4, the hub's about 12).
CIFAR10_EMA_FOLDER = Path("pretrained/ddpm_ema_cifar10")
# Where torchvision keeps CIFAR-10 when --data names nothing.
CIFAR10_ROOT = Path("data")


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Sizes of a workload's jobs; samples are calibration samples.

    Attributes:
        max_samples: of a trial that runs to the end.
        report_samples: between two reports of a trial.
        validation_samples: held-out samples that drive the search.
        selection_samples: held-out samples that decide between the best trials of a search.
        test_samples: held-out samples of the final evaluation.
        num_generated: images per model for the Frechet distance.
        sampling_steps: DDIM steps per generated image (DDPM takes all of the noise schedule's).
    """

    max_samples: int
    report_samples: int
    validation_samples: int
    selection_samples: int
    test_samples: int
    num_generated: int
    sampling_steps: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise MaskproError(f"{name} is {value}; allowed: a whole number of at least 1")
        for name, needs in (("test_samples", "a standard error"), ("num_generated", "a covariance")):
            if getattr(self, name) < 2:
                raise MaskproError(f"{name} is {getattr(self, name)}; allowed: at least 2 ({needs} needs them)")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A dense diffusion network with its data.

    Attributes:
        features: what judges generated images: a name or a file, for `maskpro.evaluation.features.open_features`.
        model_source, data_source: where they came from, for the records.
        ema: whether the weights are an average over the training (EMA), in words, for the records: FID depends on it.
        notes: what was converted, left out or guessed of the model when it was loaded, a sentence each.
    """

    name: str
    model: UNet2DModel
    scheduler: DDPMScheduler
    images: ImageSplits
    features: str
    budgets: Budgets
    model_source: str
    data_source: str
    ema: str
    notes: tuple[str, ...] = ()

    def training_objective(
        self, *, seed: int, device: torch.device, shares: Sequence[float] | None = None
    ) -> DiffusionObjective:
        """The calibration samples of a seed, drawn from the training images, with their loss; `shares` of the timesteps."""
        return DiffusionObjective(self.scheduler, self.images.train, seed=seed, device=device, shares=shares)

    def timestep_shares(
        self, initial: nn.Module, device: torch.device, precision: Precision = "float32"
    ) -> tuple[float, ...]:
        """How often each part of the noise schedule is to be sampled in training that begins with the network `initial`."""
        images = self.images.train
        return timestep_shares(self.model, initial, self.scheduler, images, device=device, precision=precision)

    def dense_layers(self, masked: Collection[str], *, pattern: NMPattern, layout: Layout) -> DenseLayers:
        """The maskable layers of the network that are not among the `masked` ones."""
        shape = self.images.train.shape[1:]
        return dense_layers(self.model, masked, pattern=pattern, layout=layout, shape=shape)

    def held_out_samples(self, split: HeldOut, device: torch.device, precision: Precision = "float32") -> HeldOutSamples:
        """A fixed held-out set: validation drives a search, test is for the final evaluation only.

        Selection, with the validation images and other noise, is larger: a search that takes the best of many validation
        losses also takes the luckiest, which a loss that had no part in it can tell.
        """
        images: Split = "test" if split == "test" else "validation"
        size: int = getattr(self.budgets, f"{split}_samples")
        objective = DiffusionObjective(
            self.scheduler, self.images[images], seed=_HELD_OUT_SEEDS[split], device=device, strata=size
        )
        return HeldOutSamples(objective, size, self.model.to(device), precision)


# Reads a folder of images, given resolution and channels.
FolderReader = Callable[..., ImageSplits]


def open_workload(
    name: str,
    *,
    model: str | None = None,
    data: Path | None = None,
    ema: bool = False,
    reading: ImageReading | None = None,
    image_cache: Path | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
    say: Callable[[str], None] | None = None,
) -> Workload:
    """Load a workload's model and images, or those named by `model` (folder or hub name) and `data` (folder).

    Args:
        ema: take the weights of the model's `unet_ema/`.
        reading: how the images of a folder are brought to the model's size.
        image_cache, in_memory_bytes: folder for those that are larger; see `folder_images`.
        say: hears how far the reading of a folder is, and what was read, passed over and converted.

    Raises:
        MaskproError: unknown workload, or a model or data set that can't be had or doesn't fit.
    """
    if name not in WORKLOADS:
        raise MaskproError(f"workload is {name!r}; allowed: {', '.join(WORKLOADS)}")
    reading = reading or ImageReading()
    read = partial(folder_images, reading=reading, cache=image_cache, in_memory_bytes=in_memory_bytes, say=say)
    workload = WORKLOADS[name](model, data, read, ema)
    if reading != ImageReading() and not workload.images.counts.reading:
        raise MaskproError(
            f"resize is {reading.resize}, crop {reading.crop}, background {reading.background}, skip_unreadable "
            f"{reading.skip_unreadable} with "
            f"{workload.data_source}, which is read as it is; allowed: with a folder of images (--data)"
        )
    side = resolution(workload.model)
    expected = (workload.model.config["in_channels"], side, side)
    shape = tuple(workload.images.train.shape[1:])
    if shape != expected:
        raise MaskproError(
            f"images of {workload.data_source} are {shape}, the model {workload.model_source} takes {expected} "
            "(channels, height, width); name another with --model or --data"
        )
    return workload


def _digits(model: str | None, data: Path | None, read: FolderReader, ema: bool) -> Workload:
    if data is not None:
        raise MaskproError(f"data is {data} with workload digits, which brings its own images; allowed: --workload cifar10")
    dense = load_pretrained(model or str(DIGITS_MODEL), ema=ema)
    return Workload(
        name="digits",
        model=dense.unet,
        scheduler=dense.scheduler,
        images=digits_images(),
        features="digits-classifier",
        budgets=Budgets(
            max_samples=25_200,
            report_samples=2_800,
            validation_samples=1_200,
            selection_samples=4_800,
            test_samples=4_800,
            num_generated=1_024,
            sampling_steps=50,
        ),
        model_source=model or "embedded digits DDPM",
        data_source="scikit-learn digits",
        ema=dense.ema,
        notes=dense.notes,
    )


def _cifar10(model: str | None, data: Path | None, read: FolderReader, ema: bool) -> Workload:
    source_model = model or (str(CIFAR10_EMA_FOLDER) if CIFAR10_EMA_FOLDER.is_dir() else CIFAR10_HUB_MODEL)
    dense = load_pretrained(source_model, ema=ema)
    if data is not None and data.name == CIFAR10_FOLDER:
        data = data.parent
    if data is None or (data / CIFAR10_FOLDER).is_dir():
        root = data or CIFAR10_ROOT
        images, source = cifar10_images(root, download=data is None), f"CIFAR-10 in {root}"
    else:
        images = read(data, resolution=resolution(dense.unet), channels=dense.unet.config["in_channels"])
        source = str(data)
    return Workload(
        name="cifar10",
        model=dense.unet,
        scheduler=dense.scheduler,
        images=images,
        features="inception-v3",
        budgets=Budgets(
            max_samples=200_000,
            report_samples=20_000,
            validation_samples=2_048,
            selection_samples=8_192,
            test_samples=10_000,
            num_generated=50_000,
            sampling_steps=100,
        ),
        model_source=source_model,
        data_source=source,
        ema=dense.ema,
        notes=dense.notes,
    )


Opener = Callable[[str | None, Path | None, FolderReader, bool], Workload]
WORKLOADS: dict[str, Opener] = {"digits": _digits, "cifar10": _cifar10}
