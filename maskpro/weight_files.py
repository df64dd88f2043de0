"""The tensors of a folder's weights, from safetensors or torch files, with variants and shards."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from maskpro.errors import ModelNotFoundError
from maskpro.files import is_lfs_pointer, read_json

_WEIGHTS = "diffusion_pytorch_model"
# Names of weight files, those of diffusers first.
_STEMS = (_WEIGHTS, "model", "pytorch_model")


def read_weights(folder: Path, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a folder's weights, and notes for the user."""
    files = {path.name for path in folder.iterdir() if path.is_file()}
    for ending in ("safetensors", "bin"):
        for stem in _STEMS:
            for variant in _variants(files, stem, ending):
                names = _files_of(folder, files, stem, variant, ending, source)
                weights: dict[str, Tensor] = {}
                for name in names:
                    weights |= _read_file(folder / name, source)
                return weights, [f"weights of the variant {variant} are taken, the only ones there"] if variant else []
    others = sorted(name for name in files if name.endswith((".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")))
    there = f"; there are {', '.join(others)}" if others else ""
    raise ModelNotFoundError(
        f"model {source} can't be loaded (no {_WEIGHTS}.safetensors, no {_WEIGHTS}.bin and no shards of them in "
        f"{folder}{there}); name another with --model"
    )


def _variants(files: set[str], stem: str, ending: str) -> list[str]:
    """The variants among the files, the plain one ("") first."""
    forms = (
        rf"{stem}(?:\.(?P<v>\w+))?\.{ending}",
        rf"{stem}(?:\.(?P<v>\w+))?-\d+-of-\d+\.{ending}",
        rf"{stem}\.{ending}\.index(?:\.(?P<v>\w+))?\.json",
    )
    matches = [match for form in forms for name in files if (match := re.fullmatch(form, name))]
    return sorted({match["v"] or "" for match in matches}, key=lambda variant: (variant != "", variant != "fp16", variant))


def _files_of(folder: Path, files: set[str], stem: str, variant: str, ending: str, source: str) -> list[str]:
    """The files with a variant's weights: one file, or shards, as listed in an index or found by their numbers."""
    dotted = f".{variant}" if variant else ""
    single = f"{stem}{dotted}.{ending}"
    if single in files:
        return [single]
    index = folder / f"{stem}.{ending}.index{dotted}.json"
    if index.name in files:
        table = read_json(index)
        shards = (
            sorted(set(table["weight_map"].values()))
            if isinstance(table, dict) and isinstance(table.get("weight_map"), dict)
            else []
        )
    else:
        pattern = re.compile(rf"{re.escape(stem + dotted)}-(\d+)-of-(\d+)\.{ending}")
        numbered = [match for name in sorted(files) if (match := pattern.fullmatch(name))]
        width, count = len(numbered[0][1]), int(numbered[0][2])
        shards = [f"{stem}{dotted}-{k:0{width}}-of-{numbered[0][2]}.{ending}" for k in range(1, min(count, 10_000) + 1)]
    missing = [str(name) for name in shards if name not in files]
    if missing or not shards:
        lacking = f"shard {missing[0]} is missing" if missing else f"{index.name} names no shard"
        raise ModelNotFoundError(f"model {source} can't be loaded ({lacking} in {folder}); name another with --model")
    return shards


def _read_file(path: Path, source: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        if path.is_file() and is_lfs_pointer(path):
            reason = "a pointer of Git LFS, to be fetched with git lfs pull"
        raise ModelNotFoundError(
            f"model {source} can't be loaded ({path.name}: {reason}); name another with --model"
        ) from error
    tables = [content, *(content.values() if isinstance(content, Mapping) else ())]
    for table in tables:  # weights may lie in an inner table, as {"state_dict": ...}
        if isinstance(table, Mapping) and table and all(isinstance(value, Tensor) for value in table.values()):
            return {str(name): value for name, value in table.items()}
    raise ModelNotFoundError(
        f"model {source} can't be loaded ({path.name} is no table of tensors); name another with --model"
    )
