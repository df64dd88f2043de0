"""The final comparison: one network dense, with the initial mask and with the learned mask."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
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
    few_images_warnings,
    frechet_distances,
    kernel_distance,
    precision_recall,
)
from maskpro.evaluation.features import FeatureExtractor, open_features
from maskpro.evaluation.protocol import protocol
from maskpro.evaluation.references import Reference, read_reference, real_features
from maskpro.evaluation.sampling import Sampler, SamplingPlan, check_sampling, write_images
from maskpro.evaluation.timesteps import TimestepSpacing
from maskpro.fidelity import estimate_fidelity, paired_difference
from maskpro.machine.process import Say
from maskpro.metrics import sparsity, with_recovery
from maskpro.names import SamplingPrecision
from maskpro.objectives import HeldOutSamples
from maskpro.precision import resolve_sampling_precision
from maskpro.workload_evaluation import PartMaker, make_parts

if TYPE_CHECKING:
    from maskpro.workloads.diffusion import DiffusionWorkload

# Of the generated images; far from seeds that users choose.
GENERATION_SEED = 2**32 + 3

# Images sampled together, and kept together; fixed, so that neither an interruption nor the number of processes that make
# them leaves a trace in the images.
_SAMPLING_BATCH = 256
_CHUNK = _SAMPLING_BATCH
# Parts of the noise schedule whose losses are told apart.
_TENTHS = 10
# Of the picture of a network's first images.
_GRID_IMAGES = 64


def with_distances(report: Mapping[str, Any], learned: str) -> dict[str, Any]:
    """`with_recovery`, and what the Frechet and kernel distance of the network named `learned` are larger than the dense
    network's, over the same disjoint sets of images.

    Raises:
        MaskproError: the report lacks that network, "initial" or "dense".
    """
    beside, models = with_recovery(report, learned), report["models"]
    differences = {}
    for distance, parts in (("frechet_distance", "by_set"), ("kernel_distance", "by_part")):
        found = paired_difference(*(models[name].get(f"{distance}_{parts}", ()) for name in ("dense", learned)))
        differences[distance] = None if found is None else found._asdict()
    return {**beside, "distance_to_dense": differences}


def evaluate_models(
    workload: DiffusionWorkload,
    models: Mapping[str, nn.Module],
    *,
    device: torch.device,
    folder: Path,
    cache: Path | None,
    sampler: Sampler = "ddim",
    sampling_steps: int | None = None,
    timestep_spacing: TimestepSpacing | None = None,
    sampling_precision: SamplingPrecision = "auto",
    compile_sampling: bool | None = None,
    compute_frechet: bool = True,
    save_images: bool = False,
    inception_weights: Path | None = None,
    reference_statistics: Path | None = None,
    reference_cache: Path | None = None,
    make: PartMaker = make_parts,
    generation_seed: int = GENERATION_SEED,
    initials: Mapping[str, str] | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Judge networks, each under a name of its own, on the same data and noise.

    Writes `samples_<name>.png` (and with `save_images` `images/<name>/`) into `folder`.

    Args:
        cache: folder that keeps each network's figures and, until they are known, its images; what an earlier call left
            there is taken, and one that was killed is gone on with, to the same result. None: nothing is kept.
        compute_frechet: judge images by the workload's features: Frechet distance, kernel distance, precision and recall.
        reference_statistics: .npz file with the statistics of other real images than the workload's (`read_reference`).
        reference_cache: folder that keeps the features of real images, under the hash of what they were made from.
        make: what makes the images; here, or spread over several processes.
        sampling_steps: default: the workload's budget for "ddim", all steps of the noise schedule for "ddpm".
        generation_seed: of the images' noise, which all networks share.
        initials: the name of the network with each one's initial mask, which its fidelity is measured from; default:
            "initial", where there is one of that name.
        sampling_precision, compile_sampling: `resolve_sampling_precision` says what "auto" and None are.

    Returns: "protocol", "warnings" (sentences about what the figures can't tell), and "models" with the figures of each.

    Raises:
        MaskproError: a sampler, a precision or a reference that doesn't fit, or features that can't be had.
    """
    sampling_steps = resolve_sampling(workload, sampler, sampling_steps, timestep_spacing)
    shape = tuple(workload.images.train.shape[1:])
    extractor, reference = None, None
    if compute_frechet:
        extractor = open_features(workload.features, device=device, shape=shape, inception_weights=inception_weights)
        if reference_statistics is not None:
            reference = read_reference(reference_statistics, extractor)
    count = workload.budgets.num_generated
    resolved = resolve_sampling_precision(sampling_precision, compile_sampling, device, passes=count * sampling_steps)
    plan = SamplingPlan(
        scheduler=workload.scheduler,
        shape=shape,
        sampler=sampler,
        steps=sampling_steps,
        spacing=timestep_spacing,
        seed=generation_seed,
        batch_size=_SAMPLING_BATCH,
        precision=resolved.precision,
        compile=resolved.compile,
    )
    record = protocol(workload, extractor, device, plan=plan, reference_statistics=reference_statistics)
    found = _warnings(extractor, record)
    compiled = ", compiled" if resolved.compile else ""
    say(f"{count:,} images of each network, sampled in {resolved.precision}{compiled} ({resolved.reason})")
    if reference is not None:
        say(
            f"reference statistics of {reference_statistics} hold no features of single images: kernel distance, precision "
            "and recall are left out"
        )
    for text in found:
        say(f"warning: {text}")
    evaluation = _Evaluation(
        workload,
        extractor,
        device,
        plan=plan,
        make=make,
        reference=reference,
        reference_cache=reference_cache,
        is_doubtful=bool(found),
        say=say,
    )
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, Any]] = {}
    errors: dict[str, Tensor] = {}
    with nullcontext(cache) if cache is not None else tempfile.TemporaryDirectory() as kept:
        for name, model in models.items():
            model_cache = ModelCache(Path(kept), model, record)
            figures[name] = evaluation.figures(name, model, model_cache, folder / "images" if save_images else None)
            errors[name] = model_cache.errors()
            shutil.copyfile(model_cache.grid, folder / f"samples_{name}.png")
    if initials is None:
        initials = dict.fromkeys(models, "initial") if "initial" in models else {}
    for name, initial in initials.items():
        reached = estimate_fidelity(errors[initial], errors[name])
        estimated = (None, None) if reached is None else reached
        figures[name] = dict(zip(("fidelity", "fidelity_error"), estimated, strict=True)) | figures[name]
    # Of the search: it made the masks, and has no part in the figures of given ones.
    search = {"max_samples": workload.budgets.max_samples, "report_samples": workload.budgets.report_samples}
    # The files that were passed over neither.
    read = {"images": workload.images.counts.describe(), "search_budgets": search}
    return {"protocol": {**record, **read}, "warnings": found, "models": figures}


def _warnings(extractor: FeatureExtractor | None, record: Mapping[str, Any]) -> list[str]:
    if extractor is None or extractor.width is None:
        return []
    counts = {"generated": record["num_generated"], "real": record["num_frechet_reference"]}
    return few_images_warnings(**counts, width=extractor.width)


def resolve_sampling(
    workload: DiffusionWorkload, sampler: Sampler, steps: int | None, spacing: TimestepSpacing | None = None
) -> int:
    """The sampler's steps (None: the workload's for "ddim", all of the noise schedule for "ddpm").

    Raises:
        MaskproError: the sampler doesn't fit the workload's noise schedule.
    """
    if steps is None:
        every: int = workload.scheduler.config["num_train_timesteps"]
        steps = min(workload.budgets.sampling_steps, every) if sampler == "ddim" else every
    check_sampling(workload.scheduler, sampler, steps, spacing)
    return steps


class _Evaluation:
    """What all networks are judged by; each part of it is made when the first network needs it."""

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
        """The figures of a network, from the cache or made and kept there; images go to `images_folder` if there is one."""
        started = time.monotonic()
        figures, origin = cache.figures(), "from the cache"
        if figures is None or images_folder is not None:
            features, first = FeatureSet(self._workload.budgets.num_generated), []
            for chunk, images in self._images(name, model.to(self._device), cache):
                if images_folder is not None:
                    write_images(images, chunk, images_folder / name)
                if figures is None and self._extractor is not None:
                    features.add(self._extractor(images))
                if chunk.start < _GRID_IMAGES:
                    first.append(images)
            if figures is None:
                figures, errors = self._judge(model, features)
                cache.keep_figures(figures, torch.cat(first)[:_GRID_IMAGES], errors)
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

    def _judge(self, model: nn.Module, features: FeatureSet) -> tuple[dict[str, Any], Tensor]:
        """The figures, and the error of each test sample, `[size]`."""
        test, validation = self._test.judge(model), self._validation.judge(model).means()
        figures = {
            "test_error": test.means().error,
            "val_error": validation.error,
            "val_loss": validation.loss,
            "test_loss": test.means().loss,
            "test_loss_by_timestep": self._by_timestep(test.losses),
            "test_error_by_timestep": self._by_timestep(test.errors),
            **self._distances(features),
            "sparsity": sparsity(model),
        }
        return figures, test.errors

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

    def _images(self, name: str, model: nn.Module, cache: ModelCache) -> Iterator[tuple[range, Tensor]]:
        """The generated images, in chunks: those that were kept are taken, the others made and kept."""
        total = self._workload.budgets.num_generated
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
    """A function that counts images as they are made, and says how far it is every ten seconds."""
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
