"""The protocol of an evaluation of images: all that a figure depends on besides the network's weights."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskpro.evaluation.distances import NEIGHBOURS, SAMPLE_SEED, SAMPLE_SIZE
from maskpro.evaluation.features import FeatureExtractor
from maskpro.evaluation.references import images_hash
from maskpro.evaluation.sampling import SamplingPlan, sampling_protocol
from maskpro.files import file_hash
from maskpro.held_out import TEST_SEED, VALIDATION_SEED
from maskpro.masked_model import model_hash
from maskpro.objectives.diffusion import PREDICTED

if TYPE_CHECKING:
    from maskpro.workloads.diffusion import DiffusionWorkload


def protocol(
    workload: DiffusionWorkload,
    extractor: FeatureExtractor | None,
    device: torch.device,
    *,
    plan: SamplingPlan,
    reference_statistics: Path | None = None,
) -> dict[str, Any]:
    """All that a figure depends on besides the network's weights, as plain JSON; figures are kept under its hash."""
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
    workload: DiffusionWorkload, extractor: FeatureExtractor | None, reference_statistics: Path | None
) -> dict[str, Any]:
    """What generated images are compared with, and how; values are None where they are not compared."""
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
