"""The final comparison: one network dense, with the initial mask and with the learned mask."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from maskpro.evaluation.cache import ModelCache
from maskpro.evaluation.distances import few_images_warnings
from maskpro.evaluation.features import FeatureExtractor, open_features
from maskpro.evaluation.figures import GRID_IMAGES, SAMPLING_BATCH, Judge
from maskpro.evaluation.protocol import protocol
from maskpro.evaluation.references import read_reference
from maskpro.evaluation.sampling import Sampler, SamplingPlan, check_sampling
from maskpro.evaluation.timesteps import TimestepSpacing
from maskpro.fidelity import paired_difference
from maskpro.machine.process import Say
from maskpro.metrics import relative_figures, with_recovery
from maskpro.names import SamplingPrecision
from maskpro.objectives import HeldOutValues
from maskpro.precision import resolve_sampling_precision
from maskpro.workload_evaluation import PartMaker, make_parts

if TYPE_CHECKING:
    from maskpro.workloads.diffusion import DiffusionWorkload

# Seed of the generated images' noise, far from seeds that users choose.
GENERATION_SEED = 2**32 + 3


def with_distances(report: Mapping[str, Any], learned: str) -> dict[str, Any]:
    """`with_recovery`, and the differences of Frechet and kernel distance between the network named `learned` and the dense
    network, over the same disjoint sets of images.

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
    """Judge the named networks on the same data and noise.

    Writes `samples_<name>.png` (and with `save_images` `images/<name>/`) into `folder`.

    Args:
        cache: folder that keeps each network's figures and, until these are known, its images. Figures and images that
            an earlier call left are taken, so a killed call resumes with the same result. None: nothing is kept.
        compute_frechet: judge images by the workload's features: Frechet distance, kernel distance, precision and recall.
        reference_statistics: .npz file with the statistics of real images other than the workload's (`read_reference`).
        reference_cache: folder that keeps the features of real images, under the hash of their source.
        make: makes the images, here or spread over several processes.
        sampling_steps: default: the workload's budget for "ddim", all steps of the noise schedule for "ddpm".
        generation_seed: seed of the images' noise, which all networks share.
        initials: network's name to the name of the network with its initial mask; fidelity is measured from the latter.
            Default: "initial", where there is one of that name.
        sampling_precision, compile_sampling: `resolve_sampling_precision` explains "auto" and None.

    Returns: "protocol", "warnings" (sentences about what the figures can't tell), and "models" with the figures of each.

    Raises:
        MaskproError: a sampler, precision or reference doesn't fit, or features can't be loaded.
    """
    sampling_steps = resolve_sampling(workload, sampler, sampling_steps, timestep_spacing)
    shape = tuple(workload.images.train.shape[1:])
    extractor, reference = None, None
    if compute_frechet:
        extractor = open_features(workload.features, device=device, shape=shape, inception_weights=inception_weights)
        if reference_statistics is not None:
            reference = read_reference(reference_statistics, extractor)
    count = workload.budgets.num_generated
    if not compute_frechet and not save_images:
        count = min(count, GRID_IMAGES)  # for a picture
    resolved = resolve_sampling_precision(sampling_precision, compile_sampling, device, passes=count * sampling_steps)
    plan = SamplingPlan(
        scheduler=workload.scheduler,
        shape=shape,
        sampler=sampler,
        steps=sampling_steps,
        spacing=timestep_spacing,
        seed=generation_seed,
        batch_size=SAMPLING_BATCH,
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
    judge = Judge(
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
    on_test: dict[str, HeldOutValues] = {}
    with nullcontext(cache) if cache is not None else tempfile.TemporaryDirectory() as kept:
        for name, model in models.items():
            model_cache = ModelCache(Path(kept), model, record)
            figures[name] = judge.figures(name, model, model_cache, folder / "images" if save_images else None)
            on_test[name] = model_cache.values()
            shutil.copyfile(model_cache.grid, folder / f"samples_{name}.png")
    if initials is None:
        initials = dict.fromkeys(models, "initial") if "initial" in models else {}
    for name, relative in relative_figures(on_test, initials, images=len(workload.images.test)).items():
        figures[name] = relative | figures[name]
    # The search's budgets shaped the masks, but have no part in the figures of given masks.
    search = {"max_samples": workload.budgets.max_samples, "report_samples": workload.budgets.report_samples}
    # Nor have the numbers of files read and passed over.
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
