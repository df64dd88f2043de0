"""The final comparison: one network dense, with the initial mask and with the learned mask."""

from __future__ import annotations

import copy
import hashlib
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.evaluation.cache import ModelCache
from maskpro.evaluation.frechet import FeatureExtractor, FeatureStatistics, frechet_distance, open_features
from maskpro.evaluation.sampling import Sampler, SamplingPlan, check_sampling, sampling_protocol, write_images
from maskpro.files import atomic_path
from maskpro.masked_model import MaskedModel, maskable_layers, model_hash
from maskpro.objectives import HeldOutSamples
from maskpro.objectives.diffusion import PREDICTED
from maskpro.pattern import Layout, NMPattern
from maskpro.precision import Precision
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


def recovery_text(value: float | None) -> str:
    """A recovery for people to read."""
    if value is None or math.isnan(value):
        return "undefined (initial and dense losses are equal)"
    return f"{0.0 if abs(value) < 0.0005 else value:.3f}"


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


def compare_models(
    workload: Workload,
    models: Mapping[str, nn.Module],
    *,
    device: torch.device,
    folder: Path,
    cache: Path | None = None,
    sampler: Sampler = "ddim",
    sampling_steps: int | None = None,
    sampling_precision: Precision = "float32",
    compile_sampling: bool = False,
    compute_frechet: bool = True,
    save_images: bool = False,
    inception_weights: Path | None = None,
    reference_cache: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """`evaluate_models` of "dense", "initial" and "learned" (and others), `with_recovery` of "learned"."""
    report = evaluate_models(
        workload,
        models,
        device=device,
        folder=folder,
        cache=cache,
        sampler=sampler,
        sampling_steps=sampling_steps,
        sampling_precision=sampling_precision,
        compile_sampling=compile_sampling,
        compute_frechet=compute_frechet,
        save_images=save_images,
        inception_weights=inception_weights,
        reference_cache=reference_cache,
        say=say,
    )
    return with_recovery(report, "learned")


def with_recovery(report: Mapping[str, Any], learned: str) -> dict[str, Any]:
    """A report of `evaluate_models` with recovery and loss_improvement, from the test loss, of the network named `learned`.

    Raises:
        MaskproError: the report lacks that network, "initial" or "dense".
    """
    models = report["models"]
    for name in ("dense", "initial", learned):
        if name not in models:
            raise MaskproError(f"models lacks {name!r}, which recovery needs; there are: {', '.join(models)}")
    dense, initial, loss = (models[name]["test_loss"] for name in ("dense", "initial", learned))
    return {
        **report,
        "recovery": recovery(initial, loss, dense),
        "loss_improvement": loss_improvement(initial, loss),
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
    sampling_precision: Precision = "float32",
    compile_sampling: bool = False,
    compute_frechet: bool = True,
    save_images: bool = False,
    inception_weights: Path | None = None,
    reference_cache: Path | None = None,
    make: ChunkMaker = make_chunks,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Judge networks, each under a name of its own, on the same data and noise.

    Writes `samples_<name>.png` (and with `save_images` `images/<name>/`) into `folder`.

    Args:
        cache: folder that keeps each network's figures and, until they are known, its images; what an earlier call left
            there is taken, and one that was killed is gone on with, to the same result. None: nothing is kept.
        reference_cache: folder that keeps the statistics of real images, under the hash of what they were made from.
        make: what makes the images; here, or spread over several processes.
        sampling_steps: default: the workload's budget for "ddim", all steps of the noise schedule for "ddpm".

    Returns: "protocol", and "models" with the figures of each network.

    Raises:
        MaskproError: a sampler that doesn't fit, or Inception weights that can't be had.
    """
    sampling_steps = resolve_sampling(workload, sampler, sampling_steps)
    extractor = None
    if compute_frechet:
        extractor = open_features(workload.features, device=device, inception_weights=inception_weights)
    plan = SamplingPlan(
        scheduler=workload.scheduler,
        shape=tuple(workload.images.train.shape[1:]),
        sampler=sampler,
        steps=sampling_steps,
        seed=GENERATION_SEED,
        batch_size=_SAMPLING_BATCH,
        precision=sampling_precision,
        compile=compile_sampling,
    )
    record = protocol(workload, extractor, device, plan=plan)
    evaluation = _Evaluation(workload, extractor, device, plan=plan, make=make, reference_cache=reference_cache, say=say)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, Any]] = {}
    with nullcontext(cache) if cache is not None else tempfile.TemporaryDirectory() as kept:
        for name, model in models.items():
            model_cache = ModelCache(Path(kept), model, record)
            figures[name] = evaluation.figures(name, model, model_cache, folder / "images" if save_images else None)
            shutil.copyfile(model_cache.grid, folder / f"samples_{name}.png")
    # Of the search: it made the masks, and has no part in the figures of given ones.
    search = {"max_samples": workload.budgets.max_samples, "report_samples": workload.budgets.report_samples}
    return {"protocol": {**record, "search_budgets": search}, "models": figures}


def resolve_sampling(workload: Workload, sampler: Sampler, steps: int | None) -> int:
    """The sampler's steps (None: the workload's for "ddim", all of the noise schedule for "ddpm").

    Raises:
        MaskproError: the sampler doesn't fit the workload's noise schedule.
    """
    if steps is None:
        every: int = workload.scheduler.config["num_train_timesteps"]
        steps = min(workload.budgets.sampling_steps, every) if sampler == "ddim" else every
    check_sampling(workload.scheduler, sampler, steps)
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
        reference_cache: Path | None,
        say: Say,
    ):
        self._workload = workload
        self._extractor = extractor
        self._device = device
        self._plan = plan
        self._make = make
        self._reference_cache = reference_cache
        self._say = say

    def figures(self, name: str, model: nn.Module, cache: ModelCache, images_folder: Path | None) -> dict[str, Any]:
        """The figures of a network, from the cache or made and kept there; images go to `images_folder` if there is one."""
        started = time.monotonic()
        figures, origin = cache.figures(), "from the cache"
        if figures is None or images_folder is not None:
            features, first = FeatureStatistics(), []
            for chunk, images in self._images(name, model.to(self._device), cache):
                if images_folder is not None:
                    write_images(images, chunk, images_folder / name)
                if figures is None and self._extractor is not None:
                    features.add(self._extractor(images))
                if chunk.start < _GRID_IMAGES:
                    first.append(images)
            if figures is None:
                figures = self._judge(model, features)
                cache.keep_figures(figures, torch.cat(first)[:_GRID_IMAGES])
                origin = f"{time.monotonic() - started:.0f} s"
        cache.drop_images()
        distance = figures["frechet_distance"]
        shown = "" if distance is None else f", Frechet distance {distance:.2f}"
        self._say(f"evaluated {name}: test loss {figures['test_loss']:.5f}{shown} ({origin})")
        return figures

    def _judge(self, model: nn.Module, features: FeatureStatistics) -> dict[str, Any]:
        losses = self._test.losses(model)
        return {
            "val_loss": self._validation.mean_loss(model),
            "test_loss": losses.mean().item(),
            "test_loss_by_timestep": self._by_timestep(losses),
            "frechet_distance": self._extractor and frechet_distance(features.result(), self._reference),
            "sparsity": sparsity(model),
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
    def _reference(self) -> dict[str, Any]:
        assert self._extractor is not None
        return reference_statistics(self._workload, self._extractor, self._reference_cache)


def reference_statistics(workload: Workload, extractor: FeatureExtractor, cache: Path | None) -> dict[str, Any]:
    """Feature statistics of the real images: of the whole training set, as FID's protocol has it.

    In `cache` they are kept under the hash of the images, the extractor and the versions that they were made with.
    """
    parts = {"train": workload.images.train, "validation": workload.images.validation}  # which was split off it
    made_from = {
        "images_sha256": {split: _images_hash(images) for split, images in parts.items()},
        "features_sha256": extractor.weights_hash,
        "resizing": extractor.resizing,
        "versions": {package: version(package) for package in ("torch", "torch-fidelity")},
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    path = None if cache is None else cache / f"{key[:32]}.safetensors"
    if path is not None and path.is_file():
        try:
            return {name: value.numpy() for name, value in load_file(path).items()}
        except SafetensorError:
            pass  # broken: made again
    features = FeatureStatistics()
    for images in parts.values():
        for chunk in images.split(_CHUNK):
            features.add(extractor(chunk))
    result = features.result()
    if path is not None:
        with atomic_path(path) as temporary:
            save_file({name: torch.from_numpy(value) for name, value in result.items()}, temporary)
    return result


def _images_hash(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()


def protocol(
    workload: Workload,
    extractor: FeatureExtractor | None,
    device: torch.device,
    *,
    plan: SamplingPlan,
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
        "num_images": {split: len(part) for split, part in splits.items()},
        "images_sha256": {split: _images_hash(part) for split, part in splits.items()},
        "loss": f"MSE of the {PREDICTED[schedule['prediction_type']]} prediction; timesteps stratified over the schedule",
        "num_loss_samples": {"validation": budgets.validation_samples, "test": budgets.test_samples},
        "num_generated": budgets.num_generated,
        **sampling_protocol(plan),
        "noise_schedule": {name: value for name, value in schedule.items() if not name.startswith("_")},
        "seeds": {"validation": VALIDATION_SEED, "test": TEST_SEED, "generation": GENERATION_SEED},
        "frechet_features": extractor and extractor.name,
        "frechet_features_sha256": extractor and extractor.weights_hash,
        "frechet_resizing": extractor and extractor.resizing,
        "frechet_reference": extractor and "training and validation images",
        "num_frechet_reference": extractor and len(images.train) + len(images.validation),
        "device": device.type,
        "dtype": str(workload.model.dtype).removeprefix("torch."),
        "tf32_convolutions": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
        "versions": {
            "torch": str(torch.__version__),
            **{package: version(package) for package in ("torch-fidelity", "diffusers")},
        },
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
