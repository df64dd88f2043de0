"""Networks that are no diffusers pipeline yet: original DDPM checkpoints, and folders as a training script leaves them.

An original checkpoint is the layout of the DDIM repository (github.com/ermongroup/ddim, `models/diffusion.py`), which
pytorch_diffusion's port of the TensorFlow weights shares. Its `up` levels count from the image down, diffusers' `up_blocks`
in the order of the pass. Its attention has convolutions of 1x1, diffusers' has linear layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from maskpro.errors import MaskproError, ModelNotFoundError
from maskpro.noise_schedule import DDPM_SCHEDULE, DDPM_SCHEDULE_WORDS, read_noise_schedule
from maskpro.pretrained import (
    EMA_NOT_RECORDED,
    EMA_WORDS,
    Pretrained,
    check_unet,
    empty_unet,
    fill_unet,
    load_pretrained,
)
from maskpro.weight_files import read_checkpoint
from maskpro.weight_keys import some_names

# A key that every original checkpoint has, and no other layout.
_MARK = "temb.dense.0.weight"
# A training run of DDIM saves the list [weights, optimizer, epoch, step, EMA weights].
_RAW_IN_LIST, _EMA_IN_LIST = "0.", "4."
# diffusers' names of parts, and the original's.
_NAMES = {
    "time_embedding.linear_1": "temb.dense.0",
    "time_embedding.linear_2": "temb.dense.1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "down_blocks": "down",
    "up_blocks": "up",
    "resnets": "block",
    "attentions": "attn",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "time_emb_proj": "temb_proj",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
# What the original code fixes for all its networks.
_FIXED = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "act_fn": "silu",
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
}


def read_network(source: str, *, ema: bool | None = None, sample_size: int | None = None) -> Pretrained:
    """A network from an original DDPM checkpoint, a training script's folder, or any diffusers folder or hub model.

    Args:
        ema: which weights to take where there are EMA and raw ones (default: EMA); else what the user says they are.
        sample_size: height and width of the images, which an original checkpoint does not hold.

    Raises:
        MaskproError: no such network, one of another layout, or options that contradict it.
    """
    path = Path(source)
    if path.is_file():
        return _read_original(path, ema, sample_size)
    if sample_size is not None:
        raise MaskproError(f"sample_size is {sample_size}, but {source} is no checkpoint file; allowed: without it")
    pretrained = load_pretrained(source, ema=False if ema is False else None, from_training=True)
    if ema is None or pretrained.ema.startswith(EMA_WORDS[ema]):
        return pretrained
    if pretrained.ema != EMA_NOT_RECORDED:
        raise MaskproError(f"ema is {ema}, but {source} is recorded as {pretrained.ema}; allowed: without --ema or --raw")
    return replace(pretrained, ema=EMA_WORDS[ema])


def _read_original(path: Path, ema: bool | None, sample_size: int | None) -> Pretrained:
    source = str(path)
    found, is_ema, notes = _chosen(read_checkpoint(path, source), source, ema)
    config, said = _config(found, source, sample_size)
    unet, _ = empty_unet(config, source, "the shapes of its tensors")
    levels = len(config["block_out_channels"])
    names = {_original_name(name, levels): name for name in unet.state_dict()}
    unknown, missing = [key for key in found if key not in names], [key for key in names if key not in found]
    if unknown or missing:
        wrong = f"keys of no known layout: {some_names(unknown)}" if unknown else f"no {some_names(missing)}"
        raise ModelNotFoundError(f"{source} holds {wrong}; allowed: the {len(names)} keys of an original DDPM checkpoint")
    is_convolution = {key: value.shape[2:] == (1, 1) and ".attn" in key for key, value in found.items()}
    weights = {names[key]: value[:, :, 0, 0] if is_convolution[key] else value for key, value in found.items()}
    notes += said + fill_unet(unet, weights, source)
    # `var_type` of the repositories' configs: LSUN's networks, of 256x256, have fixedsmall, the others fixedlarge.
    variance = "fixed_small" if config["sample_size"] == 256 else "fixed_large"
    scheduler, _ = read_noise_schedule({**DDPM_SCHEDULE, "variance_type": variance}, named_class=None)
    notes.append(f"the schedule is not in the file; the DDPM paper's is taken ({DDPM_SCHEDULE_WORDS}, {variance})")
    check_unet(unet, scheduler, source)
    return Pretrained(
        unet=unet.eval().requires_grad_(False),
        scheduler=scheduler,
        ema=EMA_NOT_RECORDED if is_ema is None else EMA_WORDS[is_ema],
        notes=tuple(notes),
    )


def _chosen(found: Mapping[str, Tensor], source: str, ema: bool | None) -> tuple[dict[str, Tensor], bool | None, list[str]]:
    """Of the networks in a file the one that was asked for, whether it is the EMA one, and notes for the user."""
    prefixes = [key.removesuffix(_MARK) for key in found if key.endswith(_MARK)]
    if not prefixes:
        raise ModelNotFoundError(
            f"{source} holds keys of no known layout: {some_names(list(found))}; allowed: an original DDPM checkpoint "
            f"(with {_MARK}), or a diffusers folder"
        )
    averaged = [prefix for prefix in prefixes if "ema" in prefix.lower() or prefix.startswith(_EMA_IN_LIST)]
    raw = [prefix for prefix in prefixes if prefix not in averaged]
    if not averaged and len(raw) > 1:
        raise ModelNotFoundError(
            f"{source} holds {len(raw)} networks, under {some_names(raw)}, and names none of them EMA; allowed: one "
            "network, a list of a DDIM training run, or a table with EMA weights under ema"
        )
    is_known = bool(averaged) or raw[0].startswith(_RAW_IN_LIST)
    is_ema = bool(averaged and (ema is not False or not raw)) if is_known else ema
    if ema not in (None, is_ema):
        raise MaskproError(f"ema is {ema}, but {source} holds {EMA_WORDS[not ema]} alone; allowed: without --ema or --raw")
    prefix = averaged[0] if averaged and is_ema else raw[0]
    others = [key for key in found if not key.startswith((*averaged[:1], *raw[:1]))]
    notes = []
    if averaged and raw:
        taken = "EMA ones are taken (--raw: the others)" if is_ema else "raw ones are taken"
        notes.append(f"of the file's EMA and raw weights the {taken}")
    if others:
        notes.append(f"{len(others)} tensors beside the network are left out: {some_names(others)}")
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}, is_ema, notes


def _config(found: Mapping[str, Tensor], source: str, sample_size: int | None) -> tuple[dict[str, Any], list[str]]:
    """The config of the network with these tensors, and notes for the user."""
    levels = max(1, len({match[1] for key in found if (match := re.match(r"down\.(\d+)\.", key))}))
    blocks = [f"down.{level}.block.0.conv1.weight" for level in range(levels)]
    for key in ("conv_in.weight", "conv_out.weight", *blocks):
        if key not in found or found[key].ndim != 4:
            raise ModelNotFoundError(f"{source} holds no convolution {key}; allowed: a whole original DDPM checkpoint")
    attention = [level for level in range(levels) if f"down.{level}.attn.0.q.weight" in found]
    notes = []
    if sample_size is None:
        if len(attention) != 1:
            raise MaskproError(
                f"sample_size is missing: {source} has attention at {len(attention)} resolutions, and not at 16x16 alone, "
                "from which it would follow; allowed: --sample-size"
            )
        sample_size = 16 << attention[0]
        notes.append(
            f"sample_size {sample_size} is guessed: attention at 16x16, as in DDPM's networks (else --sample-size)"
        )
    if sample_size < 1 or sample_size % 2 ** (levels - 1):
        raise MaskproError(
            f"sample_size is {sample_size}; allowed with {levels} resolutions: a multiple of {2 ** (levels - 1)}"
        )
    kinds = ["Attn" if level in attention else "" for level in range(levels)]
    return {
        **_FIXED,
        "sample_size": sample_size,
        "in_channels": found["conv_in.weight"].shape[1],
        "out_channels": found["conv_out.weight"].shape[0],
        "layers_per_block": len({key.split(".")[3] for key in found if key.startswith("down.0.block.")}),
        "block_out_channels": [found[key].shape[0] for key in blocks],
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
    }, notes


def _original_name(name: str, levels: int) -> str:
    """The original's key of one of diffusers' weights."""
    name = re.sub(r"^up_blocks\.(\d+)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}", name)
    for part, original in _NAMES.items():
        name = name.replace(part, original)
    return name
