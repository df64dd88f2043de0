"""What the stages share: images read once, the choice of device and precision, options, sections with tables."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.report import hardware_line
from maskpro.data import split_images
from maskpro.errors import MaskproError
from maskpro.files import atomic_folder, atomic_path, write_text
from maskpro.precision import Precision

ROOT = Path(__file__).parents[2]
# Of an image's side; a rehearsal's are made smaller, as the workload makes them, to the side of its network.
SIZE, TINY_SIZE = 32, 8
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
_SPLITS = ("train", "validation", "test")
# Of --tiny without --images.
_MADE_UP_CLASSES, _MADE_UP_PER_CLASS = 4, 24

ImagesOption = Annotated[
    list[Path] | None,
    typer.Option(help="Zip files or a folder with train/ and test/, a folder per class in each, or cifar-10-batches-py."),
]
WorkOption = Annotated[Path, typer.Option(help="Folder for what the stages leave for each other and go on from.")]
MinutesOption = Annotated[float, typer.Option(min=0.01, help="Of the stage, over all of its sessions.")]
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
    """bfloat16 where the GPU computes in it, else float32, which is then said."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    if device.type == "cuda":
        say(f"{torch.cuda.get_device_name(device)} has no bfloat16: float32 is used")
    return "float32"


def describe_device(device: torch.device) -> str:
    """The GPU's name or the processor's, and torch's version."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else hardware_line()
    return f"{place}, torch {torch.__version__}"


def command_line() -> str:
    """The command that runs, as it can be typed again."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join(["python", "-m", module.name if module else sys.argv[0], *sys.argv[1:]])


def today() -> str:
    """The date, as records have it."""
    return datetime.date.today().isoformat()


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images uint8 `[count, 3, 32, 32]` by split, with labels `[count]`, split as the workload `cifar10` splits them.

    Attributes:
        labels: empty where the images are in no folders per class.
        source: where they came from.
    """

    images: dict[str, Tensor]
    labels: dict[str, Tensor] = field(default_factory=dict)
    source: str


def image_folder(images: Sequence[Path] | None, work: Path, *, tiny: bool) -> Path:
    """The folder that `--data` of the main job takes: that of `images`, or zip files unpacked in the work folder.

    Raises:
        MaskproError: there is no such file or folder, or a zip file is broken.
    """
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
    """The folder that holds train/, which archives may have put one level down."""
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


def load_images(folder: Path, work: Path, *, size: int = SIZE) -> LabelledImages:
    """The images of a folder, of `size` pixels a side, decoded once and then kept in `work/images_<size>.safetensors`.

    Raises:
        MaskproError: an image can't be read, or there are too few.
    """
    cache = work / f"images_{size}.safetensors"
    kept = _kept(cache, str(folder.absolute()))
    if kept is not None:
        return kept
    started = time.monotonic()
    parts = _torchvision(folder, size) if (folder / "cifar-10-batches-py").is_dir() else _folders(folder, size)
    images = {split: part[0].contiguous() for split, part in parts.items()}
    labels = {split: part[1] for split, part in parts.items()}
    if len(torch.cat([*labels.values()]).unique()) < 2:
        labels = {}
    tensors = images | {f"{split}_labels": part.contiguous() for split, part in labels.items()}
    with atomic_path(cache) as temporary:
        save_file(tensors, temporary, metadata={"source": str(folder.absolute())})
    count = sum(map(len, images.values()))
    say(f"decoded {count:,} images in {time.monotonic() - started:.0f} s")
    return LabelledImages(images=images, labels=labels, source=str(folder))


def _kept(cache: Path, source: str) -> LabelledImages | None:
    try:
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("source") != source:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError):
        return None
    labels = {split: tensors[f"{split}_labels"] for split in _SPLITS if f"{split}_labels" in tensors}
    return LabelledImages(images={split: tensors[split] for split in _SPLITS}, labels=labels, source=source)


Part = tuple[Tensor, Tensor]


def _torchvision(folder: Path, size: int) -> dict[str, Part]:
    from torchvision.datasets import CIFAR10

    if size != SIZE:
        raise MaskproError(f"images of {folder} are {SIZE} pixels wide, the network takes {size}; allowed: files of images")
    try:
        sets = [CIFAR10(str(folder), train=train) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise MaskproError(f"images of {folder} can't be read ({error}); allowed: torchvision's CIFAR-10") from error
    train, test = ((torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)) for part in sets)
    rest, validation = _split(train, 5000)
    return {"train": rest, "validation": validation, "test": test}


def _folders(folder: Path, size: int) -> dict[str, Part]:
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = (_read(folder / name, size) for name in ("train", "test"))
        rest, validation = _split(train, max(1, len(train[0]) // 10))
        return {"train": rest, "validation": validation, "test": test}
    every = _read(folder, size)
    if len(every[0]) < 10:
        raise MaskproError(f"{len(every[0])} images below {folder}; at least 10 are needed (--images)")
    say(f"{folder} has no test/ beside train/: a tenth of its images is split off as test images, a tenth for validation")
    rest, held_out = _split(every, 2 * (len(every[0]) // 10))
    half = len(held_out[0]) // 2
    validation, test = ((held_out[0][part], held_out[1][part]) for part in (slice(half), slice(half, None)))
    return {"train": rest, "validation": validation, "test": test}


def _split(part: Part, validation: int) -> tuple[Part, Part]:
    """As the workload splits its images, so that the dense network has never seen what the search calls held out."""
    images, labels = part
    rest, held_out = split_images(torch.arange(len(images)), validation=validation, seed=0)
    return (images[rest], labels[rest]), (images[held_out], labels[held_out])


def _read(root: Path, size: int) -> Part:
    from PIL import Image
    from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

    def read(path: Path) -> Tensor:
        try:
            with Image.open(path) as opened:
                image = pil_to_tensor(opened.convert("RGB"))
        except OSError as error:
            raise MaskproError(f"{path} is not a readable image; remove it (--images)") from error
        if image.shape[-2:] != (size, size):
            image = center_crop(resize(image, [size], antialias=True), [size, size])
        return image

    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise MaskproError(f"no images below {root}; allowed: {', '.join(sorted(_SUFFIXES))} (--images)")
    with ThreadPoolExecutor() as pool:
        images = torch.stack(list(pool.map(read, paths, chunksize=64)))
    names = {name: number for number, name in enumerate(sorted({path.parent.name for path in paths}))}
    return images, torch.tensor([names[path.parent.name] for path in paths])


def markdown(title: str, notes: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A section with a table, as RESULTS.md has them."""
    frame = pd.DataFrame(rows)
    lines = [f"## {title}", "", *notes, "", "| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def write_section(work: Path, stage: str, text: str) -> None:
    """Keep a stage's section in `work/report/` and show it."""
    write_text(work / "report" / f"{stage}.md", text)
    say("\n" + text)
