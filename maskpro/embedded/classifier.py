"""The digits classifier whose penultimate features give the offline Frechet distance of the embedded workload."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maskpro.data import to_model_range

FEATURE_SIZE = 64


class DigitsClassifier(nn.Module):
    """Two convolutions, a 64-unit feature layer and ten classes, for 8x8 images in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, FEATURE_SIZE),
            nn.SiLU(),
        )
        self.head = nn.Linear(FEATURE_SIZE, 10)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features `[B, 64]` of uint8 images `[B, 1, 8, 8]`."""
        features: Tensor = self.trunk(to_model_range(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Class logits `[B, 10]` of uint8 images `[B, 1, 8, 8]`."""
        logits: Tensor = self.head(self.features(images))
        return logits


def load_classifier(path: Path) -> DigitsClassifier:
    """The classifier in evaluation mode, weights read from a safetensors file."""
    with torch.device("meta"):
        classifier = DigitsClassifier()
    classifier.load_state_dict(load_file(path), assign=True)
    return classifier.eval().requires_grad_(False)
