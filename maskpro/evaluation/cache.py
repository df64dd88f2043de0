"""An evaluation's files on disk: the figures of each model and, until these are known, its images in chunks."""

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
from maskpro.objectives import HeldOutValues


class ModelCache:
    """One model's part of a cache folder, under the hashes of its weights and of the evaluation's protocol.

    Files appear whole (`atomic_path`). A broken file, or one of another model or protocol, counts as missing.

    Attributes:
        grid: a picture of the first images; it exists whenever `figures` is not None.
    """

    def __init__(self, cache: Path, model: nn.Module, protocol: dict[str, Any]):
        weights_hash = model_hash(model)
        protocol_hash = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
        self._identity = {"model_hash": weights_hash, "protocol": protocol}
        self._folder = cache / f"{weights_hash[:16]}-{protocol_hash[:16]}"
        self.grid = self._folder / "samples.png"
        self._values = self._folder / "values.safetensors"

    def figures(self) -> dict[str, Any] | None:
        """The model's figures, if they are known."""
        try:
            record = read_json(self._folder / "figures.json")
            figures: dict[str, Any] = record.pop("figures")
            known = record == {**self._identity, **self._hashes()}
        except (MaskproError, OSError, KeyError, AttributeError, TypeError):
            return None
        return figures if known else None

    def keep_figures(self, figures: dict[str, Any], images: Tensor, values: HeldOutValues) -> None:
        """Keep the figures, a picture of the first of the images (uint8 `[B, C, H, W]`), and the test samples' values."""
        save_grid(images, self.grid)
        with atomic_path(self._values) as temporary:
            save_file({"losses": values.losses, "errors": values.errors}, temporary)
        record = {**self._identity, **self._hashes(), "figures": figures}
        write_json(self._folder / "figures.json", record)

    def values(self) -> HeldOutValues:
        """Losses and errors of the test samples; they exist whenever `figures` is not None."""
        return HeldOutValues(**load_file(self._values))

    def _hashes(self) -> dict[str, str]:
        return {"samples_sha256": file_hash(self.grid), "values_sha256": file_hash(self._values)}

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
