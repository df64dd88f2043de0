"""The masks of every method on the CIFAR-10 network, as `benchmarks.mask_quality` makes and judges them, within minutes.

python -m benchmarks.cifar10.methods --images train-1.zip --images train-2.zip --images test.zip --minutes 3
python -m benchmarks.cifar10.methods --tiny                           # a rehearsal on the CPU

It works seed by seed: first all methods at equal evaluations, then the nearest rival in as many seconds as ours. Each
judged mask adds a row to `methods.jsonl`, from which the same command resumes, and the table so far is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    today,
    write_section,
)
from benchmarks.cifar10.train_features import FEATURES_FILE
from benchmarks.mask_quality import Setting, measure
from benchmarks.resumable import Deadline, Rows
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError

# The methods' settings were found on seeds 0 to 4 of another network.
_FIRST_SEED, _MOST_SEEDS = 5, 10
# Evaluations of a learned mask: as in the embedded network's table if there is time, else fewer.
_EVALUATIONS, _FEWER = 100_000, 30_000
_MINUTES_OF_MANY = 6.0


def main(
    images: ImagesOption = None,
    work: WorkOption = WORK,
    minutes: MinutesOption = 3.0,
    model: Annotated[str | None, typer.Option(help="Network; default: stage train_dense's, in the work folder.")] = None,
    features: Annotated[Path | None, typer.Option(help="Features; default: those of stage train_features.")] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Evaluations of a learned mask; default: 100,000 from six minutes on, else 30,000.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Methods, with commas between them; default: all.")] = "",
    tiny: TinyOption = False,
) -> None:
    """Make the masks and write their table."""
    rows = Rows(work / "methods.jsonl")
    deadline = Deadline(minutes, spent=sum(row["wall_seconds"] for row in rows.read()))
    device = choose_device(tiny=tiny)
    dense, judge = model or str(work / "ddpm_cifar10_small"), features or work / FEATURES_FILE
    for option, path, stage in (("model", dense, "train_dense"), ("features", judge, "train_features")):
        if not Path(path).exists():
            raise MaskproError(f"{option} is {path}, which is not there; allowed: one that is, such as of stage {stage}")
    default = 600 if tiny else _EVALUATIONS if minutes >= _MINUTES_OF_MANY else _FEWER
    setting = Setting(
        workload="cifar10",
        model=dense,
        data=image_folder(images, work, tiny=tiny),
        device=device.type,
        features=str(judge),
        held_out=64 if tiny else 2_048,
        num_generated=32 if tiny else 1_024,
        sampling_steps=4 if tiny else 50,
        precision=choose_precision(device),
        reference_cache=work / "reference_statistics",
    )
    seeds = range(_FIRST_SEED, _FIRST_SEED + (1 if tiny else _MOST_SEEDS))

    def write(lines: list[dict[str, str]]) -> None:
        notes = [
            f"`{command_line()}`, {today()}, {describe_device(device)}.",
            f"{setting.precision}, {setting.held_out:,} test samples; distances over {setting.num_generated:,} images of "
            f"{setting.sampling_steps} steps in the features of `{judge.name}`: they are not FID.",
        ]
        write_section(work, "4_methods", markdown("Masks of the CIFAR-10 network by every method", notes, lines))

    measure(
        setting,
        patterns=("2:4",),
        seeds=seeds,
        evaluations=evaluations or default,
        methods=tuple(name.strip() for name in methods.split(",") if name.strip()),
        rows=rows,
        deadline=deadline,
        write=write,
    )


if __name__ == "__main__":
    run_command(main)
