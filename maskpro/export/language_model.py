"""A masked language model, as exports take it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from maskpro.export.network import ExportedNetwork, for_model, masked_network, with_masks
from maskpro.language_models import LoadedLanguageModel, load_tokenizer, model_of_config, save_language_model
from maskpro.mask_file import MaskFile

KIND = "causal_lm"


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageModel(ExportedNetwork):
    """A language model with its mask.

    Attributes:
        network: the model.
        tokenizer: is saved beside it; None where it is not known, as of a compressed file.
    """

    LIBRARY = "transformers"
    network: Any
    tokenizer: Any

    @property
    def model(self) -> Any:
        """The model."""
        return self.network

    def with_model(self, model: Any) -> Self:
        """With another model."""
        return replace(self, network=model)

    def describe(self) -> dict[str, str]:
        """The kind and the config."""
        return {"kind": KIND, "config": json.dumps(self.network.config.to_dict())}

    def save(self, folder: Path) -> str:
        """Model and tokenizer."""
        save_language_model(folder, self.network, self.tokenizer)
        return "AutoModelForCausalLM.from_pretrained"


@masked_network.register
def _(dense: LoadedLanguageModel, masks: MaskFile) -> MaskedLanguageModel:
    network, tokenizer = with_masks(dense.model, masks), load_tokenizer(dense.folder, str(dense.folder))
    return MaskedLanguageModel(network=network, masks=for_model(dense.model, masks), tokenizer=tokenizer)


def language_model_of(
    config: Mapping[str, Any], state: Mapping[str, Tensor], masks: MaskFile, source: str
) -> MaskedLanguageModel:
    """The language model of a compressed file's description and weights.

    Raises:
        MaskproError: they don't fit each other.
    """
    return MaskedLanguageModel(network=model_of_config(config, state, source), masks=masks, tokenizer=None)
