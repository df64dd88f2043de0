"""Whether held-out samples may be judged in bfloat16: the effects on E, on fidelity, and on the order of masks.

python -m benchmarks.validation_precision               # the table of results/precision.md: masks of one run, 1,200 samples
python -m benchmarks.validation_precision --max-samples 64 --samples 64    # does it run?

Masks are taken at several places of a run with the best-known settings. Each is judged on the same samples in three ways:

- float32: both networks.
- bfloat16, dense in float32: the masked network in bfloat16, against the dense network's output in float32.
- bfloat16: both networks.

E is the mean squared difference from the dense network's output. Fidelity is 1 - E / E_initial, both judged in one way.
The gain is the fidelity of a mask minus that of the mask before. `±` is the standard error over samples. A change is the
figure minus the one in float32.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.report import hardware_line, print_table
from maskpro.commands.running import run_command
from maskpro.fidelity import estimate_fidelity, estimate_gain
from maskpro.names import Precision
from maskpro.precision import autocast
from maskpro.runs import MaskFormat, RunCache, build_trainer
from maskpro.trainer_config import TrainerConfig
from maskpro.tuning.space import load_space
from maskpro.workload import Workload
from maskpro.workloads import open_workload

_SPACE = Path(__file__).parents[1] / "search_spaces" / "default.py"
_SETTINGS = "best known"
# Places in the run where its mask is judged, as shares of its samples. The last two are one report apart.
_PLACES = (1 / 4, 1 / 2, 26 / 27, 1)
# Precision of the masked and of the dense network.
_WAYS: dict[str, tuple[Precision, Precision]] = {
    "float32": ("float32", "float32"),
    "bfloat16, dense in float32": ("bfloat16", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
}


class InPrecision(nn.Module):
    """A network whose passes are computed in a precision, with outputs in float32."""

    def __init__(self, model: nn.Module, precision: Precision):
        super().__init__()
        self._model = model
        self._precision = precision

    def forward(self, images: Tensor, timesteps: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The call of diffusers' networks without `return_dict`."""
        with autocast(images.device, self._precision):
            output = self._model(images, timesteps, return_dict=return_dict)[0]
        return (output.float(),)


def masks_of_a_run(workload: Workload, device: torch.device, seed: int, max_samples: int) -> dict[int, nn.Module]:
    """Samples seen to the masked network, before a run and at its places."""
    space = load_space(_SPACE)
    points = dict(zip(space.seed_point_names, space.seed_points, strict=True))
    config = TrainerConfig(**space.fixed, **points[_SETTINGS], budget_samples=max_samples, seed=seed)
    validation = {config.precision: workload.held_out_samples("validation", device, config.precision).first(1)}
    form = MaskFormat(space.pattern, "channel")
    trainer = build_trainer(workload, config, form, seed=seed, device=device, cache=RunCache(validation=validation))
    masked = trainer.masked
    found = {0: copy.deepcopy(masked.model)}
    for place in _PLACES:
        trainer.train(round(place * max_samples) - trainer.num_samples_seen)
        masked.set_mask(trainer.mode())
        found[trainer.num_samples_seen] = copy.deepcopy(masked.model)
        print(f"{trainer.num_samples_seen} samples", flush=True)
    return found


def judge_each_way(
    workload: Workload, device: torch.device, masks: dict[int, nn.Module], samples: int
) -> dict[str, list[Tensor]]:
    """Errors `[samples]` of each mask in each way."""
    errors = {}
    for way, (masked, dense) in _WAYS.items():
        network = InPrecision(workload.model, dense)
        judge = replace(workload, model=network).held_out_samples("validation", device)
        held_out = judge.first(samples)
        errors[way] = [held_out.judge(InPrecision(model, masked)).errors for model in masks.values()]
        print(way, flush=True)
    return errors


def _rows(errors: dict[str, list[Tensor]], seen: list[int]) -> list[dict[str, Any]]:
    rows = []
    exact = errors["float32"]
    for place, samples in enumerate(seen):
        for way, found in errors.items():
            initial, before, now = found[0], found[place - 1], found[place]
            row: dict[str, Any] = {"samples": samples, "precision": way, "E": f"{now.mean().item():.6f}"}
            if place:
                estimates = {
                    "fidelity": (estimate_fidelity(initial, now), estimate_fidelity(exact[0], exact[place])),
                    "gain": (
                        estimate_gain(initial, before, now),
                        estimate_gain(exact[0], exact[place - 1], exact[place]),
                    ),
                }
                for name, (estimate, reference) in estimates.items():
                    assert estimate is not None
                    assert reference is not None
                    row[name] = f"{estimate.value:.5f} ± {estimate.standard_error:.5f}"
                    if way != "float32":
                        row[f"{name}, change"] = f"{estimate.value - reference.value:+.5f}"
            rows.append({**dict.fromkeys(("samples", "precision", "E", *_FIGURES), ""), **row})
    return rows


_FIGURES = ("fidelity", "fidelity, change", "gain", "gain, change")


def main(
    max_samples: Annotated[int, typer.Option(help="Of the run.")] = 2_160,
    samples: Annotated[int, typer.Option(help="Of validation.")] = 1_200,
    seed: Annotated[int, typer.Option(help="Of the run.")] = 10,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    started, place, workload = time.monotonic(), torch.device(device), open_workload("digits")
    masks = masks_of_a_run(workload, place, seed, max_samples)
    errors = judge_each_way(workload, place, masks, samples)
    minutes = (time.monotonic() - started) / 60
    title = f"{_SETTINGS}, {max_samples} samples, {samples} validation samples, {minutes:.0f} min; {hardware_line()}"
    print_table(title, _rows(errors, list(masks)))


if __name__ == "__main__":
    run_command(main)
