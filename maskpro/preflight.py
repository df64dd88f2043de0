"""Everything that a job does, done once on a few samples before anything is written: what can't work is told in seconds."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskpro.dense_layers import DenseLayers
from maskpro.errors import MaskproError
from maskpro.held_out import TRIAL_SEED
from maskpro.initial_masks import magnitude_mask
from maskpro.machine.hardware import seconds_now
from maskpro.mask_file import check_layer_name
from maskpro.masked_model import MaskedModel, maskable_layers
from maskpro.objectives import Objective
from maskpro.pattern import Layout, NMPattern
from maskpro.workload import Workload
from maskpro.workload_evaluation import Evaluation

# Networks whose passes take less are timed with as many samples as a step usually has, and on one thread, as a trial has.
_SHORT_SECONDS = 0.5
_STEP_SAMPLES = 32
# Times that the passes of a fast network are timed.
_REPEATS = 3
# Copies of the maskable weights that a trial holds, in float32: base, masked weights and their gradient, logits and Adam's
# two moments of them. The network itself comes twice, dense and masked.
_MASKABLE_COPIES = 6
# Memory of a trial's process before it has a network: torch, diffusers and Ray, resident 1.1 GB with what processes share.
_PROCESS_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was measured on the way.

    Attributes:
        parameters: of the network.
        masked_weights, masked_layers: that have a mask.
        dense: layers that stay dense.
        forward_seconds, training_seconds: of a sample, for a forward pass alone, and with its backward pass.
        step_bytes: memory of a training step of 32 samples, weights, logits and optimizer included.
        device, threads: that it was measured on.
    """

    parameters: int
    masked_weights: int
    masked_layers: int
    dense: DenseLayers
    forward_seconds: float
    training_seconds: float
    step_bytes: int
    device: str
    threads: int

    @property
    def host_bytes(self) -> int:
        """Main memory of a trial: its process, and on a CPU the training step."""
        return _PROCESS_BYTES + (self.step_bytes if self.device == "cpu" else 0)

    def trial_minutes(self, *, max_samples: int, report_samples: int, validation_samples: int) -> float:
        """Expected minutes of a trial that runs to the end: its steps, the teacher's outputs, and its validations."""
        validations = -(-max_samples // report_samples) + 1
        passes = max_samples + validations * validation_samples
        return (max_samples * self.training_seconds + passes * self.forward_seconds) / 60


def run_preflight(
    workload: Workload,
    *,
    pattern: NMPattern,
    layout: Layout,
    targets: tuple[str, ...] = ("all",),
    covered: Collection[str] | None = None,
    dense: tuple[str, ...] = (),
    evaluation: Evaluation | None = None,
    device: torch.device,
) -> Preflight:
    """Run the network dense, mask it, read the mask back, take a gradient and the evaluation's first step, and write the
    records into memory.

    Args:
        covered: the layers that a given mask is of.
        dense: parts of the names of layers that stay dense by choice.
        evaluation: how networks will be judged; None: as the workload does where nothing is asked for.

    Raises:
        MaskproError: one of them does not work; the sentence says which, of which model.
    """
    evaluation = workload.evaluation({}) if evaluation is None else evaluation
    layers: dict[str, Any] = {"targets": targets, "covered": covered, "dense": dense}
    masked = MaskedModel(copy.deepcopy(workload.model), pattern=pattern, layout=layout, **layers)
    for layer in masked.layers:
        check_layer_name(layer.name)
    masked.model.to(device)
    if device.type != "cpu":  # the flat buffer is made where the weights are
        masked = MaskedModel(masked.model, pattern=pattern, layout=layout, **layers)
    is_fast = workload.check_passes(masked.model, device) < _SHORT_SECONDS
    masked.set_mask(magnitude_mask(masked))
    _check_mask(workload, masked)
    objective = workload.training_objective(seed=TRIAL_SEED, device=device)
    threads = 1 if is_fast else torch.get_num_threads()
    with _threads(threads):
        size, repeats = (_STEP_SAMPLES, _REPEATS) if is_fast else (1, 1)
        timed = [_timed_passes(workload, objective, masked, size, device) for _ in range(repeats)]
    # The shortest times: other work on the machine only adds to them.
    forward, training, activations = (min(values) for values in zip(*timed, strict=True))
    record = evaluation.try_out(masked.model, device)
    check_record(workload, lambda: record)
    parameters = sum(parameter.numel() for parameter in workload.model.parameters())
    return Preflight(
        parameters=parameters,
        masked_weights=masked.base.numel(),
        masked_layers=len(masked.layers),
        dense=workload.dense_layers_of(masked),
        forward_seconds=forward,
        training_seconds=training,
        step_bytes=4 * (2 * parameters + _MASKABLE_COPIES * masked.base.numel()) + activations * _STEP_SAMPLES,
        device=device.type,
        threads=threads,
    )


def _check_mask(workload: Workload, masked: MaskedModel) -> None:
    """The mask that was set, read back from the weights that the network now multiplies by."""
    weights = maskable_layers(masked.model)
    for name, mask in masked.layer_masks().items():
        if (weights[name] != 0)[~mask].any():
            raise MaskproError(
                f"layer {name} of model {workload.model_source} keeps weights that its mask removes; allowed: layers whose "
                "weight is their own (--model)"
            )


def _timed_passes(
    workload: Workload, objective: Objective, masked: MaskedModel, size: int, device: torch.device
) -> tuple[float, float, int]:
    """Seconds of a sample's forward pass, of it with its backward pass, and the bytes that it keeps in between."""
    batch = objective.batch(torch.arange(size))
    kept, weights = 0, {parameter.untyped_storage().data_ptr() for parameter in masked.model.parameters()}

    def count(value: Tensor) -> Tensor:
        nonlocal kept
        if value.untyped_storage().data_ptr() not in weights:  # they are there once, however many samples there are
            kept += value.numel() * value.element_size()
        return value

    started = seconds_now(device)
    with torch.no_grad():
        prediction = objective.predict(masked.model, batch)
    forward = seconds_now(device) - started
    workload.check_finite(prediction, "output under a mask")
    gradient = masked.weight_gradient().zero_()
    started = seconds_now(device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        loss = objective.losses(objective.predict(masked.model, batch), batch).mean()
    loss.backward()
    training = seconds_now(device) - started
    workload.check_finite(gradient, "gradient of the masked weights")
    return forward / size, training / size, kept // size


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_record(workload: Workload, record: Callable[[], Any]) -> None:
    """Raise a MaskproError where a record of a job on the workload can't be written as JSON."""
    try:
        json.dumps(record(), allow_nan=False)
    except (ValueError, TypeError) as error:
        raise MaskproError(
            f"what is known of model {workload.model_source} can't be recorded as JSON ({error}); allowed: finite values "
            "in its scheduler_config.json (--model)"
        ) from error
