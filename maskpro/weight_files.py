"""The tensors of a folder's weights, from safetensors or torch files, with variants and shards."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from maskpro.errors import ModelNotFoundError
from maskpro.files import is_lfs_pointer, read_json
from maskpro.weight_keys import some_names

_WEIGHTS = "diffusion_pytorch_model"
# Names of weight files, those of diffusers first.
_STEMS = (_WEIGHTS, "model", "pytorch_model")
# Variants that are the plain weights in another precision.
_PRECISIONS = ("fp16", "bf16", "fp32")


def read_weights(folder: Path, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a folder's weights, and notes for the user."""
    files = {path.name for path in folder.iterdir() if path.is_file()}
    for stem in _STEMS:
        for ending in ("safetensors", "bin"):
            for variant in _variants(files, stem, ending):
                names = _files_of(folder, files, stem, variant, ending, source)
                others = _other_weights(files, names, stem, variant, ending)
                alone = "" if others else ", the only ones there"
                notes = [f"weights of the variant {variant} are taken{alone}"] if variant else []
                if others:
                    notes.append(f"other files of weights beside {names[0]} are not used: {some_names(others)}")
                return _read_files(folder, names, source), notes
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
    """The files with a variant's weights: the shards of an index, one file, or shards by their numbers.

    diffusers takes the shards, too, where one file lies beside them. An index whose shards are gone is then passed over.
    """
    dotted = f".{variant}" if variant else ""
    single = f"{stem}{dotted}.{ending}"
    index = folder / f"{stem}.{ending}.index{dotted}.json"
    if index.name in files:
        table = read_json(index)
        weight_map = table.get("weight_map") if isinstance(table, dict) else None
        shards = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        if single in files and not (shards and files.issuperset(shards)):
            return [single]
    elif single in files:
        return [single]
    else:
        pattern = re.compile(rf"{re.escape(stem + dotted)}-(\d+)-of-(\d+)\.{ending}")
        numbered = [match for name in sorted(files) if (match := pattern.fullmatch(name))]
        counts = sorted({match[2] for match in numbered})
        if len(counts) > 1:
            sets = " and of ".join(str(int(count)) for count in counts)
            raise ModelNotFoundError(
                f"model {source} can't be loaded (shards of {sets} files lie beside each other in {folder}, without an "
                "index); allowed: those of one set (--model)"
            )
        width, count = len(numbered[0][1]), int(counts[0])
        shards = [f"{stem}{dotted}-{k:0{width}}-of-{counts[0]}.{ending}" for k in range(1, min(count, 10_000) + 1)]
    missing = [name for name in shards if name not in files]
    if missing or not shards:
        lacking = f"shard {missing[0]} is missing" if missing else f"{index.name} names no shard"
        raise ModelNotFoundError(f"model {source} can't be loaded ({lacking} in {folder}); name another with --model")
    return shards


def _other_weights(files: set[str], used: list[str], stem: str, variant: str, ending: str) -> list[str]:
    """Files with weights that may differ from the used ones: of another name, variant or saving."""
    pattern = re.compile(rf"({'|'.join(_STEMS)})(?:\.(\w+))?(?:-\d+-of-\d+)?\.(safetensors|bin)")
    others = []
    for name in sorted(files - set(used)):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        is_same = match[1] == stem and (match[2] or "") in (variant, *_PRECISIONS)
        if not is_same or (match[3] == ending and (match[2] or "") == variant):
            others.append(name)
    return others


def _read_files(folder: Path, names: list[str], source: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name in names:
        part = _read_file(folder / name, source)
        twice = sorted(weights.keys() & part.keys())
        if twice:
            raise ModelNotFoundError(
                f"model {source} can't be loaded (shard {name} holds {some_names(twice)}, as another shard does); name "
                "another with --model"
            )
        weights |= part
    return weights


def read_checkpoint(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors of a single file; those of a list's tables have the table's place in front ("0.conv_in.weight")."""
    content = _content(path, source)
    tables = dict(enumerate(content)) if isinstance(content, list) else content
    return _tensors_of(tables, path, source)


def _read_file(path: Path, source: str) -> dict[str, Tensor]:
    return _tensors_of(_content(path, source), path, source)


def _content(path: Path, source: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Validating sparse tensor|Sparse CSR tensor")
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises any error for a broken file
        raise ModelNotFoundError(
            f"model {source} can't be loaded ({path.name}: {_why_unreadable(path, error)}); name another with --model"
        ) from error


def _tensors_of(content: Any, path: Path, source: str) -> dict[str, Tensor]:
    # Weights may lie in an inner table, as {"state_dict": ...}; its name is then a prefix of theirs.
    tensors = dict(_tensors(content)) if isinstance(content, Mapping) else {}
    if not tensors:
        raise ModelNotFoundError(
            f"model {source} can't be loaded ({path.name} is no table of tensors); name another with --model"
        )
    return tensors


def _why_unreadable(path: Path, error: Exception) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return "an empty file"
    if path.is_file() and is_lfs_pointer(path):
        return "a pointer of Git LFS, to be fetched with git lfs pull"
    if isinstance(error, pickle.UnpicklingError):  # whose text advises to run what is in the file
        named = re.search(r"GLOBAL (\S+)", str(error))
        code = f"{named[1]} in it may be code and is not run" if named else "others may hold code and are not opened"
        return f"no torch file of tensors alone, such as a network's state_dict(); {code}"
    text = " ".join(str(error).split())[:200]
    # The error of torch for random bytes may be a number alone.
    return text if " " in text else f"damaged or no file of tensors, {type(error).__name__} {text}".rstrip()


def _tensors(table: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a table and of the tables within it; other values are no weights."""
    for name, value in table.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{name}.")
