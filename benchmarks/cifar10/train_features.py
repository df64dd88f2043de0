"""Trains a classifier of CIFAR-10; its penultimate features judge images where Inception's weights are not available.

python -m benchmarks.cifar10.train_features --images train-1.zip --images train-2.zip --images test.zip --minutes 1
python -m benchmarks.cifar10.train_features --tiny                    # a rehearsal on the CPU, made-up images

Writes `features.pt` (TorchScript: uint8 images `[B, 3, 32, 32]` to float32 features `[B, 256]`, normalised inside) for
`--features` of the main job and of `maskpro evaluate`, and beside it `features.json` with the accuracy on test images.
After a kill the same command resumes from the newest checkpoint.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cifar10.common import (
    SIZE,
    TINY_SIZE,
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
    write_section,
)
from benchmarks.cifar10.labelled import LabelledImages, labelled_images
from benchmarks.resumable import Deadline
from maskpro.commands.running import run_command
from maskpro.files import atomic_path, write_json
from maskpro.names import Precision
from maskpro.precision import autocast

FEATURES_FILE = "features.pt"
_PEAK_LR = 0.4  # at batch 512, with momentum; the recipe of short ResNet-9 runs
_WARM_UP = 0.2  # share of the time
_WEIGHT_DECAY = 5e-4
_SMOOTHING = 0.1
_PADDING = 4
_RESERVED_SHARE = 0.12


def _convolution(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.inner(x)
        return x + inner


class Features(nn.Module):
    """A ResNet-9 with global average pooling: uint8 images `[B, 3, 32, 32]` to float32 features `[B, 8 * width]`."""

    def __init__(self, width: int):
        super().__init__()
        self.trunk = nn.Sequential(
            _convolution(3, 2 * width),
            _convolution(2 * width, 4 * width, pool=True),
            _Residual(4 * width),
            _convolution(4 * width, 6 * width, pool=True),
            _convolution(6 * width, 8 * width, pool=True),
            _Residual(8 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, 8 * width]`, float32, of uint8 images."""
        features: Tensor = self.trunk((images.float() - 127.5) / 64.0)
        return features.float()


class Classifier(nn.Module):
    """Features and a linear layer."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.features = Features(width)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits `[B, classes]`."""
        logits: Tensor = self.head(self.features(images))
        return logits


def augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[B, 3, H, W]`, flipped at random and shifted by up to four pixels."""
    count, device = len(images), images.device
    flips = torch.rand(count, 1, 1, 1, generator=draws, device=device) < 0.5
    images = torch.where(flips, images.flip(3), images)
    padded = functional.pad(images, (_PADDING,) * 4)
    rows, columns = (
        torch.randint(2 * _PADDING + 1, (count, 1), generator=draws, device=device)
        + torch.arange(images.shape[side], device=device)
        for side in (2, 3)
    )
    chosen = torch.arange(count, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[chosen, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def learning_rate(progress: float) -> float:
    """Share of the peak at a share of the time: linear rise, then linear fall to zero."""
    return progress / _WARM_UP if progress < _WARM_UP else max(0.0, (1 - progress) / (1 - _WARM_UP))


class ClassifierTraining:
    """Cross-entropy training by SGD. A step's images are a function of its number; the learning rate follows the clock."""

    def __init__(
        self, classifier: Classifier, data: LabelledImages, *, batch_size: int, device: torch.device, precision: Precision
    ):
        self.classifier = classifier.to(device, memory_format=torch.channels_last).train()
        self.steps = 0
        self._images, self._labels = (part["train"].to(device) for part in (data.images, data.labels))
        self._batch_size, self._device, self._precision = batch_size, device, precision
        self._peak = _PEAK_LR * min(1.0, batch_size / 512)
        self._optimizer = torch.optim.SGD(
            self.classifier.parameters(), lr=self._peak, momentum=0.9, nesterov=True, weight_decay=_WEIGHT_DECAY
        )
        self._draws = torch.Generator(device)

    def step(self, progress: float) -> Tensor:
        """Take a step at a share `progress` of the time; its loss, a scalar on the device."""
        self.steps += 1
        draws = self._draws.manual_seed(self.steps)
        chosen = torch.randint(len(self._images), (self._batch_size,), generator=draws, device=self._device)
        images = augment(self._images[chosen], draws).contiguous(memory_format=torch.channels_last)
        with autocast(self._device, self._precision):
            logits = self.classifier(images)
        loss = functional.cross_entropy(logits.float(), self._labels[chosen], label_smoothing=_SMOOTHING)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * learning_rate(progress)
        self._optimizer.step()
        return loss.detach()

    def save(self, path: Path, spent: float) -> None:
        """Save the run and the seconds it took."""
        states = {"classifier": self.classifier.state_dict(), "optimizer": self._optimizer.state_dict()}
        with atomic_path(path) as temporary:
            torch.save({"spent": spent, "steps": self.steps, **states}, temporary)

    def load(self, path: Path) -> float:
        """Resume a run that `save` has saved; returns the seconds it took."""
        kept = torch.load(path, map_location=self._device, weights_only=True)
        self.classifier.load_state_dict(kept["classifier"])
        self._optimizer.load_state_dict(kept["optimizer"])
        self.steps = kept["steps"]
        return float(kept["spent"])


def train(training: ClassifierTraining, deadline: Deadline, checkpoint: Path) -> None:
    """Train until little time is left.

    Raises:
        MaskproError: there was time for no step.
    """
    until = deadline.seconds * (1 - _RESERVED_SHARE)
    shown = saved = deadline.spent
    while deadline.spent < until:
        loss = training.step(deadline.spent / until)
        if training.steps % 10 == 0:
            value, now = loss.item(), deadline.spent  # waits for the GPU
            if now - shown >= 5:
                say(f"step {training.steps:,}, loss {value:.3f}, {until - now:.0f} s of training left")
                shown = now
            if now - saved >= 5:
                training.save(checkpoint, deadline.spent)
                saved = deadline.spent
    if training.steps == 0:
        raise no_time(deadline.seconds / 60)
    training.save(checkpoint, deadline.spent)


@torch.no_grad()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """Share of the images that are classified right."""
    found = torch.cat([classifier(part.to(device)).argmax(1).cpu() for part in images.split(1000)])
    return (found == labels).float().mean().item()


def export(features: Features, path: Path) -> None:
    """Write the features as TorchScript: any later torch reads it without this code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but torch.export files are tied to a version
        traced = torch.jit.trace(features.cpu().eval(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        with atomic_path(path) as temporary:
            torch.jit.save(traced, str(temporary))


def main(
    images: ImagesOption = None, work: WorkOption = WORK, minutes: MinutesOption = 1.0, tiny: TinyOption = False
) -> None:
    """Train the classifier and write its features."""
    deadline = Deadline(minutes)
    device = choose_device(tiny=tiny)
    path, checkpoint = work / FEATURES_FILE, work / "train_features.pt"
    if path.is_file() and path.with_suffix(".json").is_file():
        say(f"{path} is there already: nothing is left to be done (remove it to train another one)")
        return
    data = labelled_images(image_folder(images, work, tiny=tiny), work, size=TINY_SIZE if tiny else SIZE)
    classes = int(torch.cat([*data.labels.values()]).max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(2 if tiny else 32, classes)
    precision, batch_size = choose_precision(device), 32 if tiny else 512
    training = ClassifierTraining(classifier, data, batch_size=batch_size, device=device, precision=precision)
    if checkpoint.is_file():
        deadline = Deadline(minutes, spent=training.load(checkpoint) + deadline.spent)
        say(f"resumes at step {training.steps:,}")
    train(training, deadline, checkpoint)
    classifier.eval()
    right = accuracy(classifier, data.images["test"], data.labels["test"], device)
    export(classifier.features, path)
    record = {
        "test_accuracy": right,
        "features": classifier.head.in_features,
        "steps": training.steps,
        "batch_size": batch_size,
        "precision": precision,
        "minutes": deadline.spent / 60,
        "command": command_line(),
        "device": describe_device(device),
        "date": today(),
        "data": data.source,
        "bytes": path.stat().st_size,
    }
    write_json(path.with_suffix(".json"), record)
    notes = [f"`{record['command']}`, {record['date']}, {record['device']}; never seen: the test images."]
    row = {
        "features": str(record["features"]),
        "steps": f"{training.steps:,} of {batch_size}",
        "minutes": f"{deadline.spent / 60:.1f}",
        "test accuracy": f"{right:.1%}",
        "MiB": f"{path.stat().st_size / 2**20:.1f}",
    }
    write_section(work, "2_train_features", markdown("A classifier whose features judge images", notes, [row]))


if __name__ == "__main__":
    run_command(main)
