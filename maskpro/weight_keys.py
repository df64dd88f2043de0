"""Tensors of a file under a network's own names: prefixes of wrappers and averages removed, old names translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskpro.errors import ModelNotFoundError

# Parts that torch's wrappers of modules add to names, at any place.
_WRAPPER_PARTS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# diffusers' names for the parts of attention before 0.15, found in older checkpoints on the hub.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Parts of a network that its config may leave out.
_FURTHER_PARTS = {"mid_block", "class_embedding"}
_NAMED_KEYS = 3


def matched_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the network's own names, and notes on what was done to their names.

    Raises:
        ModelNotFoundError: a key is missing, occurs twice, has another shape, or belongs to a layer that the network lacks.
    """
    notes = []
    named = {_without_wrappers(name, expected): name for name in found}
    if len(named) < len(found):
        raise ModelNotFoundError(f"model {source} holds keys twice, with and without the prefix of a wrapper (--model)")
    removed = sorted(
        {part for name in found for part in name.split(".") if part in _WRAPPER_PARTS and name not in expected}
    )
    prefixes = _prefixes(named, expected)
    if prefixes:
        prefix = prefixes[0]
        removed.append(prefix.rstrip("."))
        if len(prefixes) > 1:
            notes.append(f"keys also come with the prefix {', '.join(prefixes[1:])}; those are not used")
        named = {key.removeprefix(prefix): name for key, name in named.items() if key.startswith(prefix)} | {
            key: name for key, name in named.items() if not key.startswith(prefix)
        }
    if removed:
        notes.append(f"prefixes of keys are removed: {', '.join(f'{part}.' for part in removed)}")
    for key in list(named):
        new = _modern(key)
        if new != key and new in expected and new not in named:
            named[new] = named.pop(key)
    missing = [name for name in expected if name not in named]
    extra = [name for name in named if name not in expected]
    if missing:
        there = f"; it holds {some_names(extra)} instead" if extra else ""
        raise ModelNotFoundError(
            f"model {source} lacks {len(missing)} of the network's {len(expected)} weights: {some_names(missing)}{there}; "
            "name a whole one with --model"
        )
    wrong = [name for name, shape in expected.items() if found[named[name]].shape != shape]
    if wrong:
        name = wrong[0]
        raise ModelNotFoundError(
            f"model {source} holds {len(wrong)} weights of another shape than its config: {name} is "
            f"{list(found[named[name]].shape)}, allowed: {list(expected[name])} (--model)"
        )
    parts = {name.split(".")[0] for name in expected} | _FURTHER_PARTS
    foreign = [name for name in extra if name.split(".")[0] in parts and name.endswith((".weight", ".bias"))]
    if foreign:
        raise ModelNotFoundError(
            f"model {source} holds {len(foreign)} weights of layers that its config.json does not have: "
            f"{some_names(foreign)}; allowed: weights and config.json of one network, adapters (LoRA) merged (--model)"
        )
    if extra:
        notes.append(f"{len(extra)} keys belong to no layer and are left out: {some_names(extra)}")
    return {name: found[named[name]] for name in expected}, notes


def _without_wrappers(name: str, expected: Mapping[str, Any]) -> str:
    if name in expected:
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def _prefixes(named: Mapping[str, str], expected: Mapping[str, Any]) -> list[str]:
    """Prefixes of keys that the network lacks, the most frequent first, an average's (EMA) last; [] for none."""
    lacking = {key for key in expected if key not in named and _modern_inverse(key) not in named}
    counts: dict[str, int] = {}
    for key in named:
        parts = key.split(".")
        for cut in range(1, min(len(parts), 6)):
            if _modern(".".join(parts[cut:])) in lacking:
                prefix = ".".join(parts[:cut]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    # A prefix must fit most of the network: a layer's keys may also end like another layer's.
    whole = [prefix for prefix, count in counts.items() if count > len(expected) // 2]
    return sorted(whole, key=lambda prefix: ("ema" in prefix.lower(), -counts[prefix], prefix))


def _modern(key: str) -> str:
    """A key under today's names of attention."""
    return ".".join(_OLD_ATTENTION.get(part, part) for part in key.split("."))


def _modern_inverse(key: str) -> str:
    for old, new in _OLD_ATTENTION.items():
        key = key.replace(f".{new}.", f".{old}.")
    return key


def some_names(names: list[str]) -> str:
    """The first of the names, and the number of the others."""
    more = f" and {len(names) - _NAMED_KEYS} more" if len(names) > _NAMED_KEYS else ""
    return ", ".join(names[:_NAMED_KEYS]) + more
