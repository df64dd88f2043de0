"""The figures of networks, one after the other: taken from the cache, or made and kept there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskpro.evaluation.cache import ModelCache
from maskpro.evaluation.distances import (
    FeatureSet,
    FrechetDistances,
    KernelDistance,
    PrecisionRecall,
    frechet_distances,
    kernel_distance,
    precision_recall,
)
from maskpro.evaluation.features import FeatureExtractor
from maskpro.evaluation.references import Reference, real_features
from maskpro.evaluation.sampling import SamplingPlan, write_images
from maskpro.fidelity import standard_error
from maskpro.machine.process import Say
from maskpro.metrics import sparsity
from maskpro.objectives import HeldOutSamples, HeldOutValues
from maskpro.workload_evaluation import PartMaker

if TYPE_CHECKING:
    from maskpro.workloads.diffusion import DiffusionWorkload

# Images sampled and kept together. It is fixed, so that neither interruptions nor the number of processes change an image.
SAMPLING_BATCH = 256
_CHUNK = SAMPLING_BATCH
# Parts of the noise schedule with a loss each.
_TENTHS = 10
# Number of images in the picture of a network's first ones; no others are made if images are neither judged nor saved.
GRID_IMAGES = 64


class Judge:
    """What all networks are judged by; each part is made when the first network needs it."""

    def __init__(
        self,
        workload: DiffusionWorkload,
        extractor: FeatureExtractor | None,
        device: torch.device,
        *,
        plan: SamplingPlan,
        make: PartMaker,
        reference: Reference | None,
        reference_cache: Path | None,
        is_doubtful: bool,
        say: Say,
    ):
        self._workload = workload
        self._extractor = extractor
        self._device = device
        self._plan = plan
        self._make = make
        self._given_reference = reference
        self._reference_cache = reference_cache
        self._is_doubtful = is_doubtful
        self._say = say

    def figures(self, name: str, model: nn.Module, cache: ModelCache, images_folder: Path | None) -> dict[str, Any]:
        """A network's figures, from the cache or made and kept there; images go to `images_folder` if there is one."""
        started = time.monotonic()
        figures, origin = cache.figures(), "from the cache"
        if figures is None or images_folder is not None:
            total = self._workload.budgets.num_generated
            if self._extractor is None and images_folder is None:
                total = min(total, GRID_IMAGES)
            features, first = FeatureSet(self._workload.budgets.num_generated), []
            for chunk, images in self._images(name, model.to(self._device), cache, total=total):
                if images_folder is not None:
                    write_images(images, chunk, images_folder / name)
                if figures is None and self._extractor is not None:
                    features.add(self._extractor(images))
                if chunk.start < GRID_IMAGES:
                    first.append(images)
            if figures is None:
                figures, values = self._judge(model, features)
                cache.keep_figures(figures, torch.cat(first)[:GRID_IMAGES], values)
                origin = f"{time.monotonic() - started:.0f} s"
        cache.drop_images()
        losses = f"test error {figures['test_error']:.3g}, loss {figures['test_loss']:.5f}"
        self._say(f"evaluated {name}: {losses}{self._shown(figures)} ({origin})")
        return figures

    def _shown(self, figures: Mapping[str, Any]) -> str:
        parts = {
            "Frechet distance": ("frechet_distance", ".2f"),
            "kernel distance": ("kernel_distance", ".4g"),
            "precision": ("precision", ".3f"),
            "recall": ("recall", ".3f"),
        }
        known = [(label, figures[name], form) for label, (name, form) in parts.items() if figures[name] is not None]
        shown = "".join(f", {label} {value:{form}}" for label, value, form in known)
        return shown + (", of too few images: see the warning" if known and self._is_doubtful else "")

    def _judge(self, model: nn.Module, features: FeatureSet) -> tuple[dict[str, Any], HeldOutValues]:
        """The figures, and the test samples' values."""
        test, validation = self._test.judge(model), self._validation.judge(model).means()
        figures = {
            "test_error": test.means().error,
            "val_error": validation.error,
            "val_loss": validation.loss,
            "test_loss": test.means().loss,
            "test_loss_error": standard_error(test.losses, len(self._workload.images.test)),
            "test_loss_by_timestep": self._by_timestep(test.losses),
            "test_error_by_timestep": self._by_timestep(test.errors),
            **self._distances(features),
            "sparsity": sparsity(model),
        }
        return figures, test

    def _distances(self, features: FeatureSet) -> dict[str, Any]:
        frechet, kernel, shares = (
            FrechetDistances(None, [], None),
            KernelDistance(None, None, []),
            PrecisionRecall(None, None),
        )
        if self._extractor is not None:
            frechet = frechet_distances(features, self._reference.statistics)
            if self._reference.sample is not None:
                samples = features.sample.result(), self._reference.sample
                kernel, shares = kernel_distance(*samples), precision_recall(*samples)
        return {
            "frechet_distance": frechet.all,
            "frechet_distance_extrapolated": frechet.extrapolated,
            "frechet_distance_by_set": frechet.by_set,
            "kernel_distance": kernel.value,
            "kernel_distance_error": kernel.error,
            "kernel_distance_by_part": kernel.by_part,
            **shares._asdict(),
        }

    def _by_timestep(self, losses: Tensor) -> list[float | None]:
        """Mean loss of the test samples in each tenth of the noise schedule, from little noise to much."""
        every: int = self._workload.scheduler.config["num_train_timesteps"]
        timesteps = torch.cat([batch.timesteps for batch in self._test.batches]).cpu()
        tenths = [losses[timesteps * _TENTHS // every == tenth] for tenth in range(_TENTHS)]
        return [part.mean().item() if len(part) else None for part in tenths]

    def _images(self, name: str, model: nn.Module, cache: ModelCache, *, total: int) -> Iterator[tuple[range, Tensor]]:
        """The first `total` generated images in chunks: kept chunks are taken, the others are made and kept."""
        chunks = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
        missing = [chunk for chunk in chunks if cache.images(chunk, self._plan.shape) is None]
        taken = total - sum(map(len, missing))
        if taken:
            self._say(f"sampling {name}: {taken} of {total} images are in the cache")
        report = _sampling_progress(name, taken, total, self._say)
        made = iter(self._make(model, self._plan.images, missing))
        for chunk in chunks:
            if chunk in missing:
                images = next(made)
                cache.keep_images(chunk, images)
                report(len(images))
            else:
                kept = cache.images(chunk, self._plan.shape)
                assert kept is not None
                images = kept
            yield chunk, images

    @cached_property
    def _validation(self) -> HeldOutSamples:
        return self._workload.held_out_samples("validation", self._device)

    @cached_property
    def _test(self) -> HeldOutSamples:
        return self._workload.held_out_samples("test", self._device)

    @cached_property
    def _reference(self) -> Reference:
        assert self._extractor is not None
        return self._given_reference or real_features(self._workload, self._extractor, self._reference_cache)


def _sampling_progress(name: str, taken: int, total: int, say: Say) -> Callable[[int], None]:
    """A function that counts images as they are made and reports the progress every ten seconds."""
    started = last = time.monotonic()
    made = 0

    def report(count: int) -> None:
        nonlocal last, made
        made += count
        now, left = time.monotonic(), total - taken - made
        if now - last >= 10 and left:
            last = now
            seconds = (now - started) / made * left
            say(f"sampling {name}: {taken + made} of {total} images, about {seconds:.0f} s left")

    return report
