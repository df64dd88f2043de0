"""Dense diffusion networks of diffusers folders and of the hub: every weight loaded from a file, or an error.

A network is made on the meta device, which has no memory, and its weights are taken from the files: a key that is missing,
or of another shape, is an error with its name, and no weight is ever left as the memory was. What is put right on the way
(prefixes removed, keys left out, half precision) is told in `Pretrained.notes`.
"""

from __future__ import annotations

import inspect
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.files import is_lfs_pointer, read_json, write_json
from maskpro.noise_schedule import NoiseScheduleError, read_noise_schedule

# Beside model_index.json: {"ema": true}, false, or in words, for records that FID depends on.
WEIGHTS_RECORD = "weights.json"
EMA_NOT_RECORDED = "as stored in the checkpoint; not recorded"
# The hub's checkpoint holds the raw weights, whose FID is about 12.
CIFAR10_HUB_MODEL = "google/ddpm-cifar10-32"

_WEIGHTS = "diffusion_pytorch_model"
# Names that weights are found under, first the ones of diffusers.
_STEMS = (_WEIGHTS, "model", "pytorch_model")
# Parts of names that torch's wrappers of modules add, wherever they stand.
_WRAPPER_PARTS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Names that diffusers gave the parts of attention before 0.15, as the hub's older checkpoints have them.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Pipelines that look like an image DDPM by their parts, and are none.
_OTHER_PIPELINES = {
    "ConsistencyModelPipeline": "a consistency model",
    "ScoreSdeVePipeline": "a variance-exploding process",
    "KarrasVePipeline": "a variance-exploding process",
    "LDMPipeline": "latent diffusion",
    "LDMSuperResolutionPipeline": "latent diffusion",
}
# Parts of a pipeline that make images of what the network denoises, or that tell it what to make.
_OTHER_PARTS = {
    "vae": "latent diffusion",
    "vqvae": "latent diffusion",
    "movq": "latent diffusion",
    "vqgan": "latent diffusion",
    "decoder": "latent diffusion",
    "text_encoder": "conditioned on text",
    "bert": "conditioned on text",
    "image_encoder": "conditioned on images",
    "prior": "conditioned on embeddings",
}
# What diffusers' EMAModel writes into the config of the weights that it saves.
_EMA_FIELDS = ("decay", "optimization_step", "inv_gamma", "min_decay", "power", "update_after_step", "use_ema_warmup")
_NAMED_KEYS = 3


class ModelNotFoundError(MaskproError):
    """A model could not be had; the message says what was looked for, where, and the option that fixes it."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A dense network with its noise schedule.

    Attributes:
        unet: float32, frozen, in evaluation mode.
        ema: whether the weights are an average over the training (EMA), in words.
        notes: what was converted, left out or guessed, a sentence each.
    """

    unet: UNet2DModel
    scheduler: DDPMScheduler
    ema: str
    notes: tuple[str, ...] = ()


def load_pretrained(source: str, *, ema: bool = False) -> Pretrained:
    """The network and noise schedule of a diffusers DDPM folder or hub model.

    Args:
        ema: take the weights in `unet_ema/`, which diffusers' training script saves beside `unet/`.

    Raises:
        ModelNotFoundError: nothing there, not a diffusers DDPM, or weights that don't fit it exactly.
    """
    if not source.strip():
        raise ModelNotFoundError(f"model is {source!r}; allowed: a diffusers DDPM folder or hub name (--model)")
    folder = Path(source)
    is_on_hub = not folder.is_dir()
    if is_on_hub:
        if source.count("/") != 1 or folder.is_absolute() or source.startswith("."):
            raise ModelNotFoundError(f"no model folder {source}; name a diffusers DDPM folder with --model")
        folder = _download(source)
    index = _read_index(folder, source)
    # The hub's older pipelines keep unet and scheduler in the top folder.
    parts = {part: folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler")}
    notes = [f"{name} of the pipeline is not used" for name in _unused_parts(index)]
    if ema:
        if not (folder / "unet_ema").is_dir():
            raise ModelNotFoundError(f"ema is True, but model {source} has no folder unet_ema; allowed: without --ema")
        parts["unet"] = folder / "unet_ema"
        notes.append("the weights are those of unet_ema/ (--ema)")
    elif (folder / "unet_ema").is_dir():
        notes.append("unet_ema/ beside unet/ holds weights averaged over the training; --ema takes them")
    config = _read_config(parts["unet"] / "config.json", source)
    try:
        scheduler, note = read_noise_schedule(
            _read_config(parts["scheduler"] / "scheduler_config.json", source),
            named_class=_class_of(index, "scheduler"),
        )
    except NoiseScheduleError as error:
        raise ModelNotFoundError(f"model {source} is not a DDPM: {error} (--model)") from error
    unet, said = _load_unet(parts["unet"], config, source)
    _check_unet(unet, scheduler, source)
    return Pretrained(
        unet=unet.eval().requires_grad_(False),
        scheduler=scheduler,
        ema="EMA weights" if ema else _ema(source, folder, config, is_on_hub),
        notes=(*notes, *([note] if note else []), *said),
    )


def save_pipeline(folder: Path, model: nn.Module, scheduler: DDPMScheduler, *, ema: str = EMA_NOT_RECORDED) -> None:
    """Write a diffusers pipeline folder that `DDPMPipeline.from_pretrained` loads; `folder` must exist.

    Args:
        ema: what is known of the weights' average (`Pretrained.ema`), written to `weights.json` beside the pipeline.
    """
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    DDPMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder)
    if ema != EMA_NOT_RECORDED:
        write_json(folder / WEIGHTS_RECORD, {"ema": ema})


def resolution(unet: UNet2DModel) -> int:
    """Height and width of the images that a checked network takes; its config may hold one number or two equal ones."""
    size = unet.config["sample_size"]
    return int(size if isinstance(size, int) else size[0])


def _read_index(folder: Path, source: str) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        above = folder.absolute().parent
        hint = f" (the pipeline is {above})" if (above / "model_index.json").is_file() else ""
        raise ModelNotFoundError(
            f"model folder {source} is not a diffusers pipeline: it has no model_index.json{hint}; name another with "
            "--model"
        )
    index = read_json(path)
    if not isinstance(index, dict):
        raise ModelNotFoundError(
            f"model folder {source} is not a diffusers pipeline: model_index.json holds no table (--model)"
        )
    classes = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]}
    kind = _OTHER_PIPELINES.get(index.get("_class_name", ""))
    for part in classes:
        kind = kind or _OTHER_PARTS.get(part)
    if kind:
        parts = ", ".join(f"{name} {found}" for name, found in classes.items())
        raise ModelNotFoundError(
            f"model {source} is a {index.get('_class_name', 'pipeline')} of {parts} ({kind}); allowed: a DDPM of images, a "
            "pipeline of UNet2DModel and scheduler alone (--model)"
        )
    if classes.get("unet") != "UNet2DModel":
        raise ModelNotFoundError(
            f"model {source} holds a unet of class {classes.get('unet')}; allowed: UNet2DModel (--model)"
        )
    return index


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    value = index.get(part)
    return str(value[1]) if isinstance(value, list) and len(value) == 2 and value[1] else None


def _unused_parts(index: Mapping[str, Any]) -> list[str]:
    known = ("unet", "scheduler", "unet_ema")
    return [name for name, value in index.items() if isinstance(value, list) and any(value) and name not in known]


def _read_config(path: Path, source: str) -> dict[str, Any]:
    if not path.is_file():
        raise ModelNotFoundError(f"model {source} can't be loaded (no file {path}); name another with --model")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ModelNotFoundError(f"model {source} can't be loaded ({path} holds no table); name another with --model")
    return config


def _load_unet(folder: Path, config: Mapping[str, Any], source: str) -> tuple[UNet2DModel, list[str]]:
    """The network of a folder, and what to tell the user of its weights."""
    _check_config(config, source)
    known = inspect.signature(UNet2DModel.__init__).parameters
    settings = {name: value for name, value in config.items() if name in known}
    unknown = [name for name in config if name not in known and name not in _EMA_FIELDS and not name.startswith("_")]
    notes = [f"entries of config.json that UNet2DModel doesn't know are left out: {_some(unknown)}"] if unknown else []
    try:
        with torch.device("meta"):
            unet = UNet2DModel(**settings)
        if unet.state_dict().keys() != {name for name, _ in (*unet.named_parameters(), *unet.named_buffers())}:
            with torch.random.fork_rng(devices=[]):  # buffers that no file holds need a network with memory
                unet = UNet2DModel(**settings)
    except Exception as error:
        # Whatever diffusers makes of a config that it can't take: there is no list of its errors.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelNotFoundError(
            f"model {source} can't be made of {folder / 'config.json'} ({reason}); name another with --model"
        ) from error
    found, said = _read_weights(folder, source)
    notes += said
    expected = {name: value.shape for name, value in unet.state_dict().items()}
    weights, said = _matched(found, expected, source)
    notes += said
    kinds = {value.dtype for value in weights.values()} - {torch.float32}
    for name, value in weights.items():
        if value.dtype not in _FLOATS:
            raise ModelNotFoundError(
                f"model {source} holds {str(value.dtype).removeprefix('torch.')} in {name}; allowed: floating-point "
                "weights, not quantised (--model)"
            )
    if kinds:
        notes.append(
            f"weights stored as {', '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))} are float32"
        )
    # Copies: a file that is mapped into memory may change while it is in use.
    unet.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in weights.items()}, assign=True)
    return unet, notes


def _read_weights(folder: Path, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a folder's weights, whatever form of file they are in, and what to tell the user of it."""
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
    """Variants that the files are of, the plain one ("") first."""
    forms = (
        rf"{stem}(?:\.(?P<v>\w+))?\.{ending}",
        rf"{stem}(?:\.(?P<v>\w+))?-\d+-of-\d+\.{ending}",
        rf"{stem}\.{ending}\.index(?:\.(?P<v>\w+))?\.json",
    )
    matches = [match for form in forms for name in files if (match := re.fullmatch(form, name))]
    return sorted({match["v"] or "" for match in matches}, key=lambda variant: (variant != "", variant != "fp16", variant))


def _files_of(folder: Path, files: set[str], stem: str, variant: str, ending: str, source: str) -> list[str]:
    """The files that hold a variant's weights: one, or the shards that an index, or their numbers, tell of."""
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
    for table in tables:  # weights may lie in a table of their own, as {"state_dict": ...}
        if isinstance(table, Mapping) and table and all(isinstance(value, Tensor) for value in table.values()):
            return {str(name): value for name, value in table.items()}
    raise ModelNotFoundError(
        f"model {source} can't be loaded ({path.name} is no table of tensors); name another with --model"
    )


def _matched(
    found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the network's own names, and what was done to their names.

    Raises:
        ModelNotFoundError: a key is missing, there twice, or of another shape.
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
        there = f"; it holds {_some(extra)} instead" if extra else ""
        raise ModelNotFoundError(
            f"model {source} lacks {len(missing)} of the network's {len(expected)} weights: {_some(missing)}{there}; name "
            "a whole one with --model"
        )
    wrong = [name for name, shape in expected.items() if found[named[name]].shape != shape]
    if wrong:
        name = wrong[0]
        raise ModelNotFoundError(
            f"model {source} holds {len(wrong)} weights of another shape than its config.json: {name} is "
            f"{list(found[named[name]].shape)}, allowed: {list(expected[name])} (--model)"
        )
    if extra:
        notes.append(f"{len(extra)} keys belong to no layer and are left out: {_some(extra)}")
    return {name: found[named[name]] for name in expected}, notes


def _without_wrappers(name: str, expected: Mapping[str, Any]) -> str:
    if name in expected:
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def _prefixes(named: Mapping[str, str], expected: Mapping[str, Any]) -> list[str]:
    """Prefixes under which keys lie that the network lacks: of the most keys, an average's (EMA) last; [] for none."""
    lacking = {key for key in expected if key not in named and _modern_inverse(key) not in named}
    counts: dict[str, int] = {}
    for key in named:
        parts = key.split(".")
        for cut in range(1, min(len(parts), 6)):
            if _modern(".".join(parts[cut:])) in lacking:
                prefix = ".".join(parts[:cut]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    # A prefix is one of the whole network: keys of a layer also end like those of another.
    whole = [prefix for prefix, count in counts.items() if count > len(expected) // 2]
    return sorted(whole, key=lambda prefix: ("ema" in prefix.lower(), -counts[prefix], prefix))


def _modern(key: str) -> str:
    """A key under the names of today's attention."""
    return ".".join(_OLD_ATTENTION.get(part, part) for part in key.split("."))


def _modern_inverse(key: str) -> str:
    for old, new in _OLD_ATTENTION.items():
        key = key.replace(f".{new}.", f".{old}.")
    return key


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_KEYS} more" if len(names) > _NAMED_KEYS else ""
    return ", ".join(names[:_NAMED_KEYS]) + more


def _check_config(config: Mapping[str, Any], source: str) -> None:
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise ModelNotFoundError(f"model {source} is class-conditional; allowed: an unconditional DDPM (--model)")
    if config.get("time_embedding_type") == "fourier":
        raise ModelNotFoundError(
            f"model {source} has time_embedding_type fourier, of networks that take a noise level and divide by it (not "
            "finite at timestep 0); allowed: positional, learned (--model)"
        )


def _check_unet(unet: UNet2DModel, scheduler: DDPMScheduler, source: str) -> None:
    config = unet.config
    sides = config["sample_size"]
    sides = [sides, sides] if isinstance(sides, int) else sides
    is_square = isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(side, int) for side in sides)
    if config["out_channels"] != config["in_channels"] or not is_square or sides[0] != sides[1] or sides[0] < 1:
        raise ModelNotFoundError(
            f"model {source} has in_channels {config['in_channels']}, out_channels {config['out_channels']}, sample_size "
            f"{json.dumps(config['sample_size'])}; allowed: as many out as in, and a square sample_size, such as 32 or "
            "[32, 32] (--model)"
        )
    if config["in_channels"] not in (1, 3):
        raise ModelNotFoundError(
            f"model {source} has in_channels {config['in_channels']}; allowed: 1 (grey images) or 3 (colour) (--model)"
        )
    steps = config["num_train_timesteps"]
    if config["time_embedding_type"] == "learned" and steps < scheduler.config["num_train_timesteps"]:
        raise ModelNotFoundError(
            f"model {source} knows {steps} timesteps, its scheduler has {scheduler.config['num_train_timesteps']}; "
            f"allowed: num_train_timesteps of at most {steps} (--model)"
        )
    for name, value in unet.state_dict().items():
        if not value.isfinite().all():
            raise ModelNotFoundError(f"model {source} holds values that are not finite in {name}; name another (--model)")


def _ema(source: str, folder: Path, config: Mapping[str, Any], is_on_hub: bool) -> str:
    """What a record says of the weights' average; a folder's name says nothing."""
    if (folder / WEIGHTS_RECORD).is_file():
        record = read_json(folder / WEIGHTS_RECORD)
        ema = record.get("ema") if isinstance(record, dict) else None
        if not isinstance(ema, bool | str):
            raise ModelNotFoundError(
                f'{folder / WEIGHTS_RECORD} holds {json.dumps(record)[:80]}; allowed: {{"ema": true}} or {{"ema": false}}'
            )
        return ema if isinstance(ema, str) else "EMA weights" if ema else "raw weights (not EMA)"
    if all(name in config for name in _EMA_FIELDS[:2]):
        return f"EMA weights (decay {config['decay']}, {config['optimization_step']} steps, of diffusers' EMAModel)"
    if is_on_hub and source == CIFAR10_HUB_MODEL:
        return "raw weights (not EMA)"
    return EMA_NOT_RECORDED


def _download(name: str) -> Path:
    """The hub model's files: safetensors, or where there are none of the network, .bin."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        unet = folder / "unet" if (folder / "unet").is_dir() else folder
        if not list(unet.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.bin"]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"model {name} is not a folder here and could not be had from the hub ({type(error).__name__}); "
            "name a local diffusers DDPM folder with --model"
        ) from error
    return folder
