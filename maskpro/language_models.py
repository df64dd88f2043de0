"""Language models of transformers, loaded without any code of the model's own, and saved for `from_pretrained`.

The module imports transformers only within its functions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskpro.errors import MaskproError, ModelNotFoundError

# Files of a hub model that are fetched: configuration, tokenizer, weights. Code never is.
_FILES = ["*.json", "*.txt", "*.model"]


class LoadedLanguageModel(NamedTuple):
    """A language model, its folder, and a sentence for each conversion."""

    model: Any
    folder: Path
    notes: tuple[str, ...]


def transformers() -> Any:
    """The package transformers.

    Raises:
        MaskproError: it is not installed.
    """
    try:
        import transformers as package
    except ImportError as error:
        raise MaskproError(
            f"workload is causal_lm, for which package {error.name} is missing; allowed: after pip install maskpro[llm]"
        ) from error
    return package


def load_language_model(source: str) -> LoadedLanguageModel:
    """The model of a folder or the hub, in evaluation mode. Weights in bfloat16 stay so; all others become float32.

    `Conv1D` layers, such as GPT-2's, become Linear layers with the transposed weight, which compute the same.

    Raises:
        MaskproError: there is no such model, it needs code of its own, or its weights don't fit its config.
    """
    package = transformers()
    folder = Path(source) if Path(source).is_dir() else _download(source)
    config, notes = _config(folder, source)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    dtype = torch.bfloat16 if stored == "bfloat16" else torch.float32
    if stored == "float16":
        notes.append("weights are float16 and become float32")
    settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "local_files_only": True}
    try:
        with _quiet(package):
            model, found = package.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises any error for a config or weights that it can't read
        raise ModelNotFoundError(
            f"model {source} can't be loaded ({type(error).__name__}: {_short(error)}); name another with --model"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelNotFoundError(
            f"model {source} lacks {len(missing)} of the network's weights, such as {missing[0]}; name a whole one with "
            "--model"
        )
    extra = sorted(found["unexpected_keys"])
    if extra:
        notes.append(f"{len(extra)} weights belong to no layer and are left out, such as {extra[0]}")
    model.eval().requires_grad_(False)
    with_linear_layers(model)
    return LoadedLanguageModel(model, folder, tuple(notes))


def load_tokenizer(folder: Path, source: str) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        MaskproError: there is none, or it needs code of its own.
    """
    package = transformers()
    try:
        with _quiet(package):
            return package.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # as of a model
        raise ModelNotFoundError(
            f"tokenizer of model {source} can't be loaded ({type(error).__name__}: {_short(error)}); allowed: a folder "
            "with the tokenizer's files (--model)"
        ) from error


def save_language_model(folder: Path, model: nn.Module, tokenizer: Any) -> None:
    """Write a model as safetensors, and its tokenizer, into a folder for `AutoModelForCausalLM.from_pretrained`."""
    copied: Any = copy.deepcopy(model)
    # Weights of their own, in place of views of a flat buffer; a weight that layers share stays one.
    for parameter in copied.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    _with_conv1d(copied)
    with _quiet(transformers()):
        copied.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def model_of_config(config: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> Any:
    """The model of a config with these weights, which name a weight that layers share once.

    Raises:
        MaskproError: they don't fit each other, or transformers does not know the architecture.
    """
    package = transformers()
    try:
        settings = {name: value for name, value in config.items() if name not in ("model_type", "auto_map")}
        found = package.AutoConfig.for_model(config["model_type"], **settings)
        with _quiet(package), torch.random.fork_rng(devices=[]):  # weights at random, which are replaced
            model = package.AutoModelForCausalLM.from_config(found, trust_remote_code=False)
        model.eval().requires_grad_(False)
        with_linear_layers(model)
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise MaskproError(f"{source} holds no language model that can be made ({_short(error)})") from error
    lacking = [*(name for name in missing if name in own), *unexpected]
    if lacking:
        raise MaskproError(f"{source} holds other weights than its config names, such as {lacking[0]}")
    return model


def vocabulary_size(model: Any) -> int:
    """Rows of the embedding: token ids are below it."""
    return int(model.get_input_embeddings().weight.shape[0])


def most_positions(model: Any) -> int | None:
    """The longest sequence that the model has positions for; None where its config names none."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


# Attribute of a Linear layer that stands for a `Conv1D`.
_FORMER = "was_conv1d"


def with_linear_layers(model: nn.Module) -> None:
    """Replace each `Conv1D` layer, whose weight is [in, out], by a Linear layer with the weight [out, in]."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.utils.skip_init(nn.Linear, *module.weight.shape, dtype=module.weight.dtype)
            linear.weight = nn.Parameter(module.weight.detach().t().contiguous(), requires_grad=False)
            linear.bias = module.bias
            setattr(linear, _FORMER, True)
            model.set_submodule(name, linear)


def _with_conv1d(model: nn.Module) -> None:
    """The inverse of `with_linear_layers`."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if getattr(module, _FORMER, False):
            layer: Any = Conv1D(module.out_features, module.in_features)  # type: ignore[no-untyped-call]
            layer.weight = nn.Parameter(module.weight.detach().t().contiguous(), requires_grad=False)
            layer.bias = module.bias
            model.set_submodule(name, layer)


def _config(folder: Path, source: str) -> tuple[dict[str, Any], list[str]]:
    """The content of config.json, and notes.

    Raises:
        MaskproError: it is another kind of model's, or names an architecture that needs code of its own.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "is a diffusers model" if (folder / "model_index.json").is_file() else "has no config.json that can be read"
        raise ModelNotFoundError(
            f"model {source} {what}; allowed with workload causal_lm: a language model of transformers (--model)"
        ) from error
    if not isinstance(config, dict) or "_diffusers_version" in config or (folder / "model_index.json").is_file():
        raise ModelNotFoundError(
            f"model {source} is a diffusers model; allowed with workload causal_lm: a language model of transformers "
            "(--model)"
        )
    kind = config.get("model_type")
    if kind in CONFIG_MAPPING:
        return config, ["code that the model names (auto_map) is not run"] if "auto_map" in config else []
    if "auto_map" in config:
        raise ModelNotFoundError(
            f"model {source} needs code of its own (auto_map in its config.json), which is never run; allowed: an "
            "architecture that transformers has (--model)"
        )
    raise ModelNotFoundError(
        f"model {source} has model_type {kind!r} in its config.json, which transformers does not know; name another with "
        "--model"
    )


def _download(name: str) -> Path:
    """The files of a model on the hub: safetensors, or .bin where it has none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_FILES, "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_FILES, "*.bin"]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"model {name} is not a folder here and could not be had from the hub ({type(error).__name__}); "
            "name a local folder of a language model with --model"
        ) from error
    return folder


@contextmanager
def _quiet(package: Any) -> Iterator[None]:
    """Context without the progress bars and remarks of transformers; what matters of them is said as notes."""
    logging = package.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
