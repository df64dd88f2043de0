"""Targets within the network: the outputs of the dense network's blocks, beside its final output.

The final output of an 8x8 image is 64 numbers; the blocks' outputs are thousands, each near the weights that it depends on.
So fewer samples suffice to learn which weights to keep. Knowledge distillation calls such targets hints (Romero et al.,
FitNets, arXiv 1412.6550). Here both networks have the same shapes, so no regressor is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.masked_model import MaskedModel
from maskpro.names import Precision
from maskpro.objectives import Objective, evaluation_mode, predict_in

# Samples that the initial mask's differences are measured on: in all, and in one pass.
MEASURED_SAMPLES = 256
_BATCH = 64

# Evaluations of a network that the measurement takes.
MEASURED_EVALUATIONS = 2 * MEASURED_SAMPLES


def block_names(masked: MaskedModel) -> list[str]:
    """The modules right above learned layers, in the model's order: the resnets, attentions and samplers of a UNet.

    Lists of modules are passed over, as they have no output. The whole network is no block.
    """
    modules = dict(masked.model.named_modules())
    above = set()
    for layer in masked.layers:
        name = layer.name.rpartition(".")[0]
        while name and isinstance(modules[name], nn.ModuleList | nn.Sequential | nn.ModuleDict):
            name = name.rpartition(".")[0]
        if layer.learned and name:
            above.add(name)
    return [name for name in modules if name in above]


class HiddenTargets:
    """Compares the blocks of a masked network with the dense network's.

    The loss of a sample is the mean over blocks of D_b * E_0 / D_b0. D_b is the mean squared difference of the block's
    outputs. D_b0 and E_0 are the means of D_b and of the network's own error for the initial mask, on 256 samples. So the
    hidden loss begins as large as the network's own loss, and all blocks have equal weight.

    Args:
        dense: the network without a mask; it is left as it is.
        masked: the network, with its initial mask set.
        objective: the initial mask is measured on its first samples.
        precision: precision of the dense network's passes. With the masked network's precision their rounding cancels.

    Raises:
        MaskproError: the network has no blocks, or one whose output is not a tensor.
    """

    def __init__(self, dense: nn.Module, masked: MaskedModel, objective: Objective, *, precision: Precision = "float32"):
        self._dense, self._masked, self._objective, self._precision = dense, masked, objective, precision
        self._names = block_names(masked)
        if not self._names:
            raise MaskproError("hidden_targets needs blocks; allowed: 0 with a model whose layers stand for themselves")
        self._scales = torch.ones(len(self._names), device=masked.base.device)
        self._scales = self._measured()

    @contextmanager
    def watched(self) -> Iterator[dict[str, Tensor]]:
        """Collects the outputs of the masked network's blocks, by name, while the `with` block runs."""
        with self._watched(self._masked.model) as outputs:
            yield outputs

    @torch.no_grad()
    def dense(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The dense network's output `[B, ...]` and those of its blocks, by name."""
        with evaluation_mode(self._dense), self._watched(self._dense) as outputs:
            return predict_in(self._precision, self._objective, self._dense, batch), outputs

    def losses(self, outputs: dict[str, Tensor], expected: dict[str, Tensor], batch: Any) -> Tensor:
        """Loss of each sample, `[B]`: the masked network's blocks (`watched`) against the dense network's (`dense`)."""
        return (self._scales * self._differences(outputs, expected, batch)).mean(dim=1)

    def _differences(self, outputs: dict[str, Tensor], expected: dict[str, Tensor], batch: Any) -> Tensor:
        """Mean squared difference of each block's output, times the sample's weight, `[B, blocks]`."""
        losses = self._objective.hidden_losses
        pairs = ((_widened(outputs[name]), _widened(expected[name])) for name in self._names)
        return torch.stack([losses(output, target, batch) for output, target in pairs], dim=1)

    @torch.no_grad()
    def _measured(self) -> Tensor:
        total, blocks = torch.zeros((), dtype=torch.float64), torch.zeros(len(self._names), dtype=torch.float64)
        for indices in torch.arange(MEASURED_SAMPLES).split(_BATCH):
            batch = self._objective.batch(indices)
            with self.watched() as outputs:
                prediction = predict_in(self._precision, self._objective, self._masked.model, batch)
            dense, expected = self.dense(batch)
            total += self._objective.hidden_losses(prediction, dense, batch).double().sum().cpu()
            blocks += self._differences(outputs, expected, batch).double().sum(dim=0).cpu()
        # A block that the initial mask does not change gets no weight.
        return torch.where(blocks > 0, total / blocks, torch.zeros(())).to(self._scales)

    @contextmanager
    def _watched(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        outputs: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        with ExitStack() as hooks:
            for name in self._names:
                hooks.enter_context(modules[name].register_forward_hook(partial(_keep, outputs, name)))
            yield outputs


def _keep(outputs: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, tuple) and output:  # attention of transformers gives its weights as well
        output = output[0]
    if not isinstance(output, Tensor):
        raise MaskproError(
            f"hidden_targets: output of block {name} is a {type(output).__name__}; allowed: 0 with this model"
        )
    outputs[name] = output


def _widened(values: Tensor) -> Tensor:
    """Values in float32: a difference of two bfloat16 values would be rounded once more."""
    return values.float() if values.dtype == torch.bfloat16 else values


def fading(progress: float) -> float:
    """(1 - progress)^2, the factor of the hidden targets' weight: they help early, the final output counts in the end."""
    return (1 - progress) ** 2
