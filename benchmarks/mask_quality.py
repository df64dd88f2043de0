"""The masks of every method on one network: quality for what they cost.

python -m benchmarks.mask_quality             # the tables of RESULTS.md: 3 seeds, the embedded workload, two processes
python -m benchmarks.mask_quality --quick     # a minute: one seed and little of everything, to see that it runs
python -m benchmarks.mask_quality --workload cifar10 --model FOLDER --data FOLDER --device cuda --processes 1

A sample evaluation is one forward pass of one sample; a backward pass counts as two more. The teacher's outputs and the
initial mask's losses cost one for each sample that they are computed for, once, and so do the samples that tell how often
each part of the noise schedule is sampled. Seconds are those of learning, all this included, one thread a process, without
validation. Held-out loss, recovery and fidelity are those of test samples that chose nothing; of each run the mask is
taken that training keeps by its validation losses. Fidelity is 1 - E_found / E_initial, E the mean squared difference from
the dense network's outputs: 0 for the initial mask, 1 for the dense network.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor, nn

from benchmarks.report import hardware_line, print_table
from maskpro.cli import run_command
from maskpro.errors import MaskproError
from maskpro.evaluation.comparison import evaluate_models, recovery
from maskpro.hidden_targets import MEASURED_EVALUATIONS
from maskpro.initial_masks import ONE_SHOT_SAMPLES, magnitude_mask, one_shot_mask
from maskpro.masked_model import MaskedModel
from maskpro.objectives import baseline_losses, teacher_outputs
from maskpro.objectives.diffusion import PILOT_EVALUATIONS
from maskpro.pattern import NMPattern
from maskpro.trainer import MaskTrainer, TrainerConfig
from maskpro.workloads import Workload, open_workload

# Sample evaluations of a learned mask, and of the early look at it, which is all that patterns after the first get.
EVALUATIONS = 100_000
EARLY_EVALUATIONS = 15_000
# Of the policy gradients, as a share of that: 2,000 forward passes of 32 samples.
_FORWARD_ONLY_SHARE = 64_000 / EVALUATIONS

_VALIDATIONS = 20
_ONE_SHOT = ("random", "magnitude", "wanda", "sparsegpt")

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
    # The last up block's shortcut convolutions alone, 0.8 % of the groups, which hold 0.7 of the recovery: one number a
    # step tells too little of all layers.
    "MaskPro (tuned)": {
        "estimator": "policy_gradient",
        "target": "teacher",
        "timesteps": "importance",
        "targets": ("up_blocks.1.resnets.0.conv_shortcut", "up_blocks.1.resnets.1.conv_shortcut"),
        "masks_per_step": 32,
        "lr": 24.0,
        "lr_decay": "constant",
        "logits": 4.0,
        "batch_size": 2,
    },
    # With all that ours has and it gains from, as far as was tried (not the blocks' outputs as targets).
    "MaskLLM-style": {
        "estimator": "gumbel_softmax",
        "target": "teacher",
        "timesteps": "importance",
        "visits": 2,
        "lr": 0.5,
        "logits": 3.0,
        "batch_size": 8,
        "lr_decay": "cosine",
    },
    "maskpro (ours)": {
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
# The original's own annealing.
LEARNED["MaskLLM-style, linear"] = LEARNED["MaskLLM-style"] | {"annealing": "linear"}
_RIVALS = ("MaskLLM-style", "MaskLLM-style, linear")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One mask to be made and judged."""

    method: str
    pattern: str
    seed: int
    cost: str = "equal samples"
    evaluations: int = EVALUATIONS
    settings: dict[str, Any] = field(default_factory=dict)
    frechet: bool = True


def fidelity(initial: Tensor, found: Tensor) -> tuple[float, float]:
    """1 - E_found / E_initial from the squared differences to the dense network per sample, `[B]`, and its standard error.

    The error is that over samples, both masks on the same ones (ratio estimator, delta method); nan where the initial mask
    changes no output.
    """
    share = (found.mean() / initial.mean()).item() if initial.any() else math.nan
    spread = (found - share * initial).std() / initial.mean() / math.sqrt(len(initial))
    return 1 - share, spread.item()


def _open(name: str, *, model: str | None, data: Path | None, held_out: int | None) -> Workload:
    opened = open_workload(name, model=model, data=data)
    if held_out is None:
        return opened
    budgets = replace(opened.budgets, validation_samples=held_out, test_samples=held_out)
    return replace(opened, budgets=budgets)


def run_job(job: Job, open_: partial[Workload], device: str) -> dict[str, Any]:
    """The row of one job."""
    torch.set_num_threads(1)
    workload, place = open_(), torch.device(device)
    pattern = NMPattern.parse(job.pattern)
    dense = workload.model.to(place)
    settings = dict(job.settings)
    targets = settings.pop("targets", ("all",))
    masked = MaskedModel(copy.deepcopy(dense), pattern=pattern, layout="channel", targets=targets)
    test = workload.held_out_samples("test", place)
    magnitude = magnitude_mask(masked)
    masks = {"dense": torch.ones_like(masked.mask), "initial": magnitude}
    row: dict[str, Any] = {"method": job.method, "pattern": job.pattern, "seed": job.seed, "cost": job.cost}
    if job.method in _ONE_SHOT:
        started = time.monotonic()
        objective = workload.training_objective(seed=job.seed, device=place)
        mask = one_shot_mask(masked, job.method, objective=objective, generator=torch.Generator().manual_seed(job.seed))
        row |= {
            "seconds": time.monotonic() - started,
            "evaluations": ONE_SHOT_SAMPLES if job.method in ("wanda", "sparsegpt") else 0,
        }
    elif job.method == "dense":
        mask = masks["dense"]
        row |= {"seconds": 0.0, "evaluations": 0}
    else:
        masked.set_mask(magnitude)
        started = time.monotonic()
        wanted = settings.get("timesteps") == "importance"
        shares = workload.timestep_shares(masked.model, place) if wanted else None
        spent = time.monotonic() - started
        learned, early, mask = _learn(_trainer(job, settings, shares, workload, dense, masked), job)
        row |= {**learned, "seconds": spent + learned["seconds"]}
        masks["early"] = early
    losses, differences, teacher = {}, {}, test.outputs(dense)
    for name, groups in {**masks, "found": mask}.items():
        masked.set_mask(groups)
        losses[name] = test.mean_loss(masked.model)
        differences[name] = test.teacher_losses(masked.model, teacher)
    row["loss"] = losses["found"]
    for name, suffix in (("found", ""), ("early", "_early")):
        if name in losses:
            row["recovery" + suffix] = recovery(losses["initial"], losses[name], losses["dense"])
            row["fidelity" + suffix], row["error" + suffix] = fidelity(differences["initial"], differences[name])
    if job.frechet:
        with tempfile.TemporaryDirectory() as folder:
            report = evaluate_models(workload, {"found": masked.model}, device=place, folder=Path(folder), cache=None)
        row["frechet"] = report["models"]["found"]["frechet_distance"]
    print(row, flush=True)
    return row


def _trainer(
    job: Job,
    settings: dict[str, Any],
    shares: tuple[float, ...] | None,
    workload: Workload,
    dense: nn.Module,
    masked: MaskedModel,
) -> MaskTrainer:
    device, masks = masked.base.device, settings.get("masks_per_step", 1)
    forward_only = settings["estimator"] == "policy_gradient"
    # Of a sample: passes of each of its visits, and one for its teacher's output or baseline loss.
    # With hidden targets the dense network runs at each visit instead of once.
    visits, hidden = settings.pop("visits", 1), bool(settings.get("hidden_targets"))
    left = job.evaluations - (PILOT_EVALUATIONS if shares else 0) - (MEASURED_EVALUATIONS if hidden else 0)
    passes = masks if forward_only else 3
    distinct = max(settings["batch_size"], left // (visits * (passes + 1) if hidden else visits * passes + 1))
    config = TrainerConfig(**settings, dataset_size=distinct, budget_samples=distinct * visits * masks, seed=job.seed)
    objective = workload.training_objective(seed=job.seed, device=device, shares=shares)
    teacher = teacher_outputs(dense, objective) if config.target == "teacher" else None
    return MaskTrainer(
        config,
        masked=masked,
        objective=objective,
        validation=workload.held_out_samples("validation", device),
        teacher=teacher,
        baseline=baseline_losses(copy.deepcopy(masked.model), objective, teacher) if forward_only else None,
        dense=dense,
    )


def _learn(trainer: MaskTrainer, job: Job) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Train to the end of the budget: what it cost, and the best masks of the first 15,000 evaluations and of all."""
    config, seconds, early = trainer.config, 0.0, trainer.best_mask
    early_samples = config.budget_samples * min(EARLY_EVALUATIONS, job.evaluations) // job.evaluations
    stops = {config.budget_samples * part // _VALIDATIONS for part in range(1, _VALIDATIONS + 1)} | {early_samples}
    for stop in sorted(stops):
        count = (stop - trainer.num_samples_seen) // config.masks_per_step * config.masks_per_step
        started = time.monotonic()
        trainer.train(count)
        seconds += time.monotonic() - started
        trainer.validate()
        if stop == early_samples:
            early = trainer.best_mask
    return {"seconds": seconds, "evaluations": job.evaluations}, early, trainer.best_mask


def _jobs(patterns: tuple[str, ...], seeds: range, evaluations: int, methods: tuple[str, ...]) -> list[Job]:
    """The jobs of the first round: everything at equal samples; without `methods` all of them."""
    jobs = [Job(method="dense", pattern=patterns[0], seed=0), Job(method="magnitude", pattern=patterns[0], seed=0)]
    for seed in seeds:
        for method in ("random", "wanda", "sparsegpt"):
            jobs.append(Job(method=method, pattern=patterns[0], seed=seed))
        for method, settings in LEARNED.items():
            job = Job(method=method, pattern=patterns[0], seed=seed, evaluations=evaluations, settings=settings)
            if settings["estimator"] == "policy_gradient":
                fewer = round(evaluations * _FORWARD_ONLY_SHARE)
                job = replace(job, evaluations=fewer, cost=f"{fewer:,} evaluations")
            jobs.append(job)
    for pattern in patterns[1:]:
        jobs.append(Job(method="magnitude", pattern=pattern, seed=0))
        for seed in seeds:
            jobs.append(Job(method="sparsegpt", pattern=pattern, seed=seed))
            for method in ("MaskLLM-style", OURS):
                settings = LEARNED[method]
                few = min(EARLY_EVALUATIONS, evaluations)
                jobs.append(Job(method=method, pattern=pattern, seed=seed, evaluations=few, settings=settings))
    return [job for job in jobs if not methods or job.method in methods]


def _length(job: Job) -> int:
    return job.evaluations if job.settings else 0


def _as_long(rows: pd.DataFrame, jobs: list[Job]) -> list[Job]:
    """The second round: the nearest rivals, with the evaluations that take as many seconds as ours took on average."""
    seconds = rows[rows["pattern"] == jobs[0].pattern].groupby("method")["seconds"].mean()
    if OURS not in seconds.index:
        return []
    return [
        replace(job, cost="equal seconds", evaluations=round(job.evaluations * seconds[OURS] / seconds[job.method]))
        for job in jobs
        if job.pattern == jobs[0].pattern and job.method in _RIVALS and job.method in seconds
    ]


def _summary(rows: pd.DataFrame) -> list[dict[str, str]]:
    """A line per method, pattern and cost: means, and half the range between seeds."""

    def spread(values: pd.Series, digits: int) -> str:
        if values.isna().any():
            return ""
        around = f" ± {(values.max() - values.min()) / 2:.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{around}"

    lines = []
    for (pattern, method, cost), part in rows.groupby(["pattern", "method", "cost"], sort=False):
        lines.append(
            {
                "pattern": pattern,
                "method": method,
                "fidelity": spread(part["fidelity"], 4),
                "standard error over samples": f"{part['error'].mean():.4f}",
                "fidelity at 15,000 evaluations": spread(part["fidelity_early"], 4),
                "held-out loss": spread(part["loss"], 5),
                "recovery": spread(part["recovery"], 3),
                "recovery at 15,000": spread(part["recovery_early"], 3),
                "Frechet distance": spread(part["frechet"], 1),
                "evaluations": f"{part['evaluations'].mean():,.0f}",
                "seconds": f"{part['seconds'].mean():.0f}",
                "compared at": cost if part["evaluations"].mean() > ONE_SHOT_SAMPLES else "",
            }
        )
    return lines


def main(
    seeds: Annotated[int, typer.Option(help="Of calibration samples and masks.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The settings here were found on 0 to 4.")] = 5,
    evaluations: Annotated[int, typer.Option(help="Sample evaluations of each learned mask.")] = EVALUATIONS,
    patterns: Annotated[str, typer.Option(help="The first one is compared in full.")] = "2:4 1:4 4:8",
    methods: Annotated[str, typer.Option(help="These alone, with commas between them; default: all.")] = "",
    workload: Annotated[str, typer.Option(help="digits (embedded) or cifar10.")] = "digits",
    model: Annotated[str | None, typer.Option(help="Diffusers DDPM folder or hub name.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of images.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    processes: Annotated[int, typer.Option(help="Masks at a time.")] = 2,
    frechet: Annotated[bool, typer.Option(help="Also the Frechet distance, of the first pattern.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="One seed and little of everything: does it run?")] = False,
) -> None:
    """Print the table of masks: fidelity, loss, recovery, Frechet distance and cost of every method."""
    started = time.monotonic()
    chosen = tuple(patterns.split())
    if quick:
        seeds, evaluations, frechet, chosen = 1, 1_600, False, chosen[:2]
    open_ = partial(_open, workload, model=model, data=data, held_out=128 if quick else None)
    run = partial(run_job, open_=open_, device=device)
    named = tuple(name.strip() for name in methods.split(",") if name.strip())
    known = ("dense", *_ONE_SHOT, *LEARNED)
    for name in named:
        if name not in known:
            raise MaskproError(f"methods holds {name!r}; allowed: {', '.join(known)}")
    planned = _jobs(chosen, range(first_seed, first_seed + seeds), evaluations, named)
    jobs = [replace(job, frechet=frechet and job.pattern == chosen[0]) for job in planned]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        # The longest first, so that the processes end together; the table in the order of the jobs.
        longest_first = sorted(range(len(jobs)), key=lambda place: -_length(jobs[place]))
        rows = pd.DataFrame(pool.map(run, [jobs[place] for place in longest_first]), index=longest_first).sort_index()
        rows = pd.concat([rows, pd.DataFrame(pool.map(run, _as_long(rows, jobs)))], ignore_index=True)
    rows = rows.reindex(columns=[*rows.columns, *({"frechet", "recovery_early", "fidelity_early"} - set(rows.columns))])
    minutes = (time.monotonic() - started) / 60
    title = f"{workload}, {seeds} seeds, {minutes:.0f} min with {processes} processes; {hardware_line()}"
    print_table(title, _summary(rows.sort_values("pattern", key=lambda values: values.map(chosen.index), kind="stable")))


if __name__ == "__main__":
    run_command(main)
