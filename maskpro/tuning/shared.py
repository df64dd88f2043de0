"""Values that all trials of a search share: computed once, on the trials' devices, and held in Ray's object store."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from torch import nn

from maskpro import runs
from maskpro.errors import MaskproError
from maskpro.initial_masks import InitialMaskMethod
from maskpro.masked_model import MaskedModel, whole_name
from maskpro.names import Precision, Timesteps
from maskpro.objectives import HeldOutMeans
from maskpro.runs import MaskFormat, RunCache
from maskpro.trainer_config import TrainerConfig
from maskpro.tuning.tables import start_keeper
from maskpro.workload import Workload

# Share of a node's object store that a table may take. Each trial's process computes a larger table for itself.
_STORE_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """All that a trial of a search is made of, beside its config.

    Attributes:
        formats: the formats that the search space allows.
        table_samples: calibration samples that a trial can see.
        timesteps: the ways to draw timesteps that the search space allows.
        precisions: the precisions of the networks' passes in training that the search space allows.
        dense: parts of the names of layers that stay dense by choice.
        rung_lr_exponent: see `rung_lr`.
        dense_order: the layers of which a trial's num_dense first ones stay dense as well, with their shares of the
            multiply-adds; none where num_dense is not in the search space.
        sparse_shares: share of the multiply-adds in layers with a mask, of each format, where num_dense is searched.
        storage: folder of the trials' checkpoints, a path or a URI.
        gpu_share: share of one GPU's memory that a trial may use.
        trial_timeout: seconds that a trial may take from one report to the next; None: any.
    """

    workload: Workload
    pattern: str
    layout: str
    initial_mask: InitialMaskMethod
    targets: tuple[str, ...]
    max_samples: int
    report_samples: int
    seed: int
    formats: tuple[MaskFormat, ...]
    table_samples: int = 0
    timesteps: tuple[Timesteps, ...] = ("uniform",)
    precisions: tuple[Precision, ...] = ("float32",)
    dense: tuple[str, ...] = ()
    rung_lr_exponent: float = 0.0
    dense_order: Mapping[str, float] = field(default_factory=dict)
    sparse_shares: Mapping[MaskFormat, float] = field(default_factory=dict)
    storage: str = ""
    cpus: float = 1.0
    gpu_share: float = 1.0
    trial_timeout: float | None = None

    @property
    def validation_precision(self) -> Precision:
        """Precision of the passes on validation samples, one for all trials, so that their errors can be compared.

        It is the training's precision if that is the same for all trials, else float32.
        """
        return self.precisions[0] if len(set(self.precisions)) == 1 else "float32"


@dataclass(frozen=True, kw_only=True)
class SharedValues:
    """Figures and tables of a search, equal for all its trials.

    Attributes:
        dense_val_loss: held-out loss of the dense network.
        initial: held-out loss and error of each initial mask.
        timestep_shares: shares of the timesteps for trials with importance sampling, by precision; measured with the first
            initial mask.
        keeper: keeper of the tables: the dense network's outputs and the initial masks' losses on calibration samples.
            None if they would not fit; every process then makes its own.
    """

    dense_val_loss: float
    initial: dict[MaskFormat, HeldOutMeans]
    timestep_shares: Mapping[Precision, tuple[float, ...]] = field(default_factory=dict)
    keeper: Any = None


@dataclass(frozen=True)
class RayShelf:
    """One table of a keeper. Parts lost with a process count as missing."""

    keeper: Any
    name: Hashable

    def get(self, part: int) -> torch.Tensor | None:
        """See `Shelf`; the memory belongs to the object store."""
        try:
            found = ray.get(self.keeper.get.remote((self.name, part)))
            return read_only(ray.get(found[0])) if found else None
        except ray.exceptions.RayError:
            return None

    def put(self, part: int, values: torch.Tensor) -> None:
        """See `Shelf`."""
        self.keeper.put.remote((self.name, part), values.numpy())


def trial_device() -> torch.device:
    """The device that Ray has assigned to this process; it uses a GPU only if one is assigned."""
    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


def initial_masked(
    context: TrialContext, dense: nn.Module, form: MaskFormat, targets: tuple[str, ...] = ("all",)
) -> MaskedModel:
    """`runs.initial_masked` for a search; the search's own seed is the seed of all trials' initial masks."""
    return runs.initial_masked(context.workload, dense, form, seed=context.seed, targets=targets)


def share_values(context: TrialContext, *, resources: dict[str, float]) -> SharedValues:
    """Judge the dense network and the initial masks, and open the tables; trials make the parts that they need.

    If trials run on GPUs, a task with a trial's resources judges on a GPU, and a second task makes the first part of the
    teacher's table. Without GPUs this process judges with a trial's threads, as a new one would import for ten seconds.

    Raises:
        MaskproError: a held-out loss is not finite.
    """
    keeps = context.workload.keeps_outputs(context.table_samples)
    keeper = start_keeper() if context.table_samples and keeps and _fits(context) else None
    if resources["gpu"]:
        stored = ray.put(context)
        remote = {"num_cpus": resources["cpu"], "num_gpus": resources["gpu"]}
        dense_val_loss, initial, shares = ray.get(ray.remote(**remote)(_judged).remote(stored))
        if keeper is not None:
            ray.remote(**remote)(_first_part).remote(stored, keeper, shares)
    else:
        threads = torch.get_num_threads()
        dense_val_loss, initial, shares = _judged(context)
        torch.set_num_threads(threads)
    losses = [(f"{form.initial_mask} mask {form.pattern} ({form.layout})", means.loss) for form, means in initial.items()]
    for name, loss in (("dense network", dense_val_loss), *losses):
        if not math.isfinite(loss):
            raise MaskproError(
                f"held-out loss of the {name} of {context.workload.model_source} is {loss}; "
                "allowed: a finite one (check --model)"
            )
    return SharedValues(dense_val_loss=dense_val_loss, initial=initial, timestep_shares=shares, keeper=keeper)


def mask_format(context: TrialContext, settings: Mapping[str, Any]) -> MaskFormat:
    """Mask format of a trial with these settings; the search supplies missing ones."""
    form = MaskFormat(*(settings.get(name, getattr(context, name)) for name in MaskFormat._fields))
    kept = list(context.dense_order)[: settings.get("num_dense", 0)]
    return form._replace(dense=(*form.dense, *map(whole_name, kept)))


def _fits(context: TrialContext) -> bool:
    """Whether the teacher's tables leave most of the smallest node's object store free."""
    smallest = min(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"])
    tables = len(context.timesteps) * len(context.precisions)
    return bool(tables * context.table_samples * _bytes_per_sample(context) <= _STORE_SHARE * smallest)


def _bytes_per_sample(context: TrialContext) -> int:
    return 4 * context.workload.output_numbers


def _judged(
    context: TrialContext,
) -> tuple[float, dict[MaskFormat, HeldOutMeans], dict[Precision, tuple[float, ...]]]:
    """Held-out figures of the dense network and each initial mask, and timesteps' shares where trials may need them."""
    device = prepare_process(context)
    dense = context.workload.model.to(device)
    validation = context.workload.held_out_samples("validation", device, context.validation_precision)
    figures: dict[MaskFormat, HeldOutMeans] = {}
    shares: dict[Precision, tuple[float, ...]] = {}
    for form in context.formats:
        initial = initial_masked(context, dense, form).model
        figures[form] = validation.judge(initial).means()
        if "importance" in context.timesteps and not shares:
            measure = context.workload.importance_shares
            shares = {precision: measure(initial, device, precision) for precision in context.precisions}
    return validation.judge(dense).means().loss, figures, shares


def _first_part(context: TrialContext, keeper: Any, shares: dict[Precision, tuple[float, ...]]) -> None:
    """Make the first part of the teacher's table."""
    device = prepare_process(context)
    cache = RunCache(shares=shares, shelf=lambda name, seed: RayShelf(keeper, name))
    config = TrainerConfig(timesteps=context.timesteps[0], precision=context.precisions[0], seed=context.seed)
    objective = cache.objective_of(context.workload, config, device)
    teacher = cache.teacher_of(context.workload, context.workload.model.to(device), config, objective, device)
    teacher(torch.zeros(1, dtype=torch.int64))


def prepare_process(context: TrialContext) -> torch.device:
    """Set threads and the share of the GPU for a process of a search; returns its device."""
    torch.set_num_threads(max(1, int(context.cpus)))
    device = trial_device()
    if device.type == "cuda" and context.gpu_share < 1:
        # Ray's fractions are bookkeeping only: without this limit one trial could take the memory of all on the GPU.
        torch.cuda.set_per_process_memory_fraction(context.gpu_share)
    return device


def read_only(array: np.ndarray) -> torch.Tensor:
    """An array in the object store as a tensor over the same memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
