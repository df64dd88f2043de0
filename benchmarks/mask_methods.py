"""Makes and judges one mask of a network by one method, for the table of `benchmarks.mask_quality`."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.evaluation.comparison import evaluate_models
from maskpro.fidelity import estimate_fidelity
from maskpro.hidden_targets import MEASURED_EVALUATIONS
from maskpro.initial_masks import ONE_SHOT_SAMPLES, magnitude_mask, one_shot_mask
from maskpro.masked_model import MaskedModel, maskable_layers
from maskpro.metrics import recovery
from maskpro.names import Precision
from maskpro.objectives.diffusion import PILOT_EVALUATIONS
from maskpro.pattern import Layout, NMPattern, group_order
from maskpro.runs import MaskFormat, RunCache, build_trainer
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig
from maskpro.workload import Workload
from maskpro.workloads import open_workload
from maskpro.workloads.diffusion import DiffusionWorkload

# Sample evaluations of a learned mask, and of the early look at it. Patterns after the first have the early look only.
EVALUATIONS = 100_000
EARLY_EVALUATIONS = 15_000
_VALIDATIONS = 20
ONE_SHOT = ("random", "magnitude", "wanda", "sparsegpt")

# Value of `targets` that stands for the layers of `last_shortcuts`.
_LAST_SHORTCUTS = "shortcut convolutions of the last up block"

LEARNED: dict[str, dict[str, Any]] = {
    # The original's defaults.
    "MaskPro (as published)": {
        "estimator": "policy_gradient",
        "target": "noise",
        "raw_step": True,
        "lr": 50.0,
        "logits": 10.0,
        "batch_size": 32,
    },
    # Only the last up block's shortcut convolutions are learned: in the embedded network 0.8 % of the groups, with 0.7 of
    # the recovery. One number a step tells too little about all layers.
    "MaskPro (tuned)": {
        "estimator": "policy_gradient",
        "target": "teacher",
        "timesteps": "importance",
        "targets": _LAST_SHORTCUTS,
        "masks_per_step": 32,
        "lr": 24.0,
        "lr_decay": "constant",
        "logits": 4.0,
        "batch_size": 2,
    },
    # Our settings with another estimator.
    "MaskLLM-style": {
        "estimator": "gumbel_softmax",
        "target": "teacher",
        "timesteps": "importance",
        "hidden_targets": 1.0,
        "lr": 0.8,
        "logits": 3.0,
        "final_temperature": 0.5,
        "batch_size": 8,
        "lr_decay": "cosine",
    },
    "maskpro (ours)": {
        "estimator": "relaxed_subset",
        "target": "teacher",
        "timesteps": "importance",
        "hidden_targets": 1.0,
        "lr": 1.0,
        "logits": 3.0,
        "magnitude_prior": 1.4,
        "final_temperature": 0.5,
        "batch_size": 8,
        "lr_decay": "cosine",
    },
    "maskpro (straight-through)": {
        "estimator": "straight_through",
        "target": "teacher",
        "timesteps": "importance",
        "hidden_targets": 1.0,
        "lr": 2.0,
        "logits": 5.0,
        "magnitude_prior": 2.0,
        "batch_size": 8,
        "lr_decay": "cosine",
    },
}
OURS = "maskpro (ours)"
# Each sample is visited twice. The dense network runs once for it; with hidden targets it would run at every visit.
LEARNED["maskpro (output alone)"] = LEARNED[OURS] | {"hidden_targets": 0.0, "visits": 2}
# The original's annealing and temperature, with the best step size for them.
LEARNED["MaskLLM-style (its own annealing)"] = LEARNED["MaskLLM-style"] | {
    "annealing": "linear",
    "final_temperature": 0.05,
    "lr": 0.5,
}
RIVALS = ("MaskLLM-style", "MaskLLM-style (its own annealing)")

# On a language model, found on seeds 0 to 4 of the embedded one. It has no timesteps.
OF_LANGUAGE_MODELS = {
    name: {setting: value for setting, value in LEARNED[name].items() if setting != "timesteps"} | changes
    for name, changes in {
        "MaskPro (as published)": {},
        # Only the first block's attention is learned: 6 % of the groups, on which most of the error hangs.
        "MaskPro (tuned)": {
            "targets": ("layers.0.self_attn",),
            "lr": 40.0,
            "magnitude_prior": 1.4,
            "batch_size": 1,
        },
        "MaskLLM-style": {"lr": 1.6},
        OURS: {"lr": 2.0},
    }.items()
}


def learned_methods(workload: str) -> dict[str, dict[str, Any]]:
    """Learned methods with their settings on a workload."""
    return OF_LANGUAGE_MODELS if workload == "causal_lm" else LEARNED


@dataclass(frozen=True, kw_only=True)
class Job:
    """One mask to be made and judged."""

    method: str
    pattern: str
    seed: int
    layout: Layout = "channel"
    cost: str = "equal samples"
    evaluations: int = EVALUATIONS
    settings: dict[str, Any] = field(default_factory=dict)
    frechet: bool = True


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where masks are made and how they are judged; None: the workload's value.

    Attributes:
        features: what judges images, as for `--features` of the main job.
        held_out: number of validation and test samples.
        test_samples: number of test samples, if another.
        precision: precision of training and of the network while it samples.
        reference_cache: folder with what is known of the real images.
    """

    workload: str
    model: str | None = None
    data: Path | None = None
    device: str = "cpu"
    features: str | None = None
    held_out: int | None = None
    test_samples: int | None = None
    num_generated: int | None = None
    sampling_steps: int | None = None
    precision: Precision = "float32"
    reference_cache: Path | None = None


@cache
def _open(setting: Setting) -> Workload:
    """Open the workload once a process: reading tens of thousands of images takes as long as learning a mask."""
    opened = open_workload(setting.workload, model=setting.model, data=setting.data)
    sizes = {
        "validation_samples": setting.held_out,
        "test_samples": setting.test_samples or setting.held_out,
        "num_generated": setting.num_generated,
    }
    budgets = replace(opened.budgets, **{name: size for name, size in sizes.items() if size is not None})
    return replace(opened, budgets=budgets, **({"features": setting.features} if setting.features else {}))


def last_shortcuts(network: nn.Module) -> tuple[str, ...]:
    """The shortcut convolutions of the last up block among the maskable layers."""
    names = [name for name in maskable_layers(network) if name.startswith("up_blocks.")]
    last = max((int(name.split(".")[1]) for name in names), default=0)
    found = tuple(name for name in names if name.startswith(f"up_blocks.{last}.") and name.endswith("conv_shortcut"))
    if not found:
        raise MaskproError(
            "the network's last up block has no shortcut convolutions; leave MaskPro (tuned) out (--methods)"
        )
    return found


def targets_of(settings: dict[str, Any], network: nn.Module) -> tuple[str, ...]:
    """The learned layers of a network; taken out of the settings."""
    targets = settings.pop("targets", ("all",))
    return last_shortcuts(network) if targets == _LAST_SHORTCUTS else targets


def misplaced_share(masked: MaskedModel) -> float:
    """Share of the groups along the input channels that keep more than the pattern's n, which no sparse kernel takes."""
    groups = misplaced = 0
    for mask in masked.layer_masks().values():
        if mask.shape[1] % masked.pattern.m == 0:
            kept = group_order(mask, "channel").view(-1, masked.pattern.m).sum(dim=1)
            groups, misplaced = groups + len(kept), misplaced + int((kept > masked.pattern.n).sum())
    return misplaced / max(1, groups)


def _clock(place: torch.device) -> float:
    """A clock in seconds: on a CPU the time of this process alone; on a GPU wall time, once its work is done."""
    if place.type == "cuda":
        torch.cuda.synchronize()
        return time.monotonic()
    return time.process_time()


def run_job(job: Job, setting: Setting) -> dict[str, Any]:
    """The row of one job."""
    began = time.monotonic()
    torch.set_num_threads(1)
    workload, place = _open(setting), torch.device(setting.device)
    pattern = NMPattern.parse(job.pattern)
    dense = workload.model.to(place)
    settings = dict(job.settings)
    targets = targets_of(settings, dense)
    masked = MaskedModel(copy.deepcopy(dense), pattern=pattern, layout=job.layout, targets=targets)
    test = workload.held_out_samples("test", place)
    magnitude = magnitude_mask(masked)
    masks = {"dense": torch.ones_like(masked.mask), "initial": magnitude}
    row: dict[str, Any] = {"method": job.method, "pattern": job.pattern, "seed": job.seed, "cost": job.cost}
    if job.method in ONE_SHOT:
        started = _clock(place)
        objective = workload.training_objective(seed=job.seed, device=place)
        mask = one_shot_mask(masked, job.method, objective=objective, generator=torch.Generator().manual_seed(job.seed))
        row |= {
            "seconds": _clock(place) - started,
            "evaluations": ONE_SHOT_SAMPLES if job.method in ("wanda", "sparsegpt") else 0,
        }
    elif job.method == "dense":
        mask = masks["dense"]
        row |= {"seconds": 0.0, "evaluations": 0}
    else:
        masked.set_mask(magnitude)
        started = _clock(place)
        wanted = settings.get("timesteps") == "importance"
        shares = workload.importance_shares(masked.model, place, setting.precision) if wanted else None
        spent = _clock(place) - started
        settings["precision"] = setting.precision
        learned, early, mask = _learn(_trainer(job, settings, shares, workload, targets, place), job)
        row |= {**learned, "seconds": spent + learned["seconds"]}
        if not torch.equal(early, mask):
            masks["early"] = early
    judged = {}
    for name, groups in {**masks, "found": mask}.items():
        masked.set_mask(groups)
        judged[name] = test.judge(masked.model)
    losses = {name: values.means().loss for name, values in judged.items()}
    images = len(workload.images.test) if isinstance(workload, DiffusionWorkload) else None
    found = estimate_fidelity(judged["initial"].errors, judged["found"].errors, images=images)
    row |= {"fidelity": found and found.value, "fidelity_error": found and found.standard_error, "loss": losses["found"]}
    row["perplexity"] = workload.evaluation({}).figures_of_loss(losses["found"], 0.0).get("perplexity")
    row["error"] = judged["found"].errors.mean().item()
    row["misplaced"] = misplaced_share(masked)  # of the found mask, which was judged last
    row["recovery"] = recovery(losses["initial"], losses["found"], losses["dense"])
    if job.settings:
        early_found = estimate_fidelity(judged["initial"].errors, judged.get("early", judged["found"]).errors)
        row["early"] = early_found and early_found.value
    if job.frechet and isinstance(workload, DiffusionWorkload):
        with tempfile.TemporaryDirectory() as folder:
            report = evaluate_models(
                workload,
                {"found": masked.model},
                device=place,
                folder=Path(folder),
                cache=None,
                sampling_steps=setting.sampling_steps,
                sampling_precision=setting.precision,
                reference_cache=setting.reference_cache,
            )
        row["frechet"] = report["models"]["found"]["frechet_distance"]
    row["wall_seconds"] = time.monotonic() - began
    print(row, flush=True)
    return row


def _trainer(
    job: Job,
    settings: dict[str, Any],
    shares: tuple[float, ...] | None,
    workload: Workload,
    targets: tuple[str, ...],
    device: torch.device,
) -> MaskTrainer:
    masks = settings.get("masks_per_step", 1)
    forward_only = settings["estimator"] == "policy_gradient"
    # Evaluations of a sample: passes of each visit, and one for its teacher's output or baseline loss. With hidden targets
    # the dense network runs at each visit instead of once.
    visits, hidden = settings.pop("visits", 1), bool(settings.get("hidden_targets"))
    left = job.evaluations - (PILOT_EVALUATIONS if shares else 0) - (MEASURED_EVALUATIONS if hidden else 0)
    passes = masks if forward_only else 3
    distinct = max(settings["batch_size"], left // (visits * (passes + 1) if hidden else visits * passes + 1))
    config = TrainerConfig(**settings, dataset_size=distinct, budget_samples=distinct * visits * masks, seed=job.seed)
    cache = RunCache(shares={} if shares is None else {config.precision: shares})
    form = MaskFormat(job.pattern, job.layout)
    return build_trainer(workload, config, form, seed=job.seed, device=device, targets=targets, cache=cache)


def _learn(trainer: MaskTrainer, job: Job) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Train to the end of the budget; returns the cost, and the best masks of the first 15,000 evaluations and of all."""
    config, seconds, early = trainer.config, 0.0, trainer.best_mask
    early_samples = config.budget_samples * min(EARLY_EVALUATIONS, job.evaluations) // job.evaluations
    stops = {config.budget_samples * part // _VALIDATIONS for part in range(1, _VALIDATIONS + 1)} | {early_samples}
    for stop in sorted(stops):
        count = (stop - trainer.num_samples_seen) // config.masks_per_step * config.masks_per_step
        started = _clock(trainer.masked.base.device)
        trainer.train(count)
        seconds += _clock(trainer.masked.base.device) - started
        trainer.validate()
        if stop == early_samples:
            early = trainer.best_mask
    return {"seconds": seconds, "evaluations": job.evaluations}, early, trainer.best_mask
