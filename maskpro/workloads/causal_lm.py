"""Language models as workloads: any causal language model of transformers, and text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from maskpro.embedded import DOCSTRINGS, LANGUAGE_MODEL, LANGUAGE_MODEL_NAME
from maskpro.errors import MaskproError
from maskpro.held_out import HELD_OUT_SEEDS, HeldOut
from maskpro.language_models import (
    load_language_model,
    load_tokenizer,
    most_positions,
    save_language_model,
    vocabulary_size,
)
from maskpro.machine.process import Say
from maskpro.objectives.causal_lm import CausalLMObjective
from maskpro.option_groups import TextOptions
from maskpro.text import read_text, split_text
from maskpro.text_datasets import read_dataset
from maskpro.workload import Budgets, LoadedNetwork, Workload
from maskpro.workload_evaluation import Evaluation

# Samples are windows of text. Held-out sets are smaller where the text has fewer windows.
_BUDGETS = Budgets(
    max_samples=8_000, report_samples=1_000, validation_samples=256, selection_samples=512, test_samples=1_024
)
# Outputs of the dense network that are kept; more of them are computed again whenever they are needed.
_KEPT_BYTES = 2**29
# A larger loss counts as this one where its exp is taken, which has to be a number.
_LARGEST_LOSS = 500.0
# Characters that are tokenised together, about; they end at a line's end.
_PIECE = 2**16


class TokenSplits(NamedTuple):
    """Token ids of the parts of a text, `[count]` each, int64."""

    train: Tensor
    validation: Tensor
    selection: Tensor
    test: Tensor


@dataclass(frozen=True, kw_only=True)
class CausalLMWorkload(Workload):
    """A dense language model with a text.

    Attributes:
        tokenizer: is saved beside masked models.
        sequence_length: tokens of a sample.

    Raises:
        MaskproError: a held-out set is larger than its part of the text.
    """

    model: Any
    tokenizer: Any
    tokens: TokenSplits
    sequence_length: int

    def __post_init__(self) -> None:
        for split in HELD_OUT_SEEDS:
            size, windows = getattr(self.budgets, f"{split}_samples"), self._windows(split)
            if windows and size > windows:
                raise MaskproError(
                    f"{split}_samples is {size}; allowed: at most {windows}, the sequences of {self.sequence_length} "
                    f"tokens in the {split} part of {self.data_source}"
                )

    def _windows(self, split: HeldOut) -> int:
        return len(getattr(self.tokens, split)) // self.sequence_length

    def training_objective(
        self, *, seed: int, device: torch.device, shares: Sequence[float] | None = None
    ) -> CausalLMObjective:
        """Windows at random places of the training text."""
        return CausalLMObjective(self.tokens.train, sequence_length=self.sequence_length, seed=seed, device=device)

    def held_out_objective(self, split: HeldOut, device: torch.device) -> CausalLMObjective:
        """Windows without a common token, of the split's own part of the text."""
        tokens, length = getattr(self.tokens, split), self.sequence_length
        return CausalLMObjective(tokens, sequence_length=length, seed=HELD_OUT_SEEDS[split], device=device, disjoint=True)

    @property
    def output_numbers(self) -> int:
        """A number for each token of the vocabulary at each position but the last."""
        return (self.sequence_length - 1) * vocabulary_size(self.model)

    def keeps_outputs(self, num_samples: int) -> bool:
        """Whether the outputs take at most half a GiB."""
        return 4 * self.output_numbers * num_samples <= _KEPT_BYTES

    @property
    def of_loss(self) -> Mapping[str, Callable[[float], float]]:
        """The perplexity of the validation text."""
        return {"val_perplexity": _perplexity}

    def without_test(self) -> Self:
        """The workload without the test text."""
        return replace(self, tokens=self.tokens._replace(test=self.tokens.test[:0]))

    def load_network(self, source: str) -> LoadedNetwork:
        """The model of a folder or the hub."""
        return load_causal_lm_network(source)

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write a folder that `AutoModelForCausalLM.from_pretrained` loads, with the tokenizer."""
        save_language_model(folder, model, self.tokenizer)

    def evaluation(self, options: Mapping[str, Any]) -> TextEvaluation:
        """Judging by held-out text."""
        super().evaluation(options)
        return TextEvaluation(workload=self)

    def describe(self) -> dict[str, Any]:
        """What a search records of the workload, as plain JSON."""
        counts = {name: len(part) for name, part in self.tokens._asdict().items()}
        return super().describe() | {"sequence_length": self.sequence_length, "tokens": counts}

    def comparable(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Includes the length of a sample, which must be equal as well."""
        return super().comparable(record) | {"another sequence_length": record.get("sequence_length")}

    def network_line(self) -> str:
        """Class, width and vocabulary."""
        config = self.model.config.get_text_config()
        return (
            f"{type(self.model).__name__}, {config.num_hidden_layers} blocks, width {config.hidden_size}, vocabulary of "
            f"{vocabulary_size(self.model):,} tokens"
        )

    def understood(self) -> dict[str, str]:
        """Weights, text and samples, in words."""
        tokens = ", ".join(f"{len(part):,} {name}" for name, part in self.tokens._asdict().items())
        return {
            "weights": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "data": self.data_source,
            "tokens": tokens,
            "samples": f"sequences of {self.sequence_length} tokens",
        }


@dataclass(frozen=True, kw_only=True)
class TextJudging:
    """No options: models are judged by the held-out text alone."""


@dataclass(frozen=True, kw_only=True)
class TextEvaluation(Evaluation):
    """Adds the perplexity of the test text to the figures of the held-out samples."""

    shown = ("fidelity", "fidelity_error", "test_loss", "test_loss_error", "perplexity", "perplexity_error", "sparsity")

    def figures_of_loss(self, loss: float, error: float) -> dict[str, Any]:
        """Perplexity is exp(loss); its standard error, to first order, is that of the loss times the perplexity."""
        perplexity = _perplexity(loss)
        return {"perplexity": perplexity, "perplexity_error": perplexity * error}

    def protocol(self, device: torch.device) -> dict[str, Any]:
        """Includes the length of a sample."""
        return super().protocol(device) | {"sequence_length": self.workload.describe()["sequence_length"]}


def _perplexity(loss: float) -> float:
    """exp(loss), a number for any finite loss."""
    return math.exp(min(loss, _LARGEST_LOSS))


def load_causal_lm_network(source: str | None, *, ema: bool = False) -> LoadedNetwork:
    """A language model from a folder or the hub; None, and the workload's name, are the embedded one."""
    if ema:
        raise MaskproError("ema is True with a language model; allowed: without ema")
    is_own = source in (None, "causal_lm")
    found = load_language_model(str(LANGUAGE_MODEL if is_own else source))
    name, notes = (LANGUAGE_MODEL_NAME, ()) if is_own else (str(source), found.notes)
    model, token = found.model, torch.zeros(1, 2, dtype=torch.int64)

    def run() -> object:
        return model(token.to(next(model.parameters()).device), use_cache=False)

    return LoadedNetwork(model, name, notes, run, found)


def open_causal_lm(
    model: str | None, data: Path | None, options: TextOptions, cache: Path | None, say: Say | None
) -> CausalLMWorkload:
    """The embedded language model and its text, or those named by `model` (folder or hub name) and `data`.

    Raises:
        MaskproError: they can't be loaded, or don't fit each other or the sequence length.
    """
    name = model or LANGUAGE_MODEL_NAME
    loaded = load_language_model(model or str(LANGUAGE_MODEL))
    tokenizer = load_tokenizer(loaded.folder, name)
    if data is None or data.exists():
        text, notes = read_text(data or DOCSTRINGS)
        if options.text_column is not None:
            what = "the embedded text" if data is None else f"data {data}"
            raise MaskproError(f"text_column is {options.text_column} with {what}; allowed: with a data set's name alone")
    else:
        text, notes = read_dataset(str(data), options.text_column)
    source = "docstrings of Python's standard library" if data is None else str(data)
    if say is not None:
        for note in notes:
            say(note)
    length, most = options.sequence_length, most_positions(loaded.model)
    if most is not None and length > most:
        raise MaskproError(f"sequence_length is {length}; allowed: 2 to {most}, the positions of model {name}")
    parts = split_text(text)
    tokens = TokenSplits(*(_token_ids(getattr(parts, part), tokenizer) for part in TokenSplits._fields))
    _check_tokens(tokens, length, vocabulary_size(loaded.model), name, source)
    sizes = {f"{split}_samples": len(getattr(tokens, split)) // length for split in HELD_OUT_SEEDS}
    return CausalLMWorkload(
        name="causal_lm",
        model=loaded.model,
        tokenizer=tokenizer,
        tokens=tokens,
        sequence_length=length,
        budgets=replace(_BUDGETS, **{split: min(getattr(_BUDGETS, split), size) for split, size in sizes.items()}),
        model_source=name,
        data_source=source,
        notes=() if model is None else loaded.notes,
    )


def _token_ids(text: str, tokenizer: Any) -> Tensor:
    """The tokens of a text, without special ones; no padding is needed, as samples are windows of the whole."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + _PIECE) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    ids = tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"] if pieces else []
    return torch.tensor([token for piece in ids for token in piece], dtype=torch.int64)


def _check_tokens(tokens: TokenSplits, length: int, vocabulary: int, model: str, source: str) -> None:
    for part, values in tokens._asdict().items():
        least = 2 * length if part == "test" else length  # a standard error needs two samples
        if len(values) < least:
            raise MaskproError(
                f"{source} has {len(values)} tokens in its part for {part}; allowed: at least {least} with sequence_length "
                f"{length} (a tenth of the text is for each of validation, selection and test)"
            )
        if int(values.max()) >= vocabulary:
            raise MaskproError(
                f"tokenizer of model {model} makes token {int(values.max())}; allowed: below {vocabulary}, the rows of the "
                "model's embedding"
            )
