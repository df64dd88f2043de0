"""What a workload is: all that mask learning, the search and the records need of a kind of network and its data.

A kind of network is a subclass of `Workload`. If it is judged by more than its held-out samples, it also has a subclass of
`Evaluation`. `maskpro.workloads` lists the kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from maskpro.dense_layers import DenseLayers, dense_layers
from maskpro.errors import MaskproError
from maskpro.held_out import TRIAL_SEED, HeldOut
from maskpro.machine.hardware import seconds_now
from maskpro.masked_model import MaskedModel, model_hash
from maskpro.names import Precision
from maskpro.objectives import HeldOutSamples, Objective
from maskpro.pattern import Layout, NMPattern
from maskpro.workload_evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Sizes of a workload's jobs; samples are calibration samples.

    Attributes:
        max_samples: samples of a trial that runs to the end.
        report_samples: samples between two reports of a trial.
        validation_samples: held-out samples that drive the search.
        selection_samples: held-out samples that decide between the best trials of a search.
        test_samples: held-out samples of the final evaluation.
    """

    max_samples: int
    report_samples: int
    validation_samples: int
    selection_samples: int
    test_samples: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise MaskproError(f"{name} is {value}; allowed: a whole number of at least 1")
        if self.test_samples < 2:
            raise MaskproError(f"test_samples is {self.test_samples}; allowed: at least 2 (a standard error needs them)")


class LoadedNetwork(NamedTuple):
    """A dense or pruned network as it was read.

    Attributes:
        name: what messages call it.
        notes: a sentence for each conversion.
        run: runs it on a sample.
        parts: what was read beside the model and goes into an export, in a class of its kind.
    """

    model: nn.Module
    name: str
    notes: tuple[str, ...]
    run: Callable[[], object]
    parts: Any


@dataclass(frozen=True, kw_only=True)
class Workload(ABC):
    """A frozen dense network with its data.

    Attributes:
        model_source, data_source: origin of model and data, for the records.
        notes: what was converted, left out or guessed when the model was loaded, a sentence each.
    """

    name: str
    model: nn.Module
    budgets: Budgets
    model_source: str
    data_source: str
    notes: tuple[str, ...] = ()

    # What the network learns from and is judged by.

    @abstractmethod
    def training_objective(self, *, seed: int, device: torch.device, shares: Sequence[float] | None = None) -> Objective:
        """The calibration samples of a seed with their loss; `shares` as `importance_shares` gives them."""

    @abstractmethod
    def held_out_objective(self, split: HeldOut, device: torch.device) -> Objective:
        """The samples of a fixed held-out set, by the seed of `HELD_OUT_SEEDS`, with their loss.

        Validation drives a search, selection judges its best trials, and test is for the final evaluation only. No other
        set has test data.
        """

    def held_out_samples(self, split: HeldOut, device: torch.device, precision: Precision = "float32") -> HeldOutSamples:
        """A fixed held-out set, with the dense network's outputs.

        Selection is larger; it has the validation data and other randomness. A search takes the best of many validation
        losses, which is also the luckiest one. A loss that took no part in the search shows that.
        """
        size: int = getattr(self.budgets, f"{split}_samples")
        keep, dense = self.keeps_outputs(size), self.model.to(device)
        return HeldOutSamples(self.held_out_objective(split, device), size, dense, precision, keep=keep)

    def keeps_outputs(self, num_samples: int) -> bool:
        """Whether there is room for the dense network's outputs on so many samples; if not, they are computed each time."""
        return True

    def importance_shares(
        self, initial: nn.Module, device: torch.device, precision: Precision = "float32"
    ) -> tuple[float, ...]:
        """How often training that begins with the network `initial` draws each part of the samples."""
        raise self._no_timesteps()

    def check_timesteps(self, choices: Collection[str]) -> None:
        """Raise a MaskproError where samples are to be drawn by importance and have no parts that differ in it."""
        if "importance" in choices and type(self).importance_shares is Workload.importance_shares:
            raise self._no_timesteps()

    def _no_timesteps(self) -> MaskproError:
        return MaskproError(f"timesteps is importance with workload {self.name}, which has none; allowed: uniform")

    @property
    @abstractmethod
    def output_numbers(self) -> int:
        """Numbers in the network's output on a sample; the search keeps a table of outputs."""

    @property
    def of_loss(self) -> Mapping[str, Callable[[float], float]]:
        """Column of `trials.csv` to the function of a trial's held-out loss that is in it, beside the loss itself."""
        return {}

    @abstractmethod
    def without_test(self) -> Self:
        """The workload for trials: it lacks the test data."""

    # What the network is.

    def fingerprint(self) -> str:
        """Fingerprint of the weights: networks with the same fingerprint are the same."""
        return model_hash(self.model)

    def run_once(self) -> object:
        """Run the dense network on one sample."""
        objective = self.training_objective(seed=TRIAL_SEED, device=next(self.model.parameters()).device)
        return objective.predict(self.model, objective.batch(torch.arange(1)))

    def dense_layers(
        self, masked: Collection[str], *, pattern: NMPattern, layout: Layout, reasons: Mapping[str, str] | None = None
    ) -> DenseLayers:
        """The maskable layers of the network that are not among the `masked` ones, and why, where `reasons` say it."""
        return dense_layers(self.model, masked, pattern=pattern, layout=layout, run=self.run_once, reasons=reasons)

    def dense_layers_of(self, masked: MaskedModel) -> DenseLayers:
        """The maskable layers of the network that have no mask in a masked copy of it."""
        names = [layer.name for layer in masked.layers]
        return self.dense_layers(names, pattern=masked.pattern, layout=masked.layout, reasons=masked.dense)

    @abstractmethod
    def load_network(self, source: str) -> LoadedNetwork:
        """A network of this kind from a folder or the hub; its weights may be masked already.

        Raises:
            MaskproError: there is no such network.
        """

    @abstractmethod
    def save(self, folder: Path, model: nn.Module) -> None:
        """Write a (masked) network into an empty folder, so that its own library loads it."""

    # How it is judged and described.

    def evaluation(self, options: Mapping[str, Any]) -> Evaluation:
        """How networks are judged in the end, as the user asked for it.

        Raises:
            MaskproError: this kind of workload lacks an option, or a value is not allowed.
        """
        for name, value in options.items():
            raise MaskproError(f"{name} is {value} with workload {self.name}; allowed: without {name}")
        return Evaluation(workload=self)

    @torch.no_grad()
    def check_passes(self, model: nn.Module, device: torch.device) -> float:
        """Run the dense network `model` on its first sample; seconds of the pass.

        Raises:
            MaskproError: the network can't be run, or its output is not finite.
        """
        objective = self.training_objective(seed=TRIAL_SEED, device=device)
        batch = objective.batch(torch.arange(1))
        started = seconds_now(device)
        prediction = objective.predict(model, batch)
        seconds = seconds_now(device) - started
        self.check_finite(prediction, "output")
        self.check_finite(objective.losses(prediction, batch), "loss")
        return seconds

    def check_finite(self, values: Tensor, what: str) -> None:
        """Raise a MaskproError where a value is NaN or infinite."""
        if not values.isfinite().all():
            raise MaskproError(f"{what} of model {self.model_source} is not finite; allowed: a finite one (check --model)")

    def describe(self) -> dict[str, Any]:
        """What a search records of the workload, as plain JSON."""
        return {
            "name": self.name,
            "model": self.model_source,
            "model_hash": self.fingerprint(),
            "model_notes": list(self.notes),
            "data": self.data_source,
            "budgets": asdict(self.budgets),
        }

    def comparable(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What must be equal in two searches' records (`describe`) for their trials to be compared, by name."""
        return {"another model": record.get("model_hash"), "other data": record.get("data")}

    def network_line(self) -> str:
        """The kind and shape of the network, for people to read."""
        return type(self.model).__name__

    def understood(self) -> dict[str, str]:
        """Name to what was understood of network and data, in reading order."""
        return {"data": self.data_source}


def no_file(name: str, value: Any) -> bool:
    """False: for a kind of workload without options that name files."""
    return False


@dataclass(frozen=True, kw_only=True)
class WorkloadKind:
    """How the workloads of a name are opened and judged.

    Attributes:
        open: opens the workload. Its arguments are model, data, the checked options of `opening`, a cache folder for large
            data, and a function that reports what was converted.
        load: reads a network of this kind from a folder or the hub (`source`, `ema`). None, and the workload's name, are
            the workload's own model.
        opening, judging: frozen dataclasses whose fields are the options for opening and judging.
        is_file: whether an option of that name and value (a text) names a file.
        packages: packages whose versions a search records.
    """

    open: Callable[..., Workload]
    load: Callable[..., LoadedNetwork]
    opening: type
    judging: type
    packages: tuple[str, ...] = ()
    is_file: Callable[[str, Any], bool] = no_file
