"""Dense diffusion networks from diffusers folders and the hub: every weight is loaded from a file, or an error.

A network is made on the meta device, which has no memory, and its weights are taken from the files. A key that is missing
or has another shape is an error with its name, so no weight stays uninitialised. `Pretrained.notes` lists every correction
(prefixes removed, keys left out, half precision).
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from maskpro.errors import ModelNotFoundError
from maskpro.files import read_json, write_json
from maskpro.noise_schedule import DDPM_SCHEDULE, DDPM_SCHEDULE_WORDS, NoiseScheduleError, read_noise_schedule
from maskpro.weight_files import read_weights
from maskpro.weight_keys import matched_weights, some_names

# Record beside model_index.json: {"ema": true}, false, or words. FID depends on it.
WEIGHTS_RECORD = "weights.json"
EMA_NOT_RECORDED = "as stored in the checkpoint; not recorded"
EMA_WORDS = {True: "EMA weights", False: "raw weights (not EMA)"}
# The hub's checkpoint holds the raw weights, whose FID is about 12.
CIFAR10_HUB_MODEL = "google/ddpm-cifar10-32"

_SCHEDULER_CONFIG = "scheduler_config.json"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Pipelines that have the parts of an image DDPM but are none.
_OTHER_PIPELINES = {
    "ConsistencyModelPipeline": "a consistency model",
    "ScoreSdeVePipeline": "a variance-exploding process",
    "KarrasVePipeline": "a variance-exploding process",
    "LDMPipeline": "latent diffusion",
    "LDMSuperResolutionPipeline": "latent diffusion",
}
# Parts that turn a pipeline's denoised output into images, or that condition its network.
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
# Fields that diffusers' EMAModel writes into the config of the weights that it saves.
_EMA_FIELDS = ("decay", "optimization_step", "inv_gamma", "min_decay", "power", "update_after_step", "use_ema_warmup")


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


def load_pretrained(source: str, *, ema: bool | None = False, from_training: bool = False) -> Pretrained:
    """The network and noise schedule of a diffusers DDPM folder or hub model.

    Args:
        ema: take the weights in `unet_ema/`, which diffusers' training script saves beside `unet/`; None: if it is there.
        from_training: accept a checkpoint of that script, which has no model_index.json and no scheduler.

    Raises:
        ModelNotFoundError: no such model, not a diffusers DDPM, or weights that don't fit it exactly.
    """
    if not source.strip():
        raise ModelNotFoundError(f"model is {source!r}; allowed: a diffusers DDPM folder or hub name (--model)")
    folder = Path(source)
    is_on_hub = not folder.is_dir()
    if is_on_hub:
        if source.count("/") != 1 or folder.is_absolute() or source.startswith(".") or os.path.lexists(folder):
            raise ModelNotFoundError(f"no model folder {source}; name a diffusers DDPM folder with --model")
        folder = _download(source)
    index = {} if from_training and not (folder / "model_index.json").is_file() else _read_index(folder, source)
    # Older pipelines on the hub keep unet and scheduler in the top folder.
    parts = {part: folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler")}
    notes = [f"{name} of the pipeline is not used" for name in _unused_parts(index)]
    ema = (folder / "unet_ema").is_dir() if ema is None else ema
    if ema:
        if not (folder / "unet_ema").is_dir():
            raise ModelNotFoundError(f"ema is True, but model {source} has no folder unet_ema; allowed: without --ema")
        parts["unet"] = folder / "unet_ema"
        notes.append("the weights are those of unet_ema/ (--ema)")
    elif (folder / "unet_ema").is_dir():
        notes.append("unet_ema/ beside unet/ holds weights averaged over the training; --ema takes them")
    if not ema and (folder / "unet_ema").is_dir() and not (parts["unet"] / "config.json").is_file():
        raise ModelNotFoundError(f"model {source} has a folder unet_ema but no unet; allowed: --ema, which takes it")
    config = _read_config(parts["unet"] / "config.json", source)
    path = parts["scheduler"] / _SCHEDULER_CONFIG
    if from_training and not path.is_file():
        schedule, said = _training_schedule(folder, source)
        notes += said
    else:
        schedule = _read_config(path, source)
    try:
        scheduler, converted = read_noise_schedule(schedule, named_class=_class_of(index, "scheduler"))
    except NoiseScheduleError as error:
        raise ModelNotFoundError(f"model {source} is not a DDPM: {error} (--model)") from error
    unet, said = _load_unet(parts["unet"], config, source)
    check_unet(unet, scheduler, source)
    return Pretrained(
        unet=unet.eval().requires_grad_(False),
        scheduler=scheduler,
        ema=EMA_WORDS[True] if ema else _ema(source, folder, config, is_on_hub),
        notes=(*notes, *converted, *said),
    )


def save_pipeline(folder: Path, model: nn.Module, scheduler: DDPMScheduler, *, ema: str = EMA_NOT_RECORDED) -> None:
    """Write a diffusers pipeline folder that `DDPMPipeline.from_pretrained` loads; `folder` must exist.

    Args:
        ema: what is known of the weights' average (`Pretrained.ema`), written to `weights.json` beside the pipeline.
    """
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    DDPMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder)
    if ema != EMA_NOT_RECORDED:
        record: bool | str = next((is_ema for is_ema, words in EMA_WORDS.items() if words == ema), ema)
        write_json(folder / WEIGHTS_RECORD, {"ema": record})


def resolution(unet: UNet2DModel) -> int:
    """Height and width of a checked network's images; its config holds one number or two equal ones."""
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
    named = index.get("_class_name") or "pipeline"
    pipeline = str(named[-1] if isinstance(named, list) else named)
    kind = _OTHER_PIPELINES.get(pipeline)
    for part in classes:
        kind = kind or _OTHER_PARTS.get(part)
    if kind:
        parts = ", ".join(f"{name} {found}" for name, found in classes.items())
        raise ModelNotFoundError(
            f"model {source} is a {pipeline} of {parts} ({kind}); allowed: a DDPM of images, a "
            "pipeline of UNet2DModel and scheduler alone (--model)"
        )
    if classes.get("unet") != "UNet2DModel":
        raise ModelNotFoundError(
            f"model {source} holds a unet of class {classes.get('unet')}; allowed: UNet2DModel (--model)"
        )
    return index


def _training_schedule(folder: Path, source: str) -> tuple[Mapping[str, Any], list[str]]:
    """The scheduler of a training checkpoint, which has none itself, and notes for the user."""
    for above in folder.absolute().parents[:2]:
        path = above / "scheduler" / _SCHEDULER_CONFIG
        if path.is_file():
            return _read_config(path, source), [f"the scheduler is that of {path.parent}"]
    return DDPM_SCHEDULE, [f"no scheduler is there; that of diffusers' training script is guessed ({DDPM_SCHEDULE_WORDS})"]


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    value = index.get(part)
    return str(value[1]) if isinstance(value, list) and len(value) == 2 and value[1] else None


def _unused_parts(index: Mapping[str, Any]) -> list[str]:
    known = ("unet", "scheduler", "unet_ema")
    unused = {name: value for name, value in index.items() if isinstance(value, list) and any(value) and name not in known}
    # A pipeline with code of its own names its file and class.
    return [f"{value[0]}.py" if name == "_class_name" else name for name, value in unused.items()]


def _read_config(path: Path, source: str) -> dict[str, Any]:
    if not path.is_file():
        raise ModelNotFoundError(f"model {source} can't be loaded (no file {path}); name another with --model")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ModelNotFoundError(f"model {source} can't be loaded ({path} holds no table); name another with --model")
    return config


def _load_unet(folder: Path, config: Mapping[str, Any], source: str) -> tuple[UNet2DModel, list[str]]:
    """The network of a folder, and notes on its weights for the user."""
    _check_config(config, source)
    unet, notes = empty_unet(config, source, str(folder / "config.json"))
    found, said = read_weights(folder, source)
    return unet, [*notes, *said, *fill_unet(unet, found, source)]


def empty_unet(config: Mapping[str, Any], source: str, origin: str) -> tuple[UNet2DModel, list[str]]:
    """The network of a config, still without weights, and notes for the user.

    Args:
        origin: where the config comes from.
    """
    known = inspect.signature(UNet2DModel.__init__).parameters
    settings = {name: value for name, value in config.items() if name in known}
    unknown = [name for name in config if name not in known and name not in _EMA_FIELDS and not name.startswith("_")]
    notes = [f"entries of config.json that UNet2DModel doesn't know are left out: {some_names(unknown)}"] if unknown else []
    try:
        with torch.device("meta"):
            unet = UNet2DModel(**settings)
        if unet.state_dict().keys() != {name for name, _ in (*unet.named_parameters(), *unet.named_buffers())}:
            with torch.random.fork_rng(devices=[]):  # buffers that no file holds need a network with memory
                unet = UNet2DModel(**settings)
    except Exception as error:
        # diffusers has no common class for the errors of a bad config.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelNotFoundError(
            f"model {source} can't be made of {origin} ({reason}); name another with --model"
        ) from error
    return unet, notes


def fill_unet(unet: UNet2DModel, found: Mapping[str, Tensor], source: str) -> list[str]:
    """Give an empty network its weights, all of them; notes for the user."""
    expected = {name: value.shape for name, value in unet.state_dict().items()}
    weights, notes = matched_weights(found, expected, source)
    kinds = {value.dtype for value in weights.values()} - {torch.float32}
    sparse: list[str] = []
    for name, value in weights.items():
        if value.dtype not in _FLOATS:
            raise ModelNotFoundError(
                f"model {source} holds {str(value.dtype).removeprefix('torch.')} in {name}; allowed: floating-point "
                "weights, not quantised (--model)"
            )
        if value.is_meta:
            raise ModelNotFoundError(
                f"model {source} holds {name} without values (a tensor of the device meta); name a whole one with --model"
            )
        if value.layout != torch.strided:
            weights[name] = value.to_dense()
            sparse.append(name)
    if sparse:
        notes.append(f"weights stored as sparse tensors are dense with the same zeros: {some_names(sparse)}")
    if kinds:
        notes.append(
            f"weights stored as {', '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))} are float32"
        )
    # Copies: a file that is mapped into memory may change while it is in use.
    unet.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in weights.items()}, assign=True)
    return notes


def _check_config(config: Mapping[str, Any], source: str) -> None:
    if config.get("_class_name") not in (None, "UNet2DModel"):
        raise ModelNotFoundError(
            f"model {source} has a config.json of class {config['_class_name']}; allowed: UNet2DModel (--model)"
        )
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise ModelNotFoundError(f"model {source} is class-conditional; allowed: an unconditional DDPM (--model)")
    if config.get("time_embedding_type") == "fourier":
        raise ModelNotFoundError(
            f"model {source} has time_embedding_type fourier, of networks that take a noise level and divide by it (not "
            "finite at timestep 0); allowed: positional, learned (--model)"
        )


def check_unet(unet: UNet2DModel, scheduler: DDPMScheduler, source: str) -> None:
    """Raise ModelNotFoundError where it is no DDPM of square grey or colour images, or a weight is not finite."""
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
    """What a record says of the weights' average; a folder's name is no record."""
    if (folder / WEIGHTS_RECORD).is_file():
        record = read_json(folder / WEIGHTS_RECORD)
        ema = record.get("ema") if isinstance(record, dict) else None
        if not isinstance(ema, bool | str):
            raise ModelNotFoundError(
                f'{folder / WEIGHTS_RECORD} holds {json.dumps(record)[:80]}; allowed: {{"ema": true}} or {{"ema": false}}'
            )
        return ema if isinstance(ema, str) else EMA_WORDS[ema]
    if all(name in config for name in _EMA_FIELDS[:2]):
        return f"EMA weights (decay {config['decay']}, {config['optimization_step']} steps, of diffusers' EMAModel)"
    if is_on_hub and source == CIFAR10_HUB_MODEL:
        return EMA_WORDS[False]
    return EMA_NOT_RECORDED


def _download(name: str) -> Path:
    """The hub model's files: safetensors, or .bin where the network has none."""
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
