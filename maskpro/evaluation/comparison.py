"""The final comparison: one network dense, with the initial mask and with the learned mask."""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.evaluation.cache import ModelCache
from maskpro.evaluation.distances import (
    NEIGHBOURS,
    SAMPLE_SEED,
    SAMPLE_SIZE,
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
from maskpro.evaluation.fidelity import estimate_fidelity, paired_difference
from maskpro.evaluation.references import Reference, images_hash, read_reference, real_features
from maskpro.evaluation.sampling import Sampler, SamplingPlan, check_sampling, sampling_protocol, write_images
from maskpro.evaluation.timesteps import TimestepSpacing
from maskpro.files import file_hash
from maskpro.masked_model import MaskedModel, maskable_layers, model_hash
from maskpro.names import SamplingPrecision
from maskpro.objectives import HeldOutSamples
from maskpro.objectives.diffusion import PREDICTED
from maskpro.pattern import Layout, NMPattern
from maskpro.precision import resolve_sampling_precision
from maskpro.workloads import TEST_SEED, VALIDATION_SEED, Workload

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

Say = Callable[[str], None]
# Makes the chunks of images of a network, in their order.
ChunkMaker = Callable[[nn.Module, SamplingPlan, Sequence[range]], Iterator[Tensor]]


def make_chunks(model: nn.Module, plan: SamplingPlan, chunks: Sequence[range]) -> Iterator[Tensor]:
    """Make the images of each chunk here, one after the other, on the network's device."""
    return (plan.images(model, chunk) for chunk in chunks)


def recovery(initial: float, learned: float, dense: float) -> float | None:
    """(L_initial - L_learned) / (L_initial - L_dense): 0 = initial mask, 1 = dense; None where the two are equal."""
    return None if initial == dense else (initial - learned) / (initial - dense)


def loss_improvement(initial: float, learned: float) -> float:
    """(L_initial - L_learned) / L_initial; 0 where nothing changed, of a loss of 0 too."""
    return 0.0 if initial == learned else (initial - learned) / initial if initial else -math.inf


def sparsity(model: nn.Module) -> float:
    """Share of zeros in the weights of the maskable layers, counted in the weights themselves."""
    weights = maskable_layers(model).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def masked_copy(model: nn.Module, masks: Mapping[str, Tensor], pattern: NMPattern, layout: Layout) -> nn.Module:
    """A copy of a dense model with the masks (layer name to bool mask) multiplied into its weights."""
    masked = MaskedModel(copy.deepcopy(model), pattern=pattern, layout=layout, covered=masks.keys())
    masked.set_mask(masked.groups(masks))
    return masked.model


def with_recovery(report: Mapping[str, Any], learned: str) -> dict[str, Any]:
    """A report of `evaluate_models` with what the network named `learned` comes to beside "initial" and "dense".

    Its fidelity, of the test errors; recovery and loss_improvement, of the test losses; and what its Frechet and kernel
    distance are larger than the dense network's, over the same disjoint sets of images.

    Raises:
        MaskproError: the report lacks that network, "initial" or "dense".
    """
    models = report["models"]
    for name in ("dense", "initial", learned):
        if name not in models:
            raise MaskproError(f"models lacks {name!r}, which recovery needs; there are: {', '.join(models)}")
    dense, initial, loss = (models[name]["test_loss"] for name in ("dense", "initial", learned))
    differences = {}
    for distance, parts in (("frechet_distance", "by_set"), ("kernel_distance", "by_part")):
        found = paired_difference(*(models[name].get(f"{distance}_{parts}", ()) for name in ("dense", learned)))
        differences[distance] = None if found is None else found._asdict()
    return {
        **report,
        **{name: models[learned].get(name) for name in ("fidelity", "fidelity_error")},
        "recovery": recovery(initial, loss, dense),
        "loss_improvement": loss_improvement(initial, loss),
        "distance_to_dense": differences,
    }


def evaluate_models(
    workload: Workload,
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
    make: ChunkMaker = make_chunks,
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
    workload: Workload, sampler: Sampler, steps: int | None, spacing: TimestepSpacing | None = None
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
        workload: Workload,
        extractor: FeatureExtractor | None,
        device: torch.device,
        *,
        plan: SamplingPlan,
        make: ChunkMaker,
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
        made = iter(self._make(model, self._plan, missing))
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


def protocol(
    workload: Workload,
    extractor: FeatureExtractor | None,
    device: torch.device,
    *,
    plan: SamplingPlan,
    reference_statistics: Path | None = None,
) -> dict[str, Any]:
    """All that a figure depends on besides the network's weights, as plain JSON: figures are kept under its hash."""
    images, budgets = workload.images, workload.budgets
    splits = {"train": images.train, "validation": images.validation, "test": images.test}
    schedule = json.loads(workload.scheduler.to_json_string())
    return {
        "workload": workload.name,
        "model": workload.model_source,
        "model_hash": model_hash(workload.model),
        "model_ema": workload.ema,
        "data": workload.data_source,
        "image_reading": dict(images.counts.reading),
        "num_images": {split: len(part) for split, part in splits.items()},
        "images_sha256": {split: images_hash(part) for split, part in splits.items()},
        "loss": f"MSE of the {PREDICTED[schedule['prediction_type']]} prediction; timesteps stratified over the schedule",
        "num_loss_samples": {"validation": budgets.validation_samples, "test": budgets.test_samples},
        "num_generated": budgets.num_generated,
        **sampling_protocol(plan),
        "noise_schedule": {name: value for name, value in schedule.items() if not name.startswith("_")},
        "seeds": {"validation": VALIDATION_SEED, "test": TEST_SEED, "generation": plan.seed},
        "frechet_features": extractor and extractor.name,
        "frechet_features_sha256": extractor and extractor.weights_hash,
        "frechet_resizing": extractor and extractor.resizing,
        **_reference_protocol(workload, extractor, reference_statistics),
        "device": device.type,
        "dtype": str(workload.model.dtype).removeprefix("torch."),
        "tf32_convolutions": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
        "versions": {
            "torch": str(torch.__version__),
            **{package: version(package) for package in ("torch-fidelity", "diffusers")},
        },
    }


def _reference_protocol(
    workload: Workload, extractor: FeatureExtractor | None, reference_statistics: Path | None
) -> dict[str, Any]:
    """What generated images are compared with, and how; None where they are not."""
    given = None if extractor is None else reference_statistics
    real = None if extractor is None or given else len(workload.images.train) + len(workload.images.validation)
    sampled = real and min(SAMPLE_SIZE, real, workload.budgets.num_generated)
    return {
        "num_frechet_features": extractor and extractor.width,
        "frechet_reference": extractor and (f"file {given.name}" if given else "training and validation images"),
        "frechet_reference_sha256": given and file_hash(given),
        "num_frechet_reference": real,
        "kernel_distance": real and "unbiased MMD^2, kernel (x.y / F + 1)^3, mean and standard error of disjoint parts",
        "precision_recall": real and f"balls to neighbour {NEIGHBOURS}",
        "num_kernel_precision_recall": sampled,
        "kernel_precision_recall_seed": real and SAMPLE_SEED,
    }


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
