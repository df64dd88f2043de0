"""The main job on CIFAR-10, as in the README: first with four trials a GPU, then with one, and a time line of each.

python -m benchmarks.cifar10.search --images train-1.zip --images train-2.zip --images test.zip --minutes 4
python -m benchmarks.cifar10.search --tiny                            # a rehearsal on the CPU

Needs the dense network and the features of the earlier stages, or others (--model, --features). The numbers of samples
and images that fit the minutes are measured first, shown, and kept in `search/plan.json`. The first search's driver is
killed (SIGKILL) in the middle of its trials, and the search is resumed. If this stage itself is killed, it also resumes
the search.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.cifar10.common import (
    ROOT,
    WORK,
    ImagesOption,
    MinutesOption,
    TinyOption,
    WorkOption,
    choose_device,
    choose_precision,
    command_line,
    describe_device,
    image_folder,
    markdown,
    say,
    today,
    write_section,
)
from benchmarks.cifar10.networks import load_network
from benchmarks.cifar10.time_line import run_watched, spent, time_line, was_killed
from benchmarks.cifar10.train_features import FEATURES_FILE
from benchmarks.made_up_workload import made_up_workload
from benchmarks.resumable import Rows
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.fidelity import Estimate
from maskpro.files import read_json, write_json
from maskpro.names import Precision
from maskpro.precision import autocast
from maskpro.runs import MaskFormat, build_trainer
from maskpro.schedule.folder import EVALUATION_FILE, HISTORY_FILE
from maskpro.trainer_config import TrainerConfig
from maskpro.workload import Workload

# Batch sizes at which a trial's speed is measured; the space's batch sizes lie between them.
_BATCHES = (8, 64)
# Seconds of a search's two starts (it is killed once), and the share of its time for the evaluation.
_START_SECONDS, _EVALUATION_SHARE = 60.0, 0.25
# Share of the trials' full budgets that is used, as early stopping stops most trials.
_USED = 0.5
_KILL_AT = 0.4  # share of the samples that all trials are expected to use
_LEFT = ("final_evaluation.json", "trials.csv", "report.md")
_TINY_SPACE = Path(__file__).parent / "tiny_space.py"
_GRIDS = ("dense", "initial", "learned")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of one search that its minutes allow; they are kept, so a resumed search has the same ones."""

    num_trials: int
    max_samples: int
    num_generated: int
    sampling_steps: int
    selection_samples: int | None = None  # the workload's
    test_samples: int | None = None
    sampling_precision: Precision
    samples_per_second: float
    passes_per_second: float

    @property
    def held_out(self) -> dict[str, int]:
        """Sizes of held-out sets that differ from the workload's."""
        sizes = {"selection_samples": self.selection_samples, "test_samples": self.test_samples}
        return {name: size for name, size in sizes.items() if size is not None}


def make_plan(seconds: float, rates: tuple[float, float], precision: Precision) -> Plan:
    """Budgets of a search of that length, by the samples of training and the network's passes a second."""
    samples, passes = rates
    steps = 50
    trials = max(0.2 * seconds, (1 - _EVALUATION_SHARE) * seconds - _START_SECONDS)
    num_trials = 12 if trials >= 60 else 6
    images = 0.5 * _EVALUATION_SHARE * seconds * passes / (3 * steps)
    return Plan(
        num_trials=num_trials,
        max_samples=round(min(200_000, max(2_700, samples * trials / (num_trials * _USED)))),
        num_generated=round(min(10_000, max(512, images))),
        sampling_steps=steps,
        sampling_precision=precision,
        samples_per_second=round(samples, 1),
        passes_per_second=round(passes, 1),
    )


def measure_rates(model: str, precision: Precision) -> tuple[float, float]:
    """Samples a second of a trial's training (the default space's settings), and passes a second of the network."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense, scheduler = load_network(model)
    dense = dense.to(device)
    pictures = torch.zeros(256, 3, 32, 32, dtype=torch.uint8)
    workload = made_up_workload(dense, scheduler, pictures)
    rates = [_training_rate(workload, device, batch) for batch in _BATCHES]
    return len(rates) / sum(1 / rate for rate in rates), _sampling_rate(dense, pictures, device, precision)


def _training_rate(workload: Workload, device: torch.device, batch_size: int) -> float:
    config = TrainerConfig(
        estimator="relaxed_subset",
        target="teacher",
        hidden_targets=1.0,  # these cost a dense pass a sample
        batch_size=batch_size,
        dataset_size=10**6,
        budget_samples=10**9,
    )
    trainer = build_trainer(workload, config, MaskFormat("2:4", "channel"), seed=0, device=device)
    trainer.train(4 * batch_size)
    _wait()
    started, count = time.monotonic(), 40 * batch_size
    trainer.train(count)
    _wait()
    return count / (time.monotonic() - started)


@torch.no_grad()
def _sampling_rate(dense: torch.nn.Module, pictures: Tensor, device: torch.device, precision: Precision) -> float:
    batch, timesteps = pictures.float().to(device), torch.zeros(len(pictures), dtype=torch.int64, device=device)
    count, started = 5, 0.0
    for number in range(count + 2):
        if number == 2:
            _wait()
            started = time.monotonic()
        with autocast(device, precision):
            dense(batch, timesteps, return_dict=False)
    _wait()
    return count * len(pictures) / (time.monotonic() - started)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Job:
    """One search with a number of trials a GPU: it is run, killed once if requested, resumed, and its files are copied."""

    def __init__(self, work: Path, trials_per_gpu: int, *, tiny: bool):
        self.name = f"{trials_per_gpu}_a_gpu"
        self._trials_per_gpu, self._tiny = trials_per_gpu, tiny
        self._results = work / "search"
        self.folder = self._results / self.name
        self.events = Rows(self._results / f"{self.name}_events.jsonl")
        self._left = work / "report" / f"search_{self.name}"

    @property
    def is_done(self) -> bool:
        """Whether its report is written."""
        return (self.folder / EVALUATION_FILE).is_file() and (self.folder / "report.html").is_file()

    def run(self, plan: Plan, inputs: dict[str, str], *, seconds: float, kill: bool) -> None:
        """Run the search until it is done or its seconds are over."""
        while not self.is_done:
            until = time.monotonic() + seconds - spent(self.events)
            wants_kill = kill and not was_killed(self.events)

            def stop(history: list[dict[str, Any]], until: float = until, wants_kill: bool = wants_kill) -> int | None:
                if wants_kill and self._samples(history) >= _KILL_AT * _USED * plan.num_trials * plan.max_samples:
                    return signal.SIGKILL
                return signal.SIGTERM if time.monotonic() > until else None

            history = self.folder / HISTORY_FILE
            if self.folder.exists() and not history.is_file():  # killed before anything was begun
                shutil.rmtree(self.folder)
            command = self._resume() if history.is_file() else self._begin(plan, inputs)
            status = run_watched(command, history=history, events=self.events, stop=stop)
            if status == -signal.SIGKILL and wants_kill and was_killed(self.events):
                say("the driver was killed; the search is resumed")
            elif not self.is_done:
                raise MaskproError(
                    f"the search {self.folder} ended with status {status} after {spent(self.events):.0f} s of "
                    f"{seconds:.0f}; allowed: the same command again, with more --minutes where they ran out: it resumes"
                )

    @staticmethod
    def _samples(history: list[dict[str, Any]]) -> int:
        seen = {event["trial"]: event["metrics"]["num_samples_seen"] for event in history if event["event"] == "report"}
        return sum(seen.values())

    def _begin(self, plan: Plan, inputs: dict[str, str]) -> list[str]:
        share = ["--max-concurrent", str(min(2, self._trials_per_gpu))]
        if not self._tiny:
            share = ["--gpus-per-trial", str(1 / self._trials_per_gpu)]
        options = {
            "space": str(_TINY_SPACE if self._tiny else ROOT / "search_spaces" / "default.py"),
            "workload": "cifar10",
            **inputs,
            "results-dir": str(self._results.absolute()),
            "experiment": self.name,
            "num-trials": str(plan.num_trials),
            "max-samples": str(plan.max_samples),
            "num-generated": str(plan.num_generated),
            **{name.replace("_", "-"): str(size) for name, size in plan.held_out.items()},
            "sampling-steps": str(plan.sampling_steps),
            "sampling-precision": plan.sampling_precision,
        }
        named = [part for name, value in options.items() for part in (f"--{name}", value)]
        return [sys.executable, str(ROOT / "tune_main.py"), *named, *share]

    def _resume(self) -> list[str]:
        share = ["--max-concurrent", str(min(2, self._trials_per_gpu))] if self._tiny else []
        return [sys.executable, str(ROOT / "tune_main.py"), "--resume", str(self.folder.absolute()), *share]

    def leave(self) -> list[dict[str, str]]:
        """Copy the small files into the report's folder; returns the rows of the final evaluation."""
        self._left.mkdir(parents=True, exist_ok=True)
        for name in _LEFT:
            shutil.copyfile(self.folder / name, self._left / name)
        for name in _GRIDS:
            shutil.copyfile(self.folder / "best" / f"samples_{name}.png", self._left / f"samples_{name}.png")
        write_json(self._left / "time_line.json", time_line(self.events))
        report = read_json(self.folder / EVALUATION_FILE)
        rows = []
        for name in _GRIDS:
            figures, recovered = report["models"][name], report["recovery"] if name == "learned" else None
            distance, reached = figures["frechet_distance"], figures["fidelity"]
            rows.append(
                {
                    "trials a GPU": str(self._trials_per_gpu),
                    "mask": {"dense": "none (dense)", "initial": "initial (magnitude)"}.get(name, name),
                    "fidelity": "" if reached is None else str(Estimate(reached, figures["fidelity_error"])),
                    "test loss": f"{figures['test_loss']:.5f}",
                    "recovery": "" if recovered is None else str(Estimate(recovered, report["recovery_error"])),
                    "Frechet distance": "" if distance is None else f"{distance:.2f}",
                }
            )
        return rows


def main(
    images: ImagesOption = None,
    work: WorkOption = WORK,
    minutes: MinutesOption = 4.0,
    model: Annotated[str | None, typer.Option(help="Network; default: the stage before's, in the work folder.")] = None,
    features: Annotated[Path | None, typer.Option(help="Features; default: those of the stage before.")] = None,
    trials_per_gpu: Annotated[str, typer.Option(help="Trials a GPU, for one search after the other.")] = "4 1",
    kill: Annotated[bool, typer.Option("--kill/--no-kill", help="Kill the first search's driver once.")] = True,
    tiny: TinyOption = False,
) -> None:
    """Run the searches and write their table and time line."""
    device = choose_device(tiny=tiny)
    dense = model or str(work / "ddpm_cifar10_small")
    judge = features or work / FEATURES_FILE
    for option, path, stage in (("model", dense, "train_dense"), ("features", judge, "train_features")):
        if not Path(path).exists():
            raise MaskproError(f"{option} is {path}, which is not there; allowed: one that is, such as of stage {stage}")
    data = image_folder(images, work, tiny=tiny)
    inputs = {"model": str(Path(dense).absolute()), "data": str(data.absolute()), "features": str(judge.absolute())}
    jobs = [Job(work, int(number), tiny=tiny) for number in trials_per_gpu.split()]
    seconds = 60 * minutes / len(jobs)
    plan = _plan(work / "search" / "plan.json", seconds, dense, choose_precision(device), tiny=tiny)
    say(f"{seconds:.0f} s a search: {json.dumps(asdict(plan))}")
    for job in jobs:
        job.run(plan, inputs, seconds=seconds, kill=kill and job is jobs[0])
    notes = [
        f"`{command_line()}`, {today()}, {describe_device(device)}.",
        f"{plan.num_trials} trials of at most {plan.max_samples:,} samples; {plan.num_generated:,} images of "
        f"{plan.sampling_steps} steps a network, judged by `{judge.name}`: the distance is not FID.",
    ]
    rows = [row for job in jobs for row in job.leave()]
    lines = [{"search": job.name.replace("_", " "), **line} for job in jobs for line in time_line(job.events)]
    text = markdown("The main job on CIFAR-10", notes, rows)
    text += "\n" + markdown("Where its minutes went", ["Seconds."], [_filled(line, lines) for line in lines])
    write_section(work, "3_search", text)


def _filled(line: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The line with all columns that any line has, in the order of the longest line."""
    columns = dict.fromkeys(name for one in sorted(lines, key=len, reverse=True) for name in one)
    return {name: line.get(name, "") for name in columns}


def _plan(path: Path, seconds: float, model: str, precision: Precision, *, tiny: bool) -> Plan:
    if path.is_file():
        return Plan(**read_json(path))
    if tiny:
        plan = Plan(
            num_trials=2,
            max_samples=540,
            num_generated=32,
            sampling_steps=4,
            selection_samples=128,
            test_samples=128,
            sampling_precision="float32",
            samples_per_second=0.0,
            passes_per_second=0.0,
        )
    else:  # measured in a process of its own, so that no GPU memory stays taken
        with get_context("spawn").Pool(1) as pool:
            plan = make_plan(seconds, pool.apply(measure_rates, (model, precision)), precision)
    write_json(path, asdict(plan))
    return plan


if __name__ == "__main__":
    run_command(main)
