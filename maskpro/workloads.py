"""Workloads: a model, its images, the features that judge its samples, and budgets, bundled under a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from maskpro.embedded import DIGITS_MODEL
from maskpro.errors import MaskproError
from maskpro.files import read_json
from maskpro.images import (
    CIFAR10_FOLDER,
    ImageReading,
    ImageSplits,
    Split,
    cifar10_images,
    digits_images,
    folder_images,
)
from maskpro.objectives import HeldOutSamples
from maskpro.objectives.diffusion import DiffusionObjective, timestep_shares
from maskpro.precision import Precision

# Seeds of the fixed held-out sets, far from those that users choose for calibration samples and masks.
VALIDATION_SEED = 2**32 + 1
TEST_SEED = 2**32 + 2
SELECTION_SEED = 2**32 + 4
HeldOut = Literal["validation", "selection", "test"]
_HELD_OUT_SEEDS: dict[HeldOut, int] = {"validation": VALIDATION_SEED, "selection": SELECTION_SEED, "test": TEST_SEED}

# The hub's checkpoint holds the raw weights, whose FID is about 12; a local folder with the EMA weights (FID about 4) is
# taken first where there is one.
CIFAR10_EMA_FOLDER = Path("pretrained/ddpm_ema_cifar10")
CIFAR10_HUB_MODEL = "google/ddpm-cifar10-32"
# Where torchvision keeps CIFAR-10 when --data names nothing.
CIFAR10_ROOT = Path("data")


class ModelNotFoundError(MaskproError):
    """A model could not be had; the message says what was looked for, where, and the option that fixes it."""


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
        if self.num_generated < 2:
            raise MaskproError(f"num_generated is {self.num_generated}; allowed: at least 2 (a covariance needs them)")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A dense diffusion network with its data.

    Attributes:
        features: what judges generated images: a name or a file, for `maskpro.evaluation.features.open_features`.
        model_source, data_source: where they came from, for the records.
        ema: whether the weights are an average over the training (EMA), in words, for the records: FID depends on it.
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
    reading: ImageReading | None = None,
    image_cache: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Workload:
    """Load a workload's model and images, or those named by `model` (folder or hub name) and `data` (folder).

    Args:
        reading: how the images of a folder are brought to the model's size.
        image_cache: folder for those that don't fit into memory; see `folder_images`.
        say: hears how far the reading of a folder is, and what was read, passed over and converted.

    Raises:
        MaskproError: unknown workload, or a model or data set that can't be had or doesn't fit.
    """
    if name not in WORKLOADS:
        raise MaskproError(f"workload is {name!r}; allowed: {', '.join(WORKLOADS)}")
    reading = reading or ImageReading()
    workload = WORKLOADS[name](model, data, partial(folder_images, reading=reading, cache=image_cache, say=say))
    if reading != ImageReading() and not workload.images.counts.reading:
        raise MaskproError(
            f"resize is {reading.resize}, crop {reading.crop}, skip_unreadable {reading.skip_unreadable} with "
            f"{workload.data_source}, which is read as it is; allowed: with a folder of images (--data)"
        )
    config = workload.model.config
    expected = (config["in_channels"], config["sample_size"], config["sample_size"])
    shape = tuple(workload.images.train.shape[1:])
    if shape != expected:
        raise MaskproError(
            f"images of {workload.data_source} are {shape}, the model {workload.model_source} takes {expected} "
            "(channels, height, width); name another with --model or --data"
        )
    return workload


def _digits(model: str | None, data: Path | None, read: FolderReader) -> Workload:
    if data is not None:
        raise MaskproError(f"data is {data} with workload digits, which brings its own images; allowed: --workload cifar10")
    unet, scheduler = load_diffusion_model(model or str(DIGITS_MODEL))
    return Workload(
        name="digits",
        model=unet,
        scheduler=scheduler,
        images=digits_images(),
        features="digits-classifier",
        budgets=Budgets(
            max_samples=25_200,
            report_samples=2_800,
            validation_samples=1_200,
            selection_samples=9_600,
            test_samples=4_800,
            num_generated=1_024,
            sampling_steps=50,
        ),
        model_source=model or "embedded digits DDPM",
        data_source="scikit-learn digits",
        ema=_ema(model or str(DIGITS_MODEL)),
    )


def _cifar10(model: str | None, data: Path | None, read: FolderReader) -> Workload:
    source_model = model or (str(CIFAR10_EMA_FOLDER) if CIFAR10_EMA_FOLDER.is_dir() else CIFAR10_HUB_MODEL)
    unet, scheduler = load_diffusion_model(source_model)
    if data is not None and data.name == CIFAR10_FOLDER:
        data = data.parent
    if data is None or (data / CIFAR10_FOLDER).is_dir():
        root = data or CIFAR10_ROOT
        images, source = cifar10_images(root, download=data is None), f"CIFAR-10 in {root}"
    else:
        config = unet.config
        images = read(data, resolution=config["sample_size"], channels=config["in_channels"])
        source = str(data)
    return Workload(
        name="cifar10",
        model=unet,
        scheduler=scheduler,
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
        ema=_ema(source_model),
    )


def _ema(source: str) -> str:
    if Path(source) == DIGITS_MODEL:
        return "EMA weights"
    if source == CIFAR10_HUB_MODEL and not Path(source).is_dir():
        return "raw weights (not EMA)"
    if Path(source).name == CIFAR10_EMA_FOLDER.name:
        return "EMA weights (by the folder's name)"
    return "as stored in the checkpoint; not recorded"


WORKLOADS: dict[str, Callable[[str | None, Path | None, FolderReader], Workload]] = {"digits": _digits, "cifar10": _cifar10}


def load_diffusion_model(source: str) -> tuple[UNet2DModel, DDPMScheduler]:
    """The dense UNet (float32, frozen, evaluation mode) and noise schedule of a diffusers DDPM folder or hub model.

    Raises:
        ModelNotFoundError: nothing there, or not a diffusers DDPM.
    """
    folder = Path(source)
    if not folder.is_dir():
        if source.count("/") != 1 or folder.is_absolute() or source.startswith("."):
            raise ModelNotFoundError(f"no model folder {source}; name a diffusers DDPM folder with --model")
        folder = _download(source)
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelNotFoundError(
            f"model folder {source} is not a diffusers pipeline: it has no model_index.json; name another with --model"
        )
    described = read_json(index)
    unet_class = (described.get("unet") or [None, None])[1] if isinstance(described, dict) else None
    if unet_class != "UNet2DModel":
        raise ModelNotFoundError(f"model {source} holds a unet of class {unet_class}; allowed: UNet2DModel (--model)")
    # The hub's older pipelines keep unet and scheduler in the top folder.
    parts = {part: folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler")}
    try:
        unet = UNet2DModel.from_pretrained(parts["unet"], low_cpu_mem_usage=False)
        scheduler = DDPMScheduler.from_pretrained(parts["scheduler"])
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelNotFoundError(f"model {source} can't be loaded ({reason}); name another with --model") from error
    _check_unet(unet, source)
    return unet.eval().requires_grad_(False), scheduler


def _check_unet(unet: UNet2DModel, source: str) -> None:
    config = unet.config
    if config["class_embed_type"] is not None or config["num_class_embeds"] is not None:
        raise ModelNotFoundError(f"model {source} is class-conditional; allowed: an unconditional DDPM (--model)")
    if config["out_channels"] != config["in_channels"] or not isinstance(config["sample_size"], int):
        raise ModelNotFoundError(
            f"model {source} has in_channels {config['in_channels']}, out_channels {config['out_channels']}, sample_size "
            f"{config['sample_size']}; allowed: as many out as in, and a square sample_size (--model)"
        )
    for name, value in unet.state_dict().items():
        if not value.isfinite().all():
            raise ModelNotFoundError(f"model {source} holds values that are not finite in {name}; name another (--model)")


def save_pipeline(folder: Path, model: nn.Module, scheduler: DDPMScheduler) -> None:
    """Write a diffusers pipeline folder that `DDPMPipeline.from_pretrained` loads; `folder` must exist."""
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    DDPMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"model {name} is not a folder here and could not be had from the hub ({type(error).__name__}); "
            "name a local diffusers DDPM folder with --model"
        ) from error
