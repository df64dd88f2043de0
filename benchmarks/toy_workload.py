"""A kind of network in one file, as an example of a workload: a small perceptron on made-up vectors.

Its targets are its own outputs with noise, so the dense network's loss is the noise. It is in no registry: to open it by
name, add `TOY` to `maskpro.workloads.WORKLOADS`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskpro.data import philox
from maskpro.errors import MaskproError
from maskpro.held_out import HELD_OUT_SEEDS, HeldOut
from maskpro.machine.process import Say
from maskpro.workload import Budgets, LoadedNetwork, Workload, WorkloadKind
from maskpro.workload_evaluation import Evaluation

WEIGHTS_FILE = "model.safetensors"
_WIDTH = 16
_BUDGETS = Budgets(max_samples=480, report_samples=160, validation_samples=64, selection_samples=64, test_samples=64)


class VectorBatch(NamedTuple):
    """Inputs `[B, width]` and targets `[B, width]`."""

    inputs: Tensor
    targets: Tensor


class VectorObjective:
    """Mean squared error on made-up vectors; sample i is a function of (seed, i)."""

    def __init__(self, truth: nn.Module, width: int, *, noise: float, seed: int, device: torch.device):
        self._truth, self._width, self._noise, self._seed, self._device = truth, width, noise, seed, device

    @torch.no_grad()
    def batch(self, indices: Tensor) -> VectorBatch:
        """The samples of `indices` (`[B]`, int64)."""
        drawn = [philox(self._seed, index).standard_normal((2, self._width)) for index in indices.tolist()]
        inputs, noise = torch.from_numpy(np.array(drawn, dtype=np.float32)).view(-1, 2, self._width).unbind(1)
        return VectorBatch(inputs.to(self._device), (self._truth(inputs) + self._noise * noise).to(self._device))

    def predict(self, model: nn.Module, batch: VectorBatch) -> Tensor:
        """The network's output `[B, width]`."""
        output: Tensor = model(batch.inputs)
        return output

    def losses(self, prediction: Tensor, batch: VectorBatch) -> Tensor:
        """Squared error of each sample, `[B]`."""
        return self.teacher_losses(prediction, batch.targets, batch)

    def teacher_losses(self, prediction: Tensor, teacher: Tensor, batch: VectorBatch) -> Tensor:
        """Squared difference from the dense network's output, `[B]`."""
        return (prediction - teacher).square().mean(dim=1)

    def hidden_losses(self, hidden: Tensor, teacher: Tensor, batch: VectorBatch) -> Tensor:
        """Squared difference of activations, `[B]`."""
        return (hidden - teacher).square().flatten(1).mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class ToyWorkload(Workload):
    """A perceptron whose inputs and outputs have the same width."""

    width: int = _WIDTH
    noise: float = 0.1
    truth: nn.Module

    def training_objective(
        self, *, seed: int, device: torch.device, shares: Sequence[float] | None = None
    ) -> VectorObjective:
        """Made-up vectors of a seed."""
        return VectorObjective(self.truth, self.width, noise=self.noise, seed=seed, device=device)

    def held_out_objective(self, split: HeldOut, device: torch.device) -> VectorObjective:
        """Made-up vectors of the split's seed."""
        return self.training_objective(seed=HELD_OUT_SEEDS[split], device=device)

    @property
    def output_numbers(self) -> int:
        """Numbers in a vector."""
        return self.width

    def without_test(self) -> Self:
        """The workload itself, as made-up vectors need no protection."""
        return self

    def load_network(self, source: str) -> LoadedNetwork:
        """A network that `save` has written."""
        return load_toy(source)

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write the network as safetensors."""
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS_FILE)

    def evaluation(self, options: Mapping[str, Any]) -> ToyEvaluation:
        """Judging by held-out vectors, and by the largest error on further ones."""
        return ToyEvaluation(workload=self, options=ToyJudging(**options))


@dataclass(frozen=True, kw_only=True)
class ToyOpening:
    """The options for opening the workload."""

    noise: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ToyJudging:
    """The options for judging its networks."""

    num_vectors: int = 32

    def __post_init__(self) -> None:
        if self.num_vectors < 1:
            raise MaskproError(f"num_vectors is {self.num_vectors}; allowed: a whole number of at least 1")


@dataclass(frozen=True, kw_only=True)
class ToyEvaluation(Evaluation):
    """Adds a figure and a picture to those of the held-out samples."""

    workload: ToyWorkload
    options: ToyJudging
    shown = ("fidelity", "test_loss", "largest_error")

    @torch.no_grad()
    def further_figures(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """The largest error of a single number."""
        batch = self.workload.held_out_objective("test", device).batch(torch.arange(self.options.num_vectors))
        return {"largest_error": (model(batch.inputs) - batch.targets).abs().max().item()}

    @torch.no_grad()
    def draw_pictures(self, models: Mapping[str, nn.Module], device: torch.device, folder: Path) -> dict[str, str]:
        """Draw outputs against targets."""
        batch = self.workload.held_out_objective("test", device).batch(torch.arange(self.options.num_vectors))
        for name, model in models.items():
            figure = Figure(figsize=(3, 3))
            figure.subplots().scatter(batch.targets.cpu().flatten(), model(batch.inputs).cpu().flatten(), s=4)
            figure.savefig(folder / f"outputs_{name}.png")
        return {f"outputs_{name}.png": f"outputs against targets: {name}" for name in models}


def perceptron(width: int = _WIDTH, layers: int = 3, *, bias: bool = True) -> nn.Sequential:
    """An untrained perceptron, the same one each time."""
    generator = torch.Generator().manual_seed(0)
    linear = [nn.utils.skip_init(nn.Linear, width, width, bias=bias) for _ in range(layers)]
    for layer in linear:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=width**-0.5, generator=generator)
    parts = [part for layer in linear for part in (layer, nn.Tanh())]
    return nn.Sequential(*parts[:-1])


def toy_workload(
    network: nn.Module, *, width: int = _WIDTH, noise: float = 0.1, budgets: Budgets = _BUDGETS
) -> ToyWorkload:
    """The workload of a network with inputs and outputs of that width."""
    return ToyWorkload(
        name="toy",
        model=network,
        truth=copy.deepcopy(network).requires_grad_(False),
        width=width,
        noise=noise,
        budgets=budgets,
        model_source="made-up perceptron",
        data_source="made-up vectors",
    )


def load_toy(source: str, *, ema: bool = False) -> LoadedNetwork:
    """A perceptron from a folder."""
    network = perceptron()
    network.load_state_dict(load_file(Path(source) / WEIGHTS_FILE))
    return LoadedNetwork(network, source, (), lambda: network(torch.zeros(1, _WIDTH)), None)


def _open(model: str | None, data: Path | None, options: ToyOpening, cache: Path | None, say: Say | None) -> ToyWorkload:
    if data is not None:
        raise MaskproError(f"data is {data} with workload toy, which makes up its own; allowed: none")
    opened = toy_workload(perceptron() if model is None else load_toy(model).model, noise=options.noise)
    return opened if model is None else replace(opened, model_source=model)


TOY = WorkloadKind(open=_open, load=load_toy, opening=ToyOpening, judging=ToyJudging)
