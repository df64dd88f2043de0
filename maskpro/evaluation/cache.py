"""What an evaluation keeps on disk: the figures of each model and, until they are known, its images in chunks."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.evaluation.sampling import save_grid
from maskpro.files import atomic_path, file_hash, read_json, write_json
from maskpro.masked_model import model_hash


class ModelCache:
    """One model's part of a cache folder, under the hashes of its weights and of the evaluation's protocol.

    Files appear whole (`atomic_path`); one that is broken, or of something else, counts as missing.

    Attributes:
        grid: a picture of the first images; there whenever `figures` gives something.
    """

    def __init__(self, cache: Path, model: nn.Module, protocol: dict[str, Any]):
        weights_hash = model_hash(model)
        protocol_hash = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
        self._identity = {"model_hash": weights_hash, "protocol": protocol}
        self._folder = cache / f"{weights_hash[:16]}-{protocol_hash[:16]}"
        self.grid = self._folder / "samples.png"

    def figures(self) -> dict[str, Any] | None:
        """The model's figures, if they are known."""
        try:
            record = read_json(self._folder / "figures.json")
            figures: dict[str, Any] = record.pop("figures")
            known = record == {**self._identity, "samples_sha256": file_hash(self.grid)}
        except (MaskproError, OSError, KeyError, AttributeError, TypeError):
            return None
        return figures if known else None

    def keep_figures(self, figures: dict[str, Any], images: Tensor) -> None:
        """Keep the figures and a picture of the first of the images (uint8 `[B, C, H, W]`)."""
        save_grid(images, self.grid)
        record = {**self._identity, "samples_sha256": file_hash(self.grid), "figures": figures}
        write_json(self._folder / "figures.json", record)

    def images(self, indices: range, shape: tuple[int, ...]) -> Tensor | None:
        """The chunk of images of `indices`, uint8 `[len(indices), *shape]`, if it was kept."""
        try:
            images = load_file(self._chunk(indices))["images"]
        except (OSError, SafetensorError, KeyError):
            return None
        fits = images.dtype == torch.uint8 and images.shape == (len(indices), *shape)
        return images if fits else None

    def keep_images(self, indices: range, images: Tensor) -> None:
        """Keep the chunk of images of `indices`."""
        with atomic_path(self._chunk(indices)) as temporary:
            save_file({"images": images}, temporary)

    def drop_images(self) -> None:
        """Remove all chunks."""
        shutil.rmtree(self._folder / "images", ignore_errors=True)

    def _chunk(self, indices: range) -> Path:
        return self._folder / "images" / f"{indices.start:06d}-{indices.stop:06d}.safetensors"
