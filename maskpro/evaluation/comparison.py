"""The final comparison: one network dense, with the initial mask and with the learned mask."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.evaluation.frechet import FeatureExtractor, frechet_distance, open_features, statistics
from maskpro.evaluation.sampling import TIMESTEP_SPACING, generate, save_grid, write_images
from maskpro.masked_model import MaskedModel, maskable_layers, model_hash
from maskpro.pattern import Layout, NMPattern
from maskpro.workloads import TEST_SEED, VALIDATION_SEED, Workload

# Of the generated images; far from seeds that users choose.
GENERATION_SEED = 2**32 + 3

# Images sampled together.
_SAMPLING_BATCH = 256

Say = Callable[[str], None]


def recovery(initial: float, learned: float, dense: float) -> float | None:
    """(L_initial - L_learned) / (L_initial - L_dense): 0 = initial mask, 1 = dense; None where the two are equal."""
    return None if initial == dense else (initial - learned) / (initial - dense)


def loss_improvement(initial: float, learned: float) -> float:
    """(L_initial - L_learned) / L_initial."""
    return (initial - learned) / initial


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
    compute_frechet: bool = True,
    save_images: bool = False,
    inception_weights: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Judge networks (name to network; "dense", "initial" and "learned" among them) on the same data and noise.

    Writes `samples_<name>.png` (and with `save_images` `images/<name>/`) into `folder`. Returns the report: the protocol,
    the figures of each network, and recovery and loss_improvement of "learned" from the test loss.
    """
    validation, test = (workload.held_out_samples(split, device) for split in ("validation", "test"))
    budgets = workload.budgets
    extractor = reference = None
    if compute_frechet:
        extractor = open_features(workload.features, device=device, inception_weights=inception_weights)
        # The whole training set, as FID's protocol has it: validation images were split off it.
        reference = statistics(extractor(torch.cat([workload.images.train, workload.images.validation])))
    figures: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        started = time.monotonic()
        model = model.to(device)
        images = generate(
            model,
            workload.scheduler,
            shape=tuple(workload.images.train.shape[1:]),
            count=budgets.num_generated,
            steps=budgets.sampling_steps,
            seed=GENERATION_SEED,
            batch_size=_SAMPLING_BATCH,
            progress=_sampling_progress(name, budgets.num_generated, started, say),
        )
        save_grid(images, folder / f"samples_{name}.png")
        if save_images:
            write_images(images, folder / "images" / name)
        distance = frechet_distance(statistics(extractor(images)), reference) if extractor and reference else None
        figures[name] = {
            "val_loss": validation.mean_loss(model),
            "test_loss": test.mean_loss(model),
            "frechet_distance": distance,
            "sparsity": sparsity(model),
        }
        shown = "" if distance is None else f", Frechet distance {distance:.2f}"
        say(f"evaluated {name}: test loss {figures[name]['test_loss']:.5f}{shown} ({time.monotonic() - started:.0f} s)")
    losses = {name: figure["test_loss"] for name, figure in figures.items()}
    return {
        "protocol": protocol(workload, extractor, device),
        "models": figures,
        "recovery": recovery(losses["initial"], losses["learned"], losses["dense"]),
        "loss_improvement": loss_improvement(losses["initial"], losses["learned"]),
    }


def protocol(workload: Workload, extractor: FeatureExtractor | None, device: torch.device) -> dict[str, Any]:
    """All that a figure of the evaluation depends on besides the masks."""
    images = workload.images
    return {
        "workload": workload.name,
        "model": workload.model_source,
        "model_hash": model_hash(workload.model),
        "data": workload.data_source,
        "num_images": {split: len(images[split]) for split in ("train", "validation", "test")},
        "budgets": asdict(workload.budgets),
        "loss": "MSE of the noise prediction; timesteps stratified over the schedule",
        "sampler": "DDIM, eta 0",
        "timestep_spacing": TIMESTEP_SPACING,
        "seeds": {"validation": VALIDATION_SEED, "test": TEST_SEED, "generation": GENERATION_SEED},
        "frechet_features": None if extractor is None else extractor.name,
        "frechet_features_sha256": None if extractor is None else extractor.weights_hash,
        "frechet_reference": "training and validation images",
        "device": device.type,
        "dtype": "float32",
        "tf32_convolutions": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
    }


def _sampling_progress(name: str, total: int, started: float, say: Say) -> Callable[[int], None]:
    last = started

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10 and done < total:
            last = now
            left = (now - started) / done * (total - done)
            say(f"sampling {name}: {done} of {total} images, about {left:.0f} s left")

    return report
