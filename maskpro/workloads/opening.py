"""Opening workloads of diffusion networks: the embedded digits, CIFAR-10, and any model with any folder of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from maskpro.embedded import DIGITS_MODEL
from maskpro.errors import MaskproError
from maskpro.images import (
    CIFAR10_FOLDER,
    IMAGE_CACHE,
    IN_MEMORY_BYTES,
    ImageReading,
    ImageSplits,
    cifar10_images,
    digits_images,
    folder_images,
)
from maskpro.machine.process import Say
from maskpro.option_groups import ReadingOptions
from maskpro.pretrained import CIFAR10_HUB_MODEL, load_pretrained, resolution
from maskpro.workload import LoadedNetwork
from maskpro.workloads.diffusion import DiffusionWorkload, ImageBudgets, load_diffusion_network

# Folder of EMA weights, preferred to the hub's checkpoint where it exists (FID about 4, the hub's about 12).
CIFAR10_EMA_FOLDER = Path("pretrained/ddpm_ema_cifar10")
# Folder where torchvision keeps CIFAR-10 without --data.
CIFAR10_ROOT = Path("data")


# Reads a folder of images at a resolution and a number of channels.
FolderReader = Callable[..., ImageSplits]


def open_images(
    name: str,
    *,
    model: str | None = None,
    data: Path | None = None,
    ema: bool = False,
    reading: ImageReading | None = None,
    image_cache: Path | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
    say: Callable[[str], None] | None = None,
) -> DiffusionWorkload:
    """Load a workload's model and images, or those named by `model` (folder or hub name) and `data` (folder).

    Args:
        ema: take the weights of the model's `unet_ema/`.
        reading: how the images of a folder are brought to the model's size.
        image_cache, in_memory_bytes: folder for sets larger than this size; see `folder_images`.
        say: receives the progress of reading a folder, and what was read, passed over and converted.

    Raises:
        MaskproError: unknown workload, or a model or data set that can't be loaded or doesn't fit.
    """
    if name not in _OPENERS:
        raise MaskproError(f"workload is {name!r}; allowed: {', '.join(_OPENERS)}")
    reading = reading or ImageReading()
    read = partial(folder_images, reading=reading, cache=image_cache, in_memory_bytes=in_memory_bytes, say=say)
    workload = _OPENERS[name](model, data, read, ema)
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


def own_model(name: str) -> tuple[str, str]:
    """Source and name of the model that a workload has without another one being named."""
    if name == "digits":
        return str(DIGITS_MODEL), "embedded digits DDPM"
    source = str(CIFAR10_EMA_FOLDER) if CIFAR10_EMA_FOLDER.is_dir() else CIFAR10_HUB_MODEL
    return source, source


def load_network(name: str, source: str | None, *, ema: bool = False) -> LoadedNetwork:
    """`load_diffusion_network` for the registry; None, and the workload's name, are the workload's own model."""
    source, called = own_model(name) if source in (None, name) else (str(source), str(source))
    return load_diffusion_network(source, name=called, ema=ema)


def _digits(model: str | None, data: Path | None, read: FolderReader, ema: bool) -> DiffusionWorkload:
    if data is not None:
        raise MaskproError(f"data is {data} with workload digits, which brings its own images; allowed: --workload cifar10")
    source, called = own_model("digits")
    dense = load_pretrained(model or source, ema=ema)
    return DiffusionWorkload(
        name="digits",
        model=dense.unet,
        scheduler=dense.scheduler,
        images=digits_images(),
        features="digits-classifier",
        budgets=ImageBudgets(
            max_samples=25_200,
            report_samples=2_800,
            validation_samples=1_200,
            selection_samples=4_800,
            test_samples=4_800,
            num_generated=1_024,
            sampling_steps=50,
        ),
        model_source=model or called,
        data_source="scikit-learn digits",
        ema=dense.ema,
        notes=dense.notes,
    )


def _cifar10(model: str | None, data: Path | None, read: FolderReader, ema: bool) -> DiffusionWorkload:
    source_model = model or own_model("cifar10")[0]
    dense = load_pretrained(source_model, ema=ema)
    if data is not None and data.is_dir() and CIFAR10_FOLDER in (data.name, data.resolve().name):
        data = data.parent if data.name == CIFAR10_FOLDER else data.resolve().parent  # as of "." or a link
    if data is None or (data / CIFAR10_FOLDER).is_dir():
        root = data or CIFAR10_ROOT
        images, source = cifar10_images(root, download=data is None), f"CIFAR-10 in {root}"
    else:
        images = read(data, resolution=resolution(dense.unet), channels=dense.unet.config["in_channels"])
        source = str(data)
    return DiffusionWorkload(
        name="cifar10",
        model=dense.unet,
        scheduler=dense.scheduler,
        images=images,
        features="inception-v3",
        budgets=ImageBudgets(
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


Opener = Callable[[str | None, Path | None, FolderReader, bool], DiffusionWorkload]
_OPENERS: dict[str, Opener] = {"digits": _digits, "cifar10": _cifar10}


def open_diffusion(
    name: str, model: str | None, data: Path | None, options: ReadingOptions, cache: Path | None, say: Say | None
) -> DiffusionWorkload:
    """`open_images` for the registry; images that don't fit into memory are kept in the folder `cache`."""
    return open_images(
        name,
        model=model,
        data=data,
        ema=options.ema,
        reading=options.reading,
        image_cache=None if cache is None else cache / IMAGE_CACHE,
        say=say,
    )
