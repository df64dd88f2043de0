"""The noise schedule of a diffusers scheduler folder as a DDPMScheduler: read, converted with its own betas, or refused.

Only the schedule counts here: the noise added at each timestep, what the network predicts, and how a predicted image is
clipped. Another class's own way of sampling (solver, spacing, sigmas) is left out, and the user is informed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import schedulers
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from maskpro.errors import MaskproError

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")

# The longest schedules in use have 4,000 timesteps. With a billion, a typing error, the betas alone would fill the memory.
_MOST_TIMESTEPS = 1_000_000

# Fields that set the betas; diffusers writes all of them.
_BETA_FIELDS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
# The schedule of "Denoising Diffusion Probabilistic Models" (Ho et al., 2020, section 4) and diffusers' training script.
DDPM_SCHEDULE: Mapping[str, Any] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
DDPM_SCHEDULE_WORDS = "1000 timesteps, linear betas from 0.0001 to 0.02, prediction_type epsilon"

_DDPM = ("DDPMScheduler", "DDPMParallelScheduler")
# Sampler classes over the betas of a DDPM.
_SAME_SCHEDULE = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMInverseScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "RePaintScheduler",
    "UnCLIPScheduler",
)
# What other classes stand for, by part of their name.
_OTHER_KINDS = {
    "FlowM": "flow matching",
    "LTX": "flow matching",
    "ScoreSdeVe": "a variance-exploding process",
    "ScoreSdeVp": "a process in continuous time",
    "KarrasVe": "a variance-exploding process",
    "EDM": "the sigmas of EDM, a variance-exploding process",
    "CosineDPM": "the sigmas of EDM, a variance-exploding process",
    "CMStochastic": "a consistency model",
    "Consistency": "a consistency model",
    "LCM": "a consistency model",
    "TCD": "a consistency model",
}
# Fields of DDPMScheduler that another class may have, with the values of missing ones.
_CARRIED = {
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}


class NoiseScheduleError(MaskproError):
    """A scheduler folder does not describe a DDPM's noise schedule; the message names what it describes."""


def read_noise_schedule(config: Mapping[str, Any], *, named_class: str | None) -> tuple[DDPMScheduler, list[str]]:
    """The DDPM noise schedule that a scheduler's config describes, and notes for the user.

    Args:
        config: content of `scheduler_config.json`.
        named_class: scheduler class of the pipeline's index, if there is one.

    Raises:
        NoiseScheduleError: the class is no discrete-time schedule of betas, or a value of the config is not allowed.
    """
    name = str(config.get("_class_name") or named_class or "DDPMScheduler")
    for found in (name, named_class or name):
        _check_class(found)
    config, notes = _without_old_names(config)
    for option in ("use_flow_sigmas", "timestep_type"):
        if config.get(option) in (True, "continuous"):
            raise NoiseScheduleError(f"scheduler has {option} {config[option]}; allowed: the discrete timesteps of a DDPM")
    _check_fields(config)
    scheduler_class = DDPMScheduler if name in _DDPM else getattr(schedulers, name)
    if not (config.get("_class_name") or named_class):
        notes.append("no file names the class of the scheduler; it is read as a DDPMScheduler")
    notes += _guesses(config, scheduler_class)
    scheduler = _made(scheduler_class, config)
    if name not in _DDPM:
        scheduler = _converted(scheduler)
        notes.append(f"{name} is read as the DDPM noise schedule of its betas; its own way of sampling is not used")
    _check_betas(scheduler)
    return scheduler, notes


def _without_old_names(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The config with `prediction_type` in place of `predict_epsilon`, which diffusers had before it, and notes."""
    if config.get("predict_epsilon") is None:
        return config, []
    values = dict(config)
    old, new = values.pop("predict_epsilon"), config.get("prediction_type")
    if not isinstance(old, bool) or (new is not None and (new == "epsilon") is not old):
        raise NoiseScheduleError(
            f"predict_epsilon of the scheduler is {old!r} and prediction_type {new!r}; allowed: true with epsilon, false "
            "with sample or v_prediction, or prediction_type alone"
        )
    if new is None:
        values["prediction_type"] = "epsilon" if old else "sample"
    note = f"predict_epsilon {str(old).lower()} of the scheduler is read as prediction_type {values['prediction_type']}"
    return values, [note]


def _guesses(config: Mapping[str, Any], scheduler_class: Any) -> list[str]:
    """What a config lacks of the betas, and what it has that its class doesn't know."""
    known = inspect.signature(scheduler_class.__init__).parameters
    name = scheduler_class.__name__
    lacking = [field for field in _BETA_FIELDS if field in known and field not in config]
    unknown = [field for field in config if field not in known and not field.startswith("_")]
    notes = []
    if lacking:
        notes.append(f"scheduler_config.json lacks {', '.join(lacking)}; the values of diffusers' {name} are taken")
    if unknown:
        notes.append(f"entries of scheduler_config.json that {name} doesn't know are left out: {', '.join(unknown)}")
    return notes


def _check_class(name: str) -> None:
    if name in _DDPM or (name in _SAME_SCHEDULE and hasattr(schedulers, name)):
        return
    kind = next((kind for part, kind in _OTHER_KINDS.items() if part in name), "not known as one of a DDPM's betas")
    raise NoiseScheduleError(
        f"scheduler is a {name} ({kind}); allowed: the noise schedule of a DDPM (DDPMScheduler, or another over its betas, "
        "such as DDIMScheduler)"
    )


def _check_fields(config: Mapping[str, Any]) -> None:
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise NoiseScheduleError(
            f"prediction_type of the scheduler is {prediction_type!r}; allowed: {', '.join(PREDICTION_TYPES)}"
        )
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= _MOST_TIMESTEPS:
        raise NoiseScheduleError(
            f"num_train_timesteps of the scheduler is {steps!r}; allowed: a whole number from 1 to {_MOST_TIMESTEPS:,}"
        )
    for name in ("clip_sample", "thresholding", "rescale_betas_zero_snr"):
        if config.get(name) not in (None, True, False):
            raise NoiseScheduleError(f"{name} of the scheduler is {config[name]!r}; allowed: true or false")
    for name in ("beta_start", "beta_end"):
        if not _is_number(config.get(name, 0.0)):
            raise NoiseScheduleError(f"{name} of the scheduler is {config[name]!r}; allowed: a number")
    largest = config.get("clip_sample_range", 1.0)
    if config.get("clip_sample", True) and not (_is_number(largest) and largest > 0):
        raise NoiseScheduleError(f"clip_sample_range of the scheduler is {largest!r}; allowed: a number above 0")
    _check_thresholding(config)
    betas = config.get("trained_betas")
    if betas is not None and (not isinstance(betas, list | tuple) or len(betas) != steps):
        shown = f"{len(betas)} values" if isinstance(betas, list | tuple) else repr(betas)
        raise NoiseScheduleError(
            f"trained_betas of the scheduler is {shown}; allowed with num_train_timesteps {steps}: {steps} values"
        )


def _check_thresholding(config: Mapping[str, Any]) -> None:
    if not config.get("thresholding", False):
        return
    ratio, most = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)
    if not (_is_number(ratio) and 0 <= ratio <= 1):
        raise NoiseScheduleError(f"dynamic_thresholding_ratio of the scheduler is {ratio!r}; allowed: 0 to 1")
    if not (_is_number(most) and most >= 1):
        raise NoiseScheduleError(f"sample_max_value of the scheduler is {most!r}; allowed: a number of at least 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _made(scheduler_class: Any, fields: Mapping[str, Any]) -> Any:
    """A scheduler of the class; a config that the class rejects is a NoiseScheduleError."""
    known = inspect.signature(scheduler_class.__init__).parameters
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "__array_", DeprecationWarning)
            return scheduler_class(**{key: value for key, value in fields.items() if key in known})
    except (NotImplementedError, ValueError, TypeError, RuntimeError, ImportError, IndexError, OverflowError) as error:
        if fields.get("beta_schedule", "linear") not in BETA_SCHEDULES:
            raise NoiseScheduleError(
                f"beta_schedule of the scheduler is {fields['beta_schedule']!r}; allowed: {', '.join(BETA_SCHEDULES)}"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise NoiseScheduleError(
            f"{scheduler_class.__name__} can't be made of its scheduler_config.json ({reason})"
        ) from error


def _converted(original: Any) -> DDPMScheduler:
    """A DDPMScheduler with the betas, prediction type and clipping of another class's instance."""
    config, betas = original.config, torch.as_tensor(original.betas, dtype=torch.float32)
    fields = {key: config.get(key) if config.get(key) is not None else value for key, value in _CARRIED.items()}
    fields["num_train_timesteps"] = len(betas)
    if config.get("beta_schedule") in BETA_SCHEDULES and config.get("trained_betas") is None:
        named = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule") if key in config}
        plain: DDPMScheduler = _made(DDPMScheduler, {**fields, **named})
        if torch.equal(plain.betas, betas):
            return plain
    result: DDPMScheduler = _made(DDPMScheduler, {**fields, "trained_betas": betas.tolist()})
    return result


def _check_betas(scheduler: DDPMScheduler) -> None:
    betas: Tensor = torch.as_tensor(scheduler.betas)
    if not (betas.isfinite().all() and (betas >= 0).all() and (betas <= 1).all() and betas.any()):
        raise NoiseScheduleError(
            f"betas of the scheduler lie between {betas.min().item():g} and {betas.max().item():g}; allowed: 0 to 1, not "
            "all 0"
        )
    if scheduler.config["prediction_type"] == "epsilon" and not (scheduler.alphas_cumprod > 0).all():
        raise NoiseScheduleError(
            "betas of the scheduler leave nothing of the image at the last timestep (rescale_betas_zero_snr, or a beta "
            "of 1) with prediction_type epsilon; allowed then: v_prediction, sample (no image follows from the noise alone)"
        )
