"""The masks of every method on one network: quality for what they cost.

python -m benchmarks.mask_quality             # the tables of RESULTS.md: 3 seeds, the embedded workload, two processes
python -m benchmarks.mask_quality --quick     # a minute: one seed and little of everything, to see that it runs
python -m benchmarks.mask_quality --workload cifar10 --model FOLDER --data FOLDER --device cuda --processes 1

With --minutes it goes seed by seed and begins no mask that the time left would not see ended; with --rows what is done is
kept in a file, and the same command goes on from it.

A sample evaluation is one forward pass of one sample; a backward pass counts as two more. The teacher's outputs and the
initial mask's losses cost one for each sample that they are computed for, once, and so do the samples that tell how often
each part of the noise schedule is sampled. Seconds are those of learning, all this included, one thread a process, without
validation. Held-out loss and recovery are those of test samples that chose nothing; of each run the mask is taken that
training keeps by its validation losses.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor, nn

from benchmarks.report import hardware_line, print_table
from benchmarks.resumable import Deadline, Rows
from maskpro.cli import run_command
from maskpro.errors import MaskproError
from maskpro.evaluation.comparison import evaluate_models, recovery
from maskpro.initial_masks import ONE_SHOT_SAMPLES, magnitude_mask, one_shot_mask
from maskpro.masked_model import MaskedModel, maskable_layers
from maskpro.objectives import baseline_losses, teacher_outputs
from maskpro.objectives.diffusion import PILOT_EVALUATIONS
from maskpro.pattern import NMPattern
from maskpro.precision import Precision, parse_precision
from maskpro.trainer import MaskTrainer, TrainerConfig
from maskpro.workloads import Workload, open_workload

# Sample evaluations of a learned mask, and of the early look at it, which is all that patterns after the first get.
EVALUATIONS = 100_000
EARLY_EVALUATIONS = 15_000
# Of the policy gradients, as a share of that: 2,000 forward passes of 32 samples.
_FORWARD_ONLY_SHARE = 64_000 / EVALUATIONS

_VALIDATIONS = 20
_EQUAL_SECONDS = "equal seconds"
_ONE_SHOT = ("random", "magnitude", "wanda", "sparsegpt")

# Of `targets`: see `last_shortcuts`.
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
    # The last up block's shortcut convolutions alone, of the embedded network 0.8 % of the groups, which hold 0.7 of the
    # recovery: one number a step tells too little of all layers.
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
    "MaskLLM-style": {
        "estimator": "gumbel_softmax",
        "target": "teacher",
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
        "visits": 2,
        "lr": 2.0,
        "logits": 5.0,
        "magnitude_prior": 2.0,
        "batch_size": 8,
        "lr_decay": "cosine",
    },
}
OURS = "maskpro (ours)"


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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where masks are made and how they are judged; None: as the workload has it.

    Attributes:
        features: what judges images, as `--features` of the main job.
        held_out: validation and test samples.
        precision: of training and of the network while it samples.
        reference_cache: folder that keeps what is known of the real images.
    """

    workload: str
    model: str | None = None
    data: Path | None = None
    device: str = "cpu"
    features: str | None = None
    held_out: int | None = None
    num_generated: int | None = None
    sampling_steps: int | None = None
    precision: Precision = "float32"
    reference_cache: Path | None = None


@cache
def _open(setting: Setting) -> Workload:
    """Once a process: to read tens of thousands of images takes as long as to learn a mask."""
    opened = open_workload(setting.workload, model=setting.model, data=setting.data)
    held_out, generated, budgets = setting.held_out, setting.num_generated, opened.budgets
    if held_out is not None:
        budgets = replace(budgets, validation_samples=held_out, test_samples=held_out)
    if generated is not None:
        budgets = replace(budgets, num_generated=generated)
    return replace(opened, budgets=budgets, features=setting.features or opened.features)


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


def run_job(job: Job, setting: Setting) -> dict[str, Any]:
    """The row of one job."""
    began = time.monotonic()
    torch.set_num_threads(1)
    workload, place = _open(setting), torch.device(setting.device)
    pattern = NMPattern.parse(job.pattern)
    dense = workload.model.to(place)
    settings = dict(job.settings)
    targets = last_shortcuts(dense) if settings.pop("targets", None) == _LAST_SHORTCUTS else ("all",)
    masked = MaskedModel(copy.deepcopy(dense), pattern=pattern, layout="channel", targets=targets)
    test = workload.held_out_samples("test", place)
    magnitude = magnitude_mask(masked)
    masks = {"dense": torch.ones_like(masked.mask), "initial": magnitude}
    row: dict[str, Any] = {"method": job.method, "pattern": job.pattern, "seed": job.seed, "cost": job.cost}
    if job.method in _ONE_SHOT:
        started = time.monotonic()
        objective = workload.training_objective(seed=job.seed, device=place)
        mask = one_shot_mask(masked, job.method, objective=objective, generator=torch.Generator().manual_seed(job.seed))
        if place.type == "cuda":
            torch.cuda.synchronize()
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
        settings["precision"] = setting.precision
        learned, early, mask = _learn(_trainer(job, settings, shares, workload, dense, masked), job)
        row |= {**learned, "seconds": spent + learned["seconds"]}
        masks["early"] = early
    losses = {}
    for name, groups in {**masks, "found": mask}.items():
        masked.set_mask(groups)
        losses[name] = test.mean_loss(masked.model)
    row["loss"] = losses["found"]
    for name, column in (("found", "recovery"), ("early", "early")):
        if name in losses:
            row[column] = recovery(losses["initial"], losses[name], losses["dense"])
    if job.frechet:
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
    dense: nn.Module,
    masked: MaskedModel,
) -> MaskTrainer:
    device, masks = masked.base.device, settings.get("masks_per_step", 1)
    forward_only = settings["estimator"] == "policy_gradient"
    # Of a sample: passes of each of its visits, and one for its teacher's output or baseline loss.
    visits = settings.pop("visits", 1)
    left = job.evaluations - (PILOT_EVALUATIONS if shares else 0)
    distinct = max(settings["batch_size"], left // (visits * (masks if forward_only else 3) + 1))
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
        if trainer.masked.base.device.type == "cuda":
            torch.cuda.synchronize()
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
    """The second part of a round: the nearest rival, with the evaluations that take as many seconds as ours took."""
    rows = rows[(rows["pattern"] == jobs[0].pattern) & (rows["cost"] != _EQUAL_SECONDS)]
    seconds = rows[rows["seed"].isin({job.seed for job in jobs})].groupby("method")["seconds"].mean()
    if not {OURS, "MaskLLM-style"} <= set(seconds.index):
        return []
    return [
        replace(job, cost=_EQUAL_SECONDS, evaluations=round(job.evaluations * seconds[OURS] / seconds[job.method]))
        for job in jobs
        if job.pattern == jobs[0].pattern and job.method == "MaskLLM-style"
    ]


class Runner:
    """Makes masks that are not in `rows` yet, while there is time, and keeps a row of each.

    Args:
        rows: of earlier sessions too; only those of the same `setting` and of the same evaluations are taken.
    """

    def __init__(self, setting: Setting, *, processes: int, rows: Rows | None, deadline: Deadline | None):
        self._setting, self._processes, self._rows, self._deadline = setting, processes, rows, deadline
        self._made: dict[str, dict[str, Any]] = {}
        for row in rows.read() if rows else []:
            self._made[row.pop("key")] = row
        self.num_left_out = 0

    def run(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """The rows of all jobs that were made, now or earlier, in the jobs' order."""
        missing = [job for job in jobs if self._key(job) not in self._made]
        # The longest first, so that the processes end together.
        missing.sort(key=lambda job: -_length(job) if self._deadline is None else 0)
        with ProcessPoolExecutor(self._processes, mp_context=get_context("spawn")) as pool:
            if self._deadline is None:
                running = {pool.submit(run_job, job, self._setting): job for job in missing}
                for done in as_completed(running):
                    self._keep(running[done], done.result())
            else:  # one at a time: whether the next one is begun depends on how long those before it took
                for job in missing:
                    if self._fits(job):
                        self._keep(job, pool.submit(run_job, job, self._setting).result())
                    else:
                        self.num_left_out += 1
        return pd.DataFrame([self._made[self._key(job)] for job in jobs if self._key(job) in self._made])

    def _key(self, job: Job) -> str:
        return json.dumps([asdict(job), asdict(self._setting)], sort_keys=True, default=str)

    def _keep(self, job: Job, row: dict[str, Any]) -> None:
        self._made[self._key(job)] = row
        if self._rows is not None:
            self._rows.add({"key": self._key(job), **row})

    def _fits(self, job: Job) -> bool:
        """Whether a job is likely to end in time, by those of its method, or else by the longest there was."""
        assert self._deadline is not None
        of_method = [
            row["wall_seconds"] * max(1.0, job.evaluations / max(1, row["evaluations"]))
            for row in self._made.values()
            if row["method"] == job.method
        ]
        longest = [row["wall_seconds"] for row in self._made.values()]
        return max(of_method or longest, default=0.0) < self._deadline.left


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
                "held-out loss": spread(part["loss"], 5),
                "recovery": spread(part["recovery"], 3),
                "at 15,000 evaluations": spread(part["early"], 3),
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
    features: Annotated[str | None, typer.Option(help="What judges images; default: the workload's.")] = None,
    held_out: Annotated[int | None, typer.Option(help="Validation and test samples; default: the workload's.")] = None,
    num_generated: Annotated[int | None, typer.Option(help="Images judged; default: the workload's.")] = None,
    sampling_steps: Annotated[int | None, typer.Option(help="Of DDIM; default: the workload's.")] = None,
    precision: Annotated[str, typer.Option(help="Of training and sampling: float32 or bfloat16.")] = "float32",
    reference_cache: Annotated[Path | None, typer.Option(help="Folder that keeps what is known of real images.")] = None,
    rows: Annotated[Path | None, typer.Option(help="File that keeps what is done, to go on from.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Go seed by seed, and end in time.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed and little of everything: does it run?")] = False,
) -> None:
    """Print the table of masks: loss, recovery, Frechet distance and cost of every method."""
    chosen = tuple(patterns.split())
    if quick:
        seeds, evaluations, frechet, chosen, held_out = 1, 1_600, False, chosen[:2], held_out or 128
    setting = Setting(
        workload=workload,
        model=model,
        data=data,
        device=device,
        features=features,
        held_out=held_out,
        num_generated=num_generated,
        sampling_steps=sampling_steps,
        precision=parse_precision(precision),
        reference_cache=reference_cache,
    )
    measure(
        setting,
        patterns=chosen,
        seeds=range(first_seed, first_seed + seeds),
        evaluations=evaluations,
        methods=tuple(name.strip() for name in methods.split(",") if name.strip()),
        frechet=frechet,
        processes=processes,
        rows=None if rows is None else Rows(rows),
        deadline=None if minutes is None else Deadline(minutes),
    )


def measure(
    setting: Setting,
    *,
    patterns: tuple[str, ...],
    seeds: range,
    evaluations: int,
    methods: tuple[str, ...] = (),
    frechet: bool = True,
    processes: int = 1,
    rows: Rows | None = None,
    deadline: Deadline | None = None,
) -> list[dict[str, str]]:
    """Make the masks and print their table; its lines.

    Raises:
        MaskproError: a method or a setting that is not allowed.
    """
    started = time.monotonic()
    known = ("dense", *_ONE_SHOT, *LEARNED)
    for name in methods:
        if name not in known:
            raise MaskproError(f"methods holds {name!r}; allowed: {', '.join(known)}")
    runner = Runner(setting, processes=processes, rows=rows, deadline=deadline)
    made = []
    # All seeds together, or seed by seed where time may run out between them.
    for round_seeds in [seeds] if deadline is None else [range(seed, seed + 1) for seed in seeds]:
        planned = _jobs(patterns, round_seeds, evaluations, methods)
        jobs = [replace(job, frechet=frechet and job.pattern == patterns[0]) for job in planned]
        first = runner.run(jobs)
        made += [first, runner.run(_as_long(first, jobs)) if len(first) else first]
    table = pd.concat(made, ignore_index=True).drop_duplicates(["method", "pattern", "seed", "cost"])
    if not len(table):
        raise MaskproError("minutes is too short for a single mask; allowed: more")
    table = table.reindex(columns=[*table.columns, *({"frechet", "early"} - set(table.columns))])
    minutes = (time.monotonic() - started) / 60
    left_out = f", {runner.num_left_out} masks left out for lack of time" if runner.num_left_out else ""
    num_seeds = table[table["method"] != "dense"].groupby("method")["seed"].nunique().max()
    title = (
        f"{setting.workload}, {num_seeds} seeds, {minutes:.0f} min with {processes} processes{left_out}; {hardware_line()}"
    )
    lines = _summary(table.sort_values("pattern", key=lambda values: values.map(patterns.index), kind="stable"))
    print_table(title, lines)
    return lines


if __name__ == "__main__":
    run_command(main)
