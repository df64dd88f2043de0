"""Shared parts of the stages: images read once, choice of device and precision, options, sections with tables."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.report import hardware_line
from maskpro.errors import MaskproError
from maskpro.files import atomic_folder, atomic_path, remove_leftovers, write_text
from maskpro.names import Precision
from maskpro.workloads.opening import open_images

ROOT = Path(__file__).parents[2]
# Side of an image; in a rehearsal the workload resizes images to the smaller side of its network.
SIZE, TINY_SIZE = 32, 8
_SPLITS = ("train", "validation", "test")
# Classes and images per class that --tiny makes up without --images.
_MADE_UP_CLASSES, _MADE_UP_PER_CLASS = 4, 24

ImagesOption = Annotated[
    list[Path] | None,
    typer.Option(help="Zip files or a folder with train/ and test/, a folder per class in each, or cifar-10-batches-py."),
]
WorkOption = Annotated[Path, typer.Option(help="Folder for files that the stages share and resume from.")]
MinutesOption = Annotated[float, typer.Option(min=0.01, help="Minutes of the stage, over all of its sessions.")]
TinyOption = Annotated[bool, typer.Option("--tiny", help="A rehearsal on the CPU: little of everything.")]
WORK = Path("results/cifar10_benchmark")


def say(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)


def choose_device(*, tiny: bool) -> torch.device:
    """The GPU, or with `tiny` the CPU.

    Raises:
        MaskproError: there is no GPU.
    """
    if tiny:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MaskproError("device is cpu (torch finds no CUDA GPU); allowed: a machine with one, or --tiny (a rehearsal)")
    return torch.device("cuda")


def choose_precision(device: torch.device) -> Precision:
    """bfloat16 where the GPU computes in it, else float32 with a note on the screen."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    if device.type == "cuda":
        say(f"{torch.cuda.get_device_name(device)} has no bfloat16: float32 is used")
    return "float32"


def describe_device(device: torch.device) -> str:
    """The GPU's name or the processor's, and torch's version."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else hardware_line()
    return f"{place}, torch {torch.__version__}"


def no_time(minutes: float) -> MaskproError:
    """The error of a training that has taken no step."""
    return MaskproError(
        f"minutes is {minutes:.2g}, which went by before the first step; allowed: more, or the same command again (the "
        "images are read now)"
    )


def command_line() -> str:
    """The running command, in a form that can be typed again."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join(["python", "-m", module.name if module else sys.argv[0], *sys.argv[1:]])


def today() -> str:
    """The date in the form of the records."""
    return datetime.date.today().isoformat()


def image_folder(images: Sequence[Path] | None, work: Path, *, tiny: bool) -> Path:
    """The folder for `--data` of the main job: the one in `images`, or zip files unpacked in the work folder.

    Half-written files of a killed stage, such as images, are removed from the work folder first.

    Raises:
        MaskproError: there is no such file or folder, or a zip file is broken.
    """
    if work.is_dir():
        remove_leftovers(work)
    if not images:
        if not tiny:
            raise MaskproError("images is missing; allowed: zip files or a folder of CIFAR-10 (--images), or --tiny")
        return made_up_images(work / "made_up_images")
    for path in images:
        if not path.exists():
            raise MaskproError(f"images holds {path}, which is not there; allowed: zip files or one folder")
    if len(images) == 1 and images[0].is_dir():
        return images[0]
    target = work / "images"
    record = target / "unpacked.json"
    wanted = [[path.name, path.stat().st_size] for path in images]
    if record.is_file() and json.loads(record.read_text()) == wanted:
        return _top(target)
    if target.exists():
        raise MaskproError(f"{target} was unpacked from other files than {', '.join(map(str, images))}; remove it first")
    started = time.monotonic()
    with atomic_folder(target) as folder:
        for path in images:
            _unpack(path, folder)
        (folder / record.name).write_text(json.dumps(wanted))
    say(f"unpacked {len(images)} files in {time.monotonic() - started:.0f} s")
    return _top(target)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise MaskproError(f"images holds {path}, which can't be unpacked ({error}); allowed: a whole zip file") from error


def _top(folder: Path) -> Path:
    """The folder that holds train/; in archives it may lie one level down."""
    if (folder / "train").is_dir():
        return folder
    return next((path.parent for path in sorted(folder.glob("*/train"))), folder)


def made_up_images(folder: Path) -> Path:
    """A few images of noise around a colour per class, in train/ and test/."""
    from torchvision.transforms.v2.functional import to_pil_image

    if folder.is_dir():
        return folder
    generator = torch.Generator().manual_seed(0)
    with atomic_folder(folder) as made:
        for split, label in ((split, label) for split in ("train", "test") for label in range(_MADE_UP_CLASSES)):
            (made / split / f"class{label}").mkdir(parents=True)
            colour = torch.randint(256, (3, 1, 1), generator=generator)
            for number in range(_MADE_UP_PER_CLASS):
                noise = torch.randint(-40, 41, (3, SIZE, SIZE), generator=generator)
                image = to_pil_image((colour + noise).clamp(0, 255).to(torch.uint8))
                image.save(made / split / f"class{label}" / f"{number}.png")
    return folder


def workload_images(folder: Path, work: Path, network: UNet2DModel) -> dict[str, Tensor]:
    """Images uint8 `[count, 3, H, W]` by split, as the workload `cifar10` reads and splits them for a network.

    They are kept in `work/images_<side>.safetensors` for later calls.

    Raises:
        MaskproError: an image can't be read, or there are too few.
    """
    cache = work / f"images_{network.config['sample_size']}.safetensors"
    source = str(folder.absolute())
    kept = read_kept(cache, source)
    if kept is not None:
        return kept
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as model:
        DDPMPipeline(unet=network, scheduler=DDPMScheduler(num_train_timesteps=1000)).save_pretrained(model)
        splits = open_images("cifar10", model=model, data=folder).images
    images = {split: getattr(splits, split).contiguous() for split in _SPLITS}
    counts = ", ".join(f"{len(part):,} {split}" for split, part in images.items())
    if not (folder / "test").is_dir() and not (folder / "cifar-10-batches-py").is_dir():
        say(f"{folder} has no test/: its test images are split off the others")
    say(f"read {counts} images in {time.monotonic() - started:.0f} s")
    keep(cache, images, source)
    return images


def keep(cache: Path, tensors: dict[str, Tensor], source: str) -> None:
    """Keep tensors that were read from a source."""
    with atomic_path(cache) as temporary:
        save_file(tensors, temporary, metadata={"source": source})


def read_kept(cache: Path, source: str) -> dict[str, Tensor] | None:
    """The tensors that `keep` kept, if they are whole and from that source."""
    try:
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("source") != source:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError):
        return None


def markdown(title: str, notes: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A section with a table, in the form of the files in benchmarks/results."""
    frame = pd.DataFrame(rows)
    lines = [f"## {title}", "", *notes, "", "| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def write_section(work: Path, stage: str, text: str) -> None:
    """Keep a stage's section in `work/report/` and show it."""
    write_text(work / "report" / f"{stage}.md", text)
    say("\n" + text)
