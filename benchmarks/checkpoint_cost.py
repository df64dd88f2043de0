"""Bytes and seconds of a checkpoint, for a made-up network of linear layers.

python -m benchmarks.checkpoint_cost                      # the table of results/precision.md: 8 million weights
python -m benchmarks.checkpoint_cost --layers 9 --device cuda    # 38 million, about as many as the CIFAR-10 UNet has

The float32 state is the content of earlier checkpoints: logits and Adam's moments in float32, three masks in bytes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file

from benchmarks.report import hardware_line, print_table
from benchmarks.toy_workload import perceptron, toy_workload
from maskpro.commands.running import run_command
from maskpro.runs import MaskFormat, build_trainer
from maskpro.schedule.checkpoints import part_file, write_checkpoint
from maskpro.schedule.history import PARTS
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig
from maskpro.workload import Budgets

_WIDTH = 2048
_REPEATS = 3


def _trainer(layers: int, device: torch.device) -> MaskTrainer:
    """A trainer after two steps of Adam on made-up gradients."""
    budgets = Budgets(max_samples=1, report_samples=1, validation_samples=1, selection_samples=1, test_samples=2)
    workload = toy_workload(perceptron(_WIDTH, layers, bias=False), width=_WIDTH, budgets=budgets)
    trainer = build_trainer(workload, TrainerConfig(), MaskFormat("2:4", "channel"), seed=0, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for _ in range(2):
        trainer.logits.grad = torch.randn(trainer.logits.shape, generator=generator, device=device)
        trainer._optimizer.step()
    return trainer


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.monotonic()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return min(times)


def main(
    layers: Annotated[int, typer.Option(help="Layers, of 4.2 million weights each.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Print the table of checkpoints."""
    torch.set_num_threads(1)
    place = torch.device(device)
    trainer = _trainer(layers, place)
    weights = trainer.logits.numel()
    moments = trainer._optimizer.state[trainer.logits]
    rounding = _seconds(trainer._rounded, place)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def write_float32() -> None:
            tensors = {"logits": trainer.logits, "mean": moments["exp_avg"], "squares": moments["exp_avg_sq"]}
            tensors |= {f"mask{number}": trainer.initial_mask for number in range(3)}
            save_file({name: value.cpu().clone() for name, value in tensors.items()}, folder / "float32")

        before = _seconds(write_float32, place)
        trainer.round_state()
        now = _seconds(lambda: write_checkpoint(folder, *trainer.state_dict()), place)
        sizes = {part: (folder / part_file(part)).stat().st_size / weights for part in PARTS}
        float32 = (folder / "float32").stat().st_size / weights
    rows = [
        {
            "trial": "as it was, float32",
            "bytes a weight": f"{float32:.3f}",
            "rounding, s": "",
            "writing, s": f"{before:.2f}",
        }
    ]
    for trial, count in (("running", 3), ("stopped", 2), ("completed", 1)):
        size = sum(sizes[part] for part in PARTS[:count])
        times = (f"{rounding:.2f}", f"{now:.2f}") if count == len(PARTS) else ("", "")
        rows.append({"trial": trial, "bytes a weight": f"{size:.3f}", "rounding, s": times[0], "writing, s": times[1]})
    print_table(f"{weights:,} weights, on {device}, lowest of {_REPEATS}; {hardware_line()}", rows)


if __name__ == "__main__":
    run_command(main)
