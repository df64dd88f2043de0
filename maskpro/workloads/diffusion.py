"""Diffusion networks as workloads: a diffusers UNet that predicts noise, images or velocities, and its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.held_out import HELD_OUT_SEEDS, TRIAL_SEED, HeldOut
from maskpro.images import ImageSplits, Split
from maskpro.machine.hardware import seconds_now
from maskpro.names import Precision
from maskpro.objectives.diffusion import PREDICTED, DiffusionObjective, timestep_shares
from maskpro.pretrained import load_pretrained, resolution, save_pipeline
from maskpro.workload import Budgets, LoadedNetwork, Workload
from maskpro.workloads.judging import ImageEvaluation, ImageJudging


@dataclass(frozen=True, kw_only=True)
class ImageBudgets(Budgets):
    """Sizes of a diffusion network's jobs.

    Attributes:
        num_generated: images per model for the Frechet distance.
        sampling_steps: DDIM steps per generated image (DDPM takes all steps of the noise schedule).
    """

    num_generated: int
    sampling_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_generated < 2:
            raise MaskproError(f"num_generated is {self.num_generated}; allowed: at least 2 (a covariance needs them)")


@dataclass(frozen=True, kw_only=True)
class DiffusionWorkload(Workload):
    """A dense diffusion network with its images.

    Attributes:
        features: what judges generated images: a name or a file, for `maskpro.evaluation.features.open_features`.
        ema: whether the weights are an average over the training (EMA), in words for the records, as FID depends on it.
    """

    model: UNet2DModel
    budgets: ImageBudgets
    scheduler: DDPMScheduler
    images: ImageSplits
    features: str
    ema: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image, `[C, H, W]`."""
        return tuple(self.images.train.shape[1:])

    def training_objective(
        self, *, seed: int, device: torch.device, shares: Sequence[float] | None = None
    ) -> DiffusionObjective:
        """A seed's calibration samples of the training images, with their loss; `shares` are those of the timesteps."""
        return DiffusionObjective(self.scheduler, self.images.train, seed=seed, device=device, shares=shares)

    def held_out_objective(self, split: HeldOut, device: torch.device) -> DiffusionObjective:
        """The samples of a fixed held-out set; selection has the validation images and other noise."""
        images: Split = "test" if split == "test" else "validation"
        size: int = getattr(self.budgets, f"{split}_samples")
        return DiffusionObjective(
            self.scheduler, self.images[images], seed=HELD_OUT_SEEDS[split], device=device, strata=size
        )

    def importance_shares(
        self, initial: nn.Module, device: torch.device, precision: Precision = "float32"
    ) -> tuple[float, ...]:
        """How often training that begins with the network `initial` samples each part of the noise schedule."""
        images = self.images.train
        return timestep_shares(self.model, initial, self.scheduler, images, device=device, precision=precision)

    @property
    def output_numbers(self) -> int:
        """Numbers in a prediction, as many as in an image."""
        return self.images.train[:1].numel()

    def without_test(self) -> Self:
        """The workload without the test images."""
        return replace(self, images=replace(self.images, test=self.images.test[:0]))

    def run_once(self) -> object:
        """Run the dense network on an image of zeros."""
        return run_on_zeros(self.model, self.shape)

    def load_network(self, source: str) -> LoadedNetwork:
        """The network from a diffusers folder or the hub."""
        return load_diffusion_network(source)

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write a pipeline that `DDPMPipeline.from_pretrained` loads."""
        save_pipeline(folder, model, self.scheduler, ema=self.ema)

    def evaluation(self, options: Mapping[str, Any]) -> ImageEvaluation:
        """How networks and the images they make are judged; `options` as in `ImageJudging`."""
        given = ImageJudging(**{name: value for name, value in options.items() if name in _JUDGING})
        for name, value in options.items():
            if name not in _JUDGING:
                raise MaskproError(f"{name} is {value} with workload {self.name}; allowed: {', '.join(_JUDGING)}")
        workload = self
        if given.num_generated is not None:
            workload = replace(workload, budgets=replace(workload.budgets, num_generated=given.num_generated))
        if given.features is not None:
            workload = replace(workload, features=given.features)
        return ImageEvaluation(workload=workload, options=given)

    @torch.no_grad()
    def check_passes(self, model: nn.Module, device: torch.device) -> float:
        """Run a real image at the first, a middle and the last timestep, one by one; seconds of the fastest pass."""
        last = self.scheduler.config["num_train_timesteps"] - 1
        objective = self.training_objective(seed=TRIAL_SEED, device=device)
        seconds: list[float] = []
        for timestep in sorted({0, last // 2, last}):
            batch = objective.at(torch.tensor([timestep]))
            started = seconds_now(device)
            prediction = self._passed(objective, model, batch)
            seconds.append(seconds_now(device) - started)
            if prediction.shape != batch.images.shape:
                made, taken = list(prediction.shape[1:]), list(batch.images.shape[1:])
                raise MaskproError(
                    f"model {self.model_source} makes {made} of images of {taken}; allowed: the same shape (--model)"
                )
            self.check_finite(prediction, f"output at timestep {timestep}")
            self.check_finite(objective.losses(prediction, batch), f"loss at timestep {timestep}")
        return min(seconds)

    def _passed(self, objective: DiffusionObjective, model: nn.Module, batch: Any) -> Tensor:
        """A pass's output; a MaskproError says why the network can't take the images."""
        try:
            return objective.predict(model, batch)
        except torch.OutOfMemoryError:
            raise
        except _PASS_ERRORS as error:
            config, side = self.model.config, resolution(self.model)
            factor = 2 ** (len(config["block_out_channels"]) - 1)
            if side % factor:
                levels = len(config["block_out_channels"])
                raise MaskproError(
                    f"sample_size of model {self.model_source} is {side}; allowed with its {levels} levels: a multiple of "
                    f"{factor} (--model)"
                ) from error
            reason = " ".join(str(error).split())[:200]
            raise MaskproError(
                f"model {self.model_source} can't be run on images of {side}x{side} ({reason}); name another with --model"
            ) from error

    def describe(self) -> dict[str, Any]:
        """What a search records of the workload, as plain JSON."""
        return super().describe() | {
            "model_ema": self.ema,
            "prediction_type": self.scheduler.config["prediction_type"],
            "images": self.images.counts.describe(),
        }

    def comparable(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Includes the reading of the images, which must be equal as well."""
        reading = record.get("images", {}).get("reading", {})
        return super().comparable(record) | {"another resize, crop or background": reading}

    def network_line(self) -> str:
        """Size and widths of the network."""
        config, side = self.model.config, resolution(self.model)
        widths = ", ".join(map(str, config["block_out_channels"]))
        return f"UNet2DModel, {config['in_channels']} x {side} x {side}, widths {widths}"

    def understood(self) -> dict[str, str]:
        """Weights, noise schedule, images and features, in words."""
        images, predicted = self.images, self.scheduler.config["prediction_type"]
        splits = {"training": images.train, "validation": images.validation, "test": images.test}
        return {
            "weights": self.ema,
            "noise schedule": self._schedule_line(),
            "prediction type": f"{predicted}: the network predicts the {PREDICTED[predicted]}",
            "clipping": self._clipping_line(),
            "data": self.data_source,
            "images": ", ".join(f"{len(part):,} {split}" for split, part in splits.items()),
            "images read": images.counts.line(),
            "features": self.features,
        }

    def _schedule_line(self) -> str:
        config, betas = self.scheduler.config, self.scheduler.betas
        name = "values of its own" if config["trained_betas"] is not None else config["beta_schedule"]
        return f"{name}, betas {betas[0].item():.3g} to {betas[-1].item():.3g}, {len(betas):,} timesteps"

    def _clipping_line(self) -> str:
        config = self.scheduler.config
        if config["thresholding"]:
            return f"dynamic thresholding at {config['dynamic_thresholding_ratio']:g}"
        return f"predicted images to +-{config['clip_sample_range']:g}" if config["clip_sample"] else "none"


_JUDGING = tuple(field.name for field in fields(ImageJudging))
# What diffusers and torch make of layers that don't fit each other or the images.
_PASS_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError)


@torch.no_grad()
def run_on_zeros(model: nn.Module, shape: Sequence[int]) -> object:
    """Run a network on an image `[C, H, W]` of zeros at timestep 0."""
    parameter = next(model.parameters())
    image = torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
    try:
        return model(image, torch.zeros(1, dtype=torch.int64, device=parameter.device))
    except torch.OutOfMemoryError:
        raise
    except _PASS_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise MaskproError(f"network can't be run on images of {list(shape)} ({reason}); name another model") from error


def load_diffusion_network(source: str, *, name: str | None = None, ema: bool = False) -> LoadedNetwork:
    """The network from a diffusers folder or the hub, called `name`; with `ema` the weights in its `unet_ema/`."""
    found = load_pretrained(source, ema=ema)
    side = resolution(found.unet)
    run = partial(run_on_zeros, found.unet, (found.unet.config["in_channels"], side, side))
    return LoadedNetwork(found.unet, name or source, found.notes, run, found)
