"""Trains a DDPM of CIFAR-10 for a number of minutes and writes it as a diffusers folder.

python -m benchmarks.cifar10.train_dense --images train-1.zip --images train-2.zip --images test.zip --minutes 6
python -m benchmarks.cifar10.train_dense --tiny                       # a rehearsal on the CPU, made-up images
python -m benchmarks.cifar10.train_dense --measure --minutes 1 ...    # images a second of each network, nothing trained

The network sees training images alone. Validation and test images, split as in the workload, only judge it. The folder
holds averaged weights (EMA) in float16, in shards below 16 MiB. After a kill the same command resumes from the newest
checkpoint in the work folder; the time before that checkpoint counts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from benchmarks.cifar10.common import (
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
    no_time,
    say,
    today,
    workload_images,
    write_section,
)
from benchmarks.cifar10.networks import NETWORKS, DenoiserTraining, count_parameters, load_network, make_network
from benchmarks.resumable import Deadline
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.evaluation.comparison import GENERATION_SEED
from maskpro.evaluation.sampling import SamplingPlan, save_grid
from maskpro.files import atomic_folder, atomic_path, write_json, write_text
from maskpro.held_out import TEST_SEED, VALIDATION_SEED
from maskpro.objectives import HeldOutSamples
from maskpro.objectives.diffusion import DiffusionObjective

_SHARD = "12MB"
# Time reserved for the held-out losses, the samples and the folder: seconds, and the largest share of all time.
_RESERVED_SECONDS, _RESERVED_SHARE = 12.0, 0.15
_SHOWN_EVERY = 10.0


def train(
    training: DenoiserTraining, deadline: Deadline, checkpoint: Path, *, save_seconds: float, max_steps: int | None
) -> None:
    """Train until little time is left, with regular checkpoints and one at the end."""
    until = deadline.seconds - min(_RESERVED_SECONDS, _RESERVED_SHARE * deadline.seconds)
    saved = shown = deadline.spent
    before, losses = training.steps, torch.zeros(2, dtype=torch.float64)
    while deadline.spent < until and training.steps != max_steps:
        loss = training.step(deadline.spent / until)
        if training.steps % 20 == 0:  # waits for the GPU, so the clock counts finished steps
            losses += torch.tensor([loss.item(), 1.0], dtype=torch.float64)
            now = deadline.spent
            if now - shown >= _SHOWN_EVERY:
                rate = (training.steps - before) / (now - shown)
                mean = losses[0] / losses[1]
                say(
                    f"step {training.steps:,}, {rate:.1f} a second, loss {mean:.4f} of the last ones, "
                    f"{until - now:.0f} s of training left"
                )
                shown, before, losses = now, training.steps, torch.zeros_like(losses)
            if now - saved >= save_seconds:
                save_checkpoint(training, deadline, checkpoint)
                saved = deadline.spent
    if training.steps:
        save_checkpoint(training, deadline, checkpoint)


def save_checkpoint(training: DenoiserTraining, deadline: Deadline, path: Path) -> None:
    """Save the run and the time it took."""
    with atomic_path(path) as temporary:
        torch.save({"spent": deadline.spent, "training": training.state_dict()}, temporary)


def held_out_losses(folder: Path, images: dict[str, Tensor], device: torch.device, samples: int) -> dict[str, float]:
    """Loss of the network in a folder on validation and test images, with the workload's own noise."""
    model, scheduler = load_network(folder)
    seeds = {"validation": VALIDATION_SEED, "test": TEST_SEED}
    model = model.to(device)
    objectives = {
        split: DiffusionObjective(scheduler, images[split], seed=seed, device=device, strata=samples)
        for split, seed in seeds.items()
    }
    return {
        split: HeldOutSamples(objective, samples, model).judge(model).means().loss
        for split, objective in objectives.items()
    }


def export(training: DenoiserTraining, scheduler: DDPMScheduler, network: str, folder: Path) -> None:
    """Write the averaged weights as a diffusers pipeline in float16 shards; `folder` must exist."""
    model = make_network(network, seed=0)
    model.load_state_dict(training.averaged())
    model = model.half().eval()
    DDPMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder, max_shard_size=_SHARD)
    write_json(folder / "weights.json", {"ema": True})


def _readme(record: dict[str, Any]) -> str:
    return f"""# A small DDPM of CIFAR-10

A `UNet2DModel` with the block types of google/ddpm-cifar10-32: {record["parameters"]:,} parameters, noise prediction,
linear noise schedule of 1,000 steps. The weights are averages over the training (EMA), kept in float16;
`DDPMPipeline.from_pretrained` and `--model` of maskpro's commands load them as float32.

| | |
|---|---|
| made by | `{record["command"]}` |
| on | {record["device"]}, {record["date"]} |
| training | {record["minutes"]:.1f} minutes, {record["precision"]} |
| steps | {record["steps"]:,} of {record["batch_size"]} images |
| data | {record["num_images"]["train"]:,} training images of {record["data"]}, flipped at random |
| loss on validation images | {record["losses"]["validation"]:.5f} |
| loss on test images | {record["losses"]["test"]:.5f} |

Licence: that of this project's code. The weights were trained from random numbers, on images of CIFAR-10 (Krizhevsky,
2009) alone.
"""


def measure(images: Tensor, names: list[str], *, device: torch.device, compiled: bool, tiny: bool) -> list[dict[str, str]]:
    """Images per second of the training step, for each network and batch size."""
    rows = []
    for name in names:
        for batch_size in (8,) if tiny else (128, 256, 512):
            training = DenoiserTraining(
                make_network(name, seed=0),
                DDPMScheduler(num_train_timesteps=1000),
                images,
                batch_size=batch_size,
                seed=0,
                device=device,
                precision=choose_precision(device),
                compiled=compiled,
            )
            training.step(0.5).item()
            count, started = 3 if tiny else 30, time.monotonic()
            for _ in range(count):
                loss = training.step(0.5)
            loss.item()
            seconds = time.monotonic() - started
            rows.append(
                {
                    "network": name,
                    "parameters": f"{count_parameters(training.network):,}",
                    "batch": str(batch_size),
                    "ms a step": f"{1000 * seconds / count:.1f}",
                    "images a second": f"{count * batch_size / seconds:,.0f}",
                }
            )
            say(str(rows[-1]))
    return rows


def main(
    images: ImagesOption = None,
    work: WorkOption = WORK,
    minutes: MinutesOption = 6.0,
    output: Annotated[Path | None, typer.Option(help="Folder of the network; default: WORK/ddpm_cifar10_small.")] = None,
    network: Annotated[str | None, typer.Option(help=f"{', '.join(NETWORKS)}; default: 12m, or tiny with --tiny.")] = None,
    start: Annotated[str | None, typer.Option(help="Diffusers folder with the first weights.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step; default: 256, or 16 with --tiny.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Most steps, even if there is time for more.")] = None,
    save_seconds: Annotated[float, typer.Option(help="Between two checkpoints.")] = 30.0,
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Let torch compile the network.")] = True,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the first weights and of the steps.")] = 0,
    measure_only: Annotated[bool, typer.Option("--measure", help="Only time the networks' steps.")] = False,
    tiny: TinyOption = False,
) -> None:
    """Train the dense network."""
    deadline = Deadline(minutes)
    device = choose_device(tiny=tiny)
    name, count = network or ("tiny" if tiny else "12m"), batch_size or (16 if tiny else 256)
    if name not in NETWORKS:
        raise MaskproError(f"network is {name!r}; allowed: {', '.join(NETWORKS)}")
    folder = output or work / "ddpm_cifar10_small"
    if folder.exists() and not measure_only:
        say(f"{folder} is there already: nothing is left to be done (remove it to train another one)")
        return
    first = make_network(name, seed=seed)
    place = image_folder(images, work, tiny=tiny)
    data = workload_images(place, work, first)
    compiled = compile and device.type == "cuda"
    if measure_only:
        names = [name] if network or tiny else [one for one in NETWORKS if not one.startswith("tiny")]
        rows = measure(data["train"], names, device=device, compiled=compiled, tiny=tiny)
        notes = [f"`{command_line()}`, {today()}, {describe_device(device)}."]
        write_section(work, "dense_speed", markdown("Training steps of the dense network", notes, rows))
        return
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    precision = choose_precision(device)
    if start is not None:
        first.load_state_dict(_weights(start, name))
    say(f"network {name}: {count_parameters(first):,} parameters; batch {count}, {precision}, {minutes} minutes")
    checkpoint = work / "train_dense.pt"
    kept = None
    if checkpoint.is_file():
        kept = torch.load(checkpoint, map_location=device, weights_only=True)
        deadline = Deadline(minutes, spent=kept["spent"] + deadline.spent)
    training = DenoiserTraining(
        first,
        scheduler,
        data["train"],
        batch_size=count,
        seed=seed,
        device=device,
        precision=precision,
        compiled=compiled,
    )
    if kept is not None:
        try:
            training.load_state_dict(kept["training"])
        except (RuntimeError, ValueError) as error:
            raise MaskproError(f"{checkpoint} is of another network than {name}; remove it to train anew") from error
        say(f"resumes at step {training.steps:,}, after {kept['spent']:.0f} s")
    train(training, deadline, checkpoint, save_seconds=save_seconds, max_steps=max_steps)
    if training.steps == 0:
        raise no_time(minutes)
    with atomic_folder(folder) as made:
        export(training, scheduler, name, made)
        record = {
            "network": name,
            "parameters": count_parameters(first),
            "steps": training.steps,
            "batch_size": count,
            "precision": precision,
            "compiled": compiled,
            "minutes": deadline.spent / 60,
            "seed": seed,
            "start": start,
            "command": command_line(),
            "device": describe_device(device),
            "date": today(),
            "data": ", ".join(path.name for path in images or [place]),
            "num_images": {split: len(part) for split, part in data.items()},
            "losses": held_out_losses(made, data, device, 64 if tiny else 4096),
        }
        write_json(made / "training.json", record)
        write_text(made / "README.md", _readme(record))
        _samples(made, work, device, tiny=tiny)
    _report(record, work)
    say(f"written: {folder}")


def _weights(start: str, name: str) -> dict[str, Tensor]:
    model, _ = load_network(start)
    expected = make_network(name, seed=0).state_dict()
    found = model.state_dict()
    if {key: value.shape for key, value in found.items()} != {key: value.shape for key, value in expected.items()}:
        raise MaskproError(f"start is {start}, whose weights are not of network {name}; allowed: a folder of that network")
    return found


def _samples(folder: Path, work: Path, device: torch.device, *, tiny: bool) -> None:
    model, scheduler = load_network(folder)
    steps, count = (4, 4) if tiny else (100, 64)
    side = model.config["sample_size"]
    plan = SamplingPlan(scheduler=scheduler, shape=(3, side, side), steps=steps, seed=GENERATION_SEED, batch_size=count)
    save_grid(plan.images(model.to(device), range(count)), work / "report" / "samples_dense.png")


def _report(record: dict[str, Any], work: Path) -> None:
    losses = record["losses"]
    notes = [f"`{record['command']}`, {record['date']}, {record['device']}; averaged weights, rounded to float16."]
    row = {
        "parameters": f"{record['parameters']:,}",
        "steps": f"{record['steps']:,} of {record['batch_size']}",
        "minutes": f"{record['minutes']:.1f}",
        "validation loss": f"{losses['validation']:.5f}",
        "test loss": f"{losses['test']:.5f}",
    }
    say(json.dumps(record["losses"]))
    write_section(work, "1_train_dense", markdown("A dense network of CIFAR-10", notes, [row]))


if __name__ == "__main__":
    run_command(main)
