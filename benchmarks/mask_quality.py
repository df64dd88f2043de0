"""The masks of every method on one network: their quality and cost.

python -m benchmarks.mask_quality            # the tables of results/masks.md: 3 seeds, the embedded workload, two processes
python -m benchmarks.mask_quality --quick    # a minute: one seed and little of everything, to see that it runs
python -m benchmarks.mask_quality --workload cifar10 --model FOLDER --data FOLDER --device cuda --processes 1
python -m benchmarks.mask_quality --workload causal_lm --patterns 2:4 --evaluations 4000 --forward-only 4000 \
    --held-out 64 --test-samples 256 --no-equal-seconds --processes 1          # the table of results/language_models.md

With --minutes it works seed by seed and begins no mask that would not end in time. With --rows finished masks are kept in a
file, from which the same command resumes.

A sample evaluation is one forward pass of one sample; a backward pass counts as two more. The teacher's outputs and the
initial mask's losses cost one evaluation for each sample, once. So do the samples that measure the shares of the noise
schedule. Seconds are those of learning with all this, one thread a process, without validation. On a CPU they are the
process's own time, so other processes don't count. Fidelity, recovery and loss come from test samples that chose nothing.
"of one mask" is the standard error of a mask's fidelity over their images; any other ± is the standard error of the mean
over seeds. A run's mask is the one that training keeps by its validation errors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from benchmarks.mask_methods import (
    EARLY_EVALUATIONS,
    EVALUATIONS,
    ONE_SHOT,
    OURS,
    RIVALS,
    Job,
    Setting,
    learned_methods,
    run_job,
)
from benchmarks.report import hardware_line, print_table, spread
from benchmarks.resumable import Deadline, Rows, die_with_parent
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.initial_masks import ONE_SHOT_SAMPLES
from maskpro.precision import parse_precision

# The policy gradients' share of these evaluations: 2,000 forward passes of 32 samples.
_FORWARD_ONLY_SHARE = 64_000 / EVALUATIONS

_EQUAL_SECONDS = "equal seconds"
# Receives the table so far.
Write = Callable[[list[dict[str, str]]], None]


def _jobs(
    patterns: tuple[str, ...],
    seeds: range,
    evaluations: int,
    methods: tuple[str, ...],
    learned: dict[str, dict[str, Any]],
    forward_only: int,
) -> list[Job]:
    """The jobs of the first part of a round, all at equal samples; without `methods` of all methods.

    Args:
        learned: methods that learn, with their settings.
        forward_only: evaluations of the policy gradients.
    """
    jobs = [Job(method="dense", pattern=patterns[0], seed=0), Job(method="magnitude", pattern=patterns[0], seed=0)]
    for seed in seeds:
        for method in ("random", "wanda", "sparsegpt"):
            jobs.append(Job(method=method, pattern=patterns[0], seed=seed))
        for method, settings in learned.items():
            job = Job(method=method, pattern=patterns[0], seed=seed, evaluations=evaluations, settings=settings)
            if settings["estimator"] == "policy_gradient":
                job = replace(job, evaluations=forward_only, cost=f"{forward_only:,} evaluations")
            jobs.append(job)
    for pattern in patterns[1:]:
        jobs.append(Job(method="magnitude", pattern=pattern, seed=0))
        for seed in seeds:
            jobs.append(Job(method="sparsegpt", pattern=pattern, seed=seed))
            for method in ("MaskLLM-style", OURS):
                settings = learned[method]
                few = min(EARLY_EVALUATIONS, evaluations)
                jobs.append(Job(method=method, pattern=pattern, seed=seed, evaluations=few, settings=settings))
    return [job for job in jobs if not methods or job.method in methods]


def _length(job: Job) -> int:
    return job.evaluations if job.settings else 0


def _as_long(rows: pd.DataFrame, jobs: list[Job]) -> list[Job]:
    """The second part of a round: the nearest rival, with as many evaluations as fit into our seconds."""
    rows = rows[(rows["pattern"] == jobs[0].pattern) & (rows["cost"] != _EQUAL_SECONDS)]
    means = rows[rows["seed"].isin({job.seed for job in jobs})].groupby("method")[["seconds", "fidelity"]].mean()
    rivals = means[means.index.isin(RIVALS)]
    if OURS not in means.index or rivals.empty:
        return []
    nearest = rivals["fidelity"].idxmax()
    share = means.loc[OURS, "seconds"] / means.loc[nearest, "seconds"]
    return [
        replace(job, cost=_EQUAL_SECONDS, evaluations=round(job.evaluations * share))
        for job in jobs
        if job.pattern == jobs[0].pattern and job.method == nearest
    ]


class Runner:
    """Makes masks that are not in `rows` yet, while there is time, and keeps a row of each.

    Args:
        rows: rows, also of earlier sessions; only those with the same setting and jobs are taken.
        write: receives the table whenever a mask is done.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        processes: int,
        rows: Rows | None = None,
        deadline: Deadline | None = None,
        write: Write | None = None,
    ):
        self._setting, self._rows, self._deadline = setting, rows, deadline
        self._write = write
        self._asked: dict[str, dict[str, Any]] = {}
        # One pool serves all rounds: its processes keep the images that they have read.
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=die_with_parent)
        self._made: dict[str, dict[str, Any]] = {}
        for row in rows.read() if rows else []:
            self._made[row.pop("key")] = row
        self.num_left_out = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """The rows of all jobs that were made, now or earlier, in the jobs' order."""
        missing = [job for job in jobs if self._key(job) not in self._made]
        self._asked |= {self._key(job): self._made[self._key(job)] for job in jobs if self._key(job) in self._made}
        # The longest jobs come first, so the processes end together.
        missing.sort(key=lambda job: -_length(job) if self._deadline is None else 0)
        if self._deadline is None:
            running = {self._pool.submit(run_job, job, self._setting): job for job in missing}
            for done in as_completed(running):
                self._keep(running[done], done.result())
        else:  # one job at a time: the next one begins only if the earlier ones' times leave room
            for job in missing:
                if self._fits(job):
                    self._keep(job, self._pool.submit(run_job, job, self._setting).result())
                else:
                    self.num_left_out += 1
        return pd.DataFrame([self._made[self._key(job)] for job in jobs if self._key(job) in self._made])

    def _key(self, job: Job) -> str:
        return json.dumps([asdict(job), asdict(self._setting)], sort_keys=True, default=str)

    def _keep(self, job: Job, row: dict[str, Any]) -> None:
        self._made[self._key(job)] = self._asked[self._key(job)] = row
        if self._rows is not None:
            self._rows.add({"key": self._key(job), **row})
        if self._write is not None:
            self._write(self.table())

    def table(self) -> list[dict[str, str]]:
        """A line per method, pattern and cost, for the masks requested so far."""
        rows = pd.DataFrame(list(self._asked.values()))
        return _summary(rows)

    def _fits(self, job: Job) -> bool:
        """Whether a job is likely to end in time, judged by the jobs of its method, or else by the longest job."""
        assert self._deadline is not None
        of_method = [
            row["wall_seconds"] * max(1.0, _length(job) / max(1, row["evaluations"]))
            for row in self._made.values()
            if row["method"] == job.method
        ]
        longest = [row["wall_seconds"] for row in self._made.values()]
        return max(of_method or longest, default=0.0) < self._deadline.left


def _summary(rows: pd.DataFrame) -> list[dict[str, str]]:
    """A line per method, pattern and cost: means, and their standard errors over seeds; no figure that none has."""
    lines = []
    rows = rows.reindex(columns=[*rows.columns, *({"frechet", "early", "perplexity"} - set(rows.columns))])
    for (pattern, method, cost), part in rows.groupby(["pattern", "method", "cost"], sort=False):
        lines.append(
            {
                "pattern": pattern,
                "method": method,
                "fidelity": spread(part["fidelity"], 4),
                "of one mask": f"± {part['fidelity_error'].mean():.4f}",
                "at 15,000 evaluations": spread(part["early"], 3),
                "recovery": spread(part["recovery"], 3),
                "held-out loss": spread(part["loss"], 5),
                "perplexity": spread(part["perplexity"], 3),
                "Frechet distance": spread(part["frechet"], 1),
                "evaluations": f"{part['evaluations'].mean():,.0f}",
                "seconds": f"{part['seconds'].mean():.0f}",
                "compared at": cost if part["evaluations"].mean() > ONE_SHOT_SAMPLES else "",
            }
        )
    return [{name: value for name, value in line.items() if any(other[name] for other in lines)} for line in lines]


def main(
    seeds: Annotated[int, typer.Option(help="Number of seeds of calibration samples and masks.")] = 3,
    first_seed: Annotated[int, typer.Option(help="First seed; the settings were found on seeds 0 to 4.")] = 5,
    evaluations: Annotated[int, typer.Option(help="Sample evaluations of each learned mask.")] = EVALUATIONS,
    patterns: Annotated[str, typer.Option(help="Patterns; the first one is compared in full.")] = "2:4 1:4 4:8",
    methods: Annotated[str, typer.Option(help="Methods, with commas between them; default: all.")] = "",
    workload: Annotated[str, typer.Option(help="digits (embedded) or cifar10.")] = "digits",
    model: Annotated[str | None, typer.Option(help="Diffusers DDPM folder or hub name.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of images.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    processes: Annotated[int, typer.Option(help="Concurrent masks.")] = 2,
    frechet: Annotated[bool, typer.Option(help="Also measure the Frechet distance, for the first pattern.")] = True,
    features: Annotated[str | None, typer.Option(help="What judges images; default: the workload's.")] = None,
    held_out: Annotated[int | None, typer.Option(help="Validation and test samples; default: the workload's.")] = None,
    test_samples: Annotated[int | None, typer.Option(help="Test samples; default: as many as --held-out says.")] = None,
    forward_only: Annotated[
        int | None, typer.Option(help="Evaluations of the policy gradients; default: 64 % of --evaluations.")
    ] = None,
    equal_seconds: Annotated[bool, typer.Option(help="Also the nearest rival in as many seconds as ours.")] = True,
    num_generated: Annotated[int | None, typer.Option(help="Images judged; default: the workload's.")] = None,
    sampling_steps: Annotated[int | None, typer.Option(help="Steps of DDIM; default: the workload's.")] = None,
    precision: Annotated[str, typer.Option(help="Precision of training and sampling: float32 or bfloat16.")] = "float32",
    reference_cache: Annotated[Path | None, typer.Option(help="Folder that keeps features of real images.")] = None,
    rows: Annotated[Path | None, typer.Option(help="File with finished masks, to resume from.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes; masks are then made seed by seed.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed and little of everything: does it run?")] = False,
) -> None:
    """Print the table of masks: fidelity, recovery, loss, Frechet distance and cost of every method."""
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
        test_samples=test_samples,
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
        forward_only=forward_only,
        frechet=frechet,
        equal_seconds=equal_seconds,
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
    forward_only: int | None = None,
    frechet: bool = True,
    equal_seconds: bool = True,
    processes: int = 1,
    rows: Rows | None = None,
    deadline: Deadline | None = None,
    write: Write | None = None,
) -> None:
    """Make the masks and print their table; `write` receives it too, and the table so far after each mask.

    Raises:
        MaskproError: a method or setting is not allowed.
    """
    started = time.monotonic()
    learned = learned_methods(setting.workload)
    known = ("dense", *ONE_SHOT, *learned)
    passes = forward_only or round(evaluations * _FORWARD_ONLY_SHARE)
    for name in methods:
        if name not in known:
            raise MaskproError(f"methods holds {name!r}; allowed: {', '.join(known)}")
    with Runner(setting, processes=processes, rows=rows, deadline=deadline, write=write) as runner:
        made = []
        # All seeds together, or seed by seed if time may run out between them.
        for round_seeds in [seeds] if deadline is None else [range(seed, seed + 1) for seed in seeds]:
            planned = _jobs(patterns, round_seeds, evaluations, methods, learned, passes)
            jobs = [replace(job, frechet=frechet and job.pattern == patterns[0]) for job in planned]
            first = runner.run(jobs)
            made += [first, runner.run(_as_long(first, jobs)) if equal_seconds and len(first) else first]
    table = pd.concat(made, ignore_index=True).drop_duplicates(["method", "pattern", "seed", "cost"])
    if not len(table):
        raise MaskproError("minutes is too short for a single mask; allowed: more")
    num_seeds = table[table["method"] != "dense"].groupby("method")["seed"].nunique().max()
    minutes = (time.monotonic() - started) / 60
    left_out = f", {runner.num_left_out} masks left out for lack of time" if runner.num_left_out else ""
    title = (
        f"{setting.workload}, {num_seeds} seeds, {minutes:.0f} min with {processes} processes{left_out}; {hardware_line()}"
    )
    lines = _summary(table.sort_values("pattern", key=lambda values: values.map(patterns.index), kind="stable"))
    print_table(title, lines)
    if write is not None:
        write(lines)


if __name__ == "__main__":
    run_command(main)
