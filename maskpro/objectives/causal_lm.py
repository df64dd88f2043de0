"""The causal language-model objective: next-token cross-entropy, or divergence from the dense network's predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskpro.data import SPLIT_STREAM, move, philox
from maskpro.errors import MaskproError


class CausalLMObjective:
    """Next-token losses on windows of a token stream, for models that return logits as transformers' causal models do.

    Sample i is the window of `sequence_length` tokens that starts at a place drawn from (seed, i). The original trains
    LLaMA-2 on C4 with windows of 128 tokens. A teacher's output for a window is T - 1 times the vocabulary.

    Args:
        tokens: token ids, `[count]`, int64.
        sequence_length: tokens in a window.
        seed: seed of the windows' places.
        disjoint: no two samples have a token in common, so that they are independent of each other as far as the text
            allows. There are then len(tokens) // sequence_length samples, in a random order.

    Raises:
        MaskproError: the stream is shorter than a window.
    """

    def __init__(
        self, tokens: Tensor, *, sequence_length: int = 128, seed: int, device: torch.device, disjoint: bool = False
    ):
        if not 2 <= sequence_length <= len(tokens):
            raise MaskproError(f"sequence_length is {sequence_length}; allowed: 2 to {len(tokens)}, the number of tokens")
        self._windows = tokens.unfold(0, sequence_length, sequence_length if disjoint else 1)
        self._order = philox(seed, SPLIT_STREAM).permutation(len(self._windows)).tolist() if disjoint else None
        self._seed = seed
        self._device = device

    def batch(self, indices: Tensor) -> Tensor:
        """Windows `[B, T]` of the samples of `indices` (`[B]`, int64), on the objective's device."""
        return move(self._windows[[self._place(index) for index in indices.tolist()]], self._device)

    def _place(self, index: int) -> int:
        if self._order is None:
            return int(philox(self._seed, index).integers(len(self._windows)))
        place: int = self._order[index]
        return place

    def predict(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Logits `[B, T - 1, V]` of the tokens that follow each token but the last; at least float32."""
        logits: Tensor = model(batch, use_cache=False).logits[:, :-1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def losses(self, prediction: Tensor, batch: Tensor) -> Tensor:
        """Mean next-token cross-entropy per window, `[B]`, in nats."""
        return _of_windows(_cross_entropy, prediction, batch[:, 1:])

    def teacher_losses(self, prediction: Tensor, teacher: Tensor, batch: Tensor) -> Tensor:
        """Mean KL divergence from the dense network's next-token distribution per window, `[B]`, in nats."""
        return _of_windows(_divergence, prediction, teacher)

    def hidden_losses(self, hidden: Tensor, teacher: Tensor, batch: Tensor) -> Tensor:
        """Mean squared difference of activations `[B, ...]` per window, `[B]`."""
        return (hidden - teacher).square().flatten(1).mean(dim=1)


def _cross_entropy(prediction: Tensor, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(prediction.transpose(1, 2), tokens, reduction="none").mean(dim=1)


def _divergence(prediction: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = (logits.log_softmax(dim=-1) for logits in (teacher, prediction))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean(dim=1)


def _of_windows(loss: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor) -> Tensor:
    """The losses `[B]` of windows; one by one where no gradient is taken, as those of many would fill the memory."""
    if torch.is_grad_enabled():
        return loss(prediction, target)
    return torch.cat([loss(one, other) for one, other in zip(prediction.split(1), target.split(1), strict=True)])
