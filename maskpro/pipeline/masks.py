"""Masks of networks as they are: pruned in one shot, extracted, read from files and checked against a workload."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from maskpro.dense_layers import dense_layers, multiply_adds
from maskpro.errors import MaskproError
from maskpro.export.eligibility import Eligibility, Target, eligibility
from maskpro.files import atomic_folder, check_new
from maskpro.initial_masks import InitialMaskMethod, extract_masks, magnitude_masked_model, one_shot_mask
from maskpro.machine.process import Say
from maskpro.mask_file import MaskFile, inspect_mask_file, load_mask_file, save_mask_file
from maskpro.masked_model import MaskedModel, check_layer_masks, layer_problems, maskable_layers, model_hash
from maskpro.pattern import Layout, NMPattern
from maskpro.workload import LoadedNetwork, Workload
from maskpro.workloads import DEFAULT_WORKLOAD, workload_kind

MASKS_FILE = "masks.safetensors"


def load_masks_for(workload: Workload, path: Path) -> MaskFile:
    """A mask file, checked to be for the workload's model.

    Raises:
        MaskproError: the file is damaged or for another model.
    """
    return load_masks_of(workload.model, workload.model_source, path)


def load_masks_of(model: nn.Module, source: str, path: Path) -> MaskFile:
    """A mask file, checked to be for the dense `model`, which `source` names.

    Raises:
        MaskproError: the file is damaged or for another model.
    """
    content = load_mask_file(path)
    _check_base(content, path, model, source)
    # Such as of a file that names no base model.
    weights = maskable_layers(model)
    shapes = {name: weights[name].shape for name in content.masks if name in weights}
    check_layer_masks(content.masks, shapes, content.pattern, content.layout)
    MaskedModel(copy.deepcopy(model), pattern=content.pattern, layout=content.layout, covered=content.masks.keys()).groups(
        content.masks
    )
    return content


def _check_base(content: MaskFile, path: Path, model: nn.Module, source: str) -> None:
    """Raise where a mask file's base weights are not those of the model."""
    found = model_hash(model)
    if content.base_hash not in ("", found):
        raise MaskproError(
            f"mask file {path} is for another model (hash {content.base_hash[:12]}; "
            f"{source} has {found[:12]}); name its model with --model"
        )


def magnitude_mask_file(
    workload: Workload,
    *,
    pattern: NMPattern,
    layout: Layout,
    covered: Collection[str] | None = None,
    dense: tuple[str, ...] = (),
) -> MaskFile:
    """The magnitude mask of the workload's network, or of its `covered` layers, as a mask file's content.

    Args:
        dense: parts of the names of layers that stay dense by choice.
    """
    masked = magnitude_masked_model(workload.model, pattern=pattern, layout=layout, covered=covered, dense=dense)
    return MaskFile(
        pattern=pattern,
        layout=layout,
        base_hash=workload.fingerprint(),
        masks=masked.layer_masks(),
        provenance={"method": "magnitude", "model": workload.model_source},
    )


def prune(
    workload: Workload,
    output: Path,
    *,
    pattern: NMPattern,
    layout: Layout,
    method: InitialMaskMethod,
    dense: tuple[str, ...] = (),
    seed: int = 0,
) -> nn.Module:
    """Prune the dense network to n:m in one shot and write it as its own library does; weights are kept or set to zero.

    Args:
        dense: parts of the names of layers that stay dense by choice.

    Raises:
        MaskproError: `output` exists.
    """
    check_new(output, "output folder")
    masked = MaskedModel(copy.deepcopy(workload.model), pattern=pattern, layout=layout, dense=dense)
    objective = workload.training_objective(seed=seed, device=torch.device("cpu"))
    masked.set_mask(one_shot_mask(masked, method, objective=objective, generator=torch.Generator().manual_seed(seed)))
    with atomic_folder(output) as folder:
        workload.save(folder, masked.model)
    return masked.model


def extract(
    pruned_model: str,
    output: Path,
    *,
    pattern: NMPattern,
    layout: Layout,
    original_model: str | None = None,
    nearest: bool = False,
    ema: bool = False,
    workload: str = DEFAULT_WORKLOAD,
    say: Say = print,
) -> MaskFile:
    """Write `masks.safetensors` with the masks of a pruned network's zeros. The network is of the workload's kind.

    Without the original model the file names no base model, and later checks see layer names and shapes only. `nearest`
    needs the original model: zeros that are not n:m become the nearest n:m masks (`extract_masks`). With `ema` the original
    model's weights are their average over the training.

    Raises:
        MaskproError: no zeros, zeros that are not n:m, an original of another architecture, or `output` exists.
    """
    if nearest and original_model is None:
        raise MaskproError("nearest is True without original_model; allowed: with it (its weights decide between masks)")
    load = workload_kind(workload).load
    found = _told(load(pruned_model), say)
    pruned = found.model
    original = None if original_model is None else _told(load(original_model, ema=ema), say).model
    if original is not None:
        _check_same_architecture(pruned, original, f"model_path {pruned_model}", str(original_model))
    try:
        nearest_to = original if nearest else None
        masks = extract_masks(pruned, pattern=pattern, layout=layout, dense=original, nearest_to=nearest_to)
    except MaskproError as error:
        if nearest or "do not keep exactly" not in str(error):
            raise
        raise MaskproError(f"{error}; --nearest with --original-model takes the nearest {pattern} masks") from error
    zeros = maskable_layers(pruned)
    differing = sum(int((mask != (zeros[name] != 0)).sum()) for name, mask in masks.items())
    total = sum(mask.numel() for mask in masks.values())
    content = MaskFile(
        pattern=pattern,
        layout=layout,
        base_hash="" if original is None else model_hash(original),
        masks=masks,
        provenance={
            "extracted_from": pruned_model,
            "share_of_positions_that_differ_from_the_zeros": differing / total,
            "dense_layers": dense_layers(pruned, masks, pattern=pattern, layout=layout, run=found.run).describe(),
        },
    )
    with atomic_folder(output) as folder:
        save_mask_file(folder / MASKS_FILE, content)
    return content


def verify(path: Path, workload: Workload | None = None) -> dict[str, str]:
    """Layer name to the problem of its mask, in itself or with the workload's model; "" for none.

    Layers of the model that the file leaves out are no problem: they stay dense.

    Raises:
        MaskproError: the file is too damaged to separate its layers, or was made for other weights than the model's.
    """
    content, problems = inspect_mask_file(path)
    if workload is not None:
        _check_base(content, path, workload.model, workload.model_source)
        shapes = {name: weight.shape for name, weight in maskable_layers(workload.model).items() if name in content.masks}
        problems = layer_problems(content.masks, shapes, content.pattern, content.layout) | problems
    return {name: problems.get(name, "") for name in content.masks}


def unmasked_layers(path: Path, workload: Workload | None = None) -> dict[str, str]:
    """Name of each maskable layer that a mask file leaves out to the reason why it stays dense.

    The file's own reasons hold. Without the workload these are the layers that the file itself names.
    """
    content, _ = inspect_mask_file(path)
    try:
        recorded = {row["layer"]: row["why"] for row in content.provenance.get("dense_layers", {}).get("layers", [])}
    except (AttributeError, KeyError, TypeError) as error:
        raise MaskproError(f"mask file {path} is damaged: dense_layers of its provenance can't be read") from error
    if workload is None:
        return recorded
    left = workload.dense_layers(content.masks, pattern=content.pattern, layout=content.layout, reasons=recorded)
    return {row.layer: row.why for row in left.layers}


def eligibility_of(path: Path, target: Target, dtype: torch.dtype, workload: Workload | None = None) -> Eligibility:
    """What a target can speed up of the workload's network under the masks of a file; multiply-adds need the workload."""
    masks = load_mask_file(path).masks
    if workload is None:
        return eligibility(masks, target=target, dtype=dtype)
    costs = multiply_adds(workload.model, workload.run_once)
    return eligibility(masks, target=target, dtype=dtype, network=workload.model, multiply_adds=costs)


def load_masked_checkpoint(
    workload: Workload, source: str, *, pattern: NMPattern, layout: Layout, say: Say = print
) -> tuple[nn.Module, list[str]]:
    """A network whose weights are already masked, and the names of its masked layers.

    Groups keep at most n. A group may hold more zeros, as a mask may keep a zero of the dense weights.

    Raises:
        MaskproError: its architecture is not the workload's, it holds no zeros, or its zeros are not n:m.
    """
    model = _told(workload.load_network(source), say).model
    _check_same_architecture(model, workload.model, f"checkpoint_path {source}", workload.model_source)
    masks = extract_masks(model, pattern=pattern, layout=layout, dense=workload.model)
    return model, list(masks)


def _told(found: LoadedNetwork, say: Say) -> LoadedNetwork:
    """The network, after reporting what was converted or left out on loading."""
    for note in found.notes:
        say(f"model {found.name}: {note}")
    return found


def _check_same_architecture(model: nn.Module, expected: nn.Module, what: str, source: str) -> None:
    shapes, wanted = ({name: value.shape for name, value in part.state_dict().items()} for part in (model, expected))
    if shapes != wanted:
        raise MaskproError(f"{what} is of another architecture than {source}")
