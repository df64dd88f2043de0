"""Logits and optimizer as a checkpoint holds them: in few bits. The run itself is rounded to these."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from maskpro.errors import MaskproError
from maskpro.rounding import (
    CodedSquares,
    FixedPoint,
    code_squares,
    fixed_point,
    from_coded_squares,
    from_fixed_point,
    round_to_bfloat16,
    unpack_upper,
)


class StoredLogits(NamedTuple):
    """What a checkpoint holds of logits and optimizer: the coarse logits, and the rest that an exact resume needs."""

    rounded: FixedPoint
    exact: dict[str, Tensor]


def round_logits(logits: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> StoredLogits:
    """Round logits and moments in place to what a checkpoint can hold; returns what the checkpoint holds.

    Only Adam's state is rounded. Without moments the checkpoint has room for the exact logits.
    """
    rounded = fixed_point(logits, generator)
    if not isinstance(optimizer, torch.optim.Adam):
        return StoredLogits(rounded, {"logits": logits})
    logits.copy_(from_fixed_point(rounded, logits))
    assert rounded.lower is not None
    exact = {"logits.lower": rounded.lower}
    state = optimizer.state[logits]
    if state:  # Adam has made a step
        mean = round_to_bfloat16(state["exp_avg"], generator)
        squares = code_squares(state["exp_avg_sq"], generator)
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(from_coded_squares(squares))
        exact |= {"adam.step": state["step"], "adam.mean": mean}
        exact |= {f"adam.squares.{name}": value for name, value in squares._asdict().items()}
    return StoredLogits(rounded, exact)


def check_count(logits: Tensor, upper: Tensor) -> None:
    """Raise a MaskproError where a checkpoint's packed `upper` parts belong to another number of logits."""
    found = upper.shape[1]
    if found != math.ceil(logits.numel() / 8):
        raise MaskproError(f"checkpoint has about {8 * found} logits; allowed: {logits.numel()}, as the model has")


def load_logits(
    logits: Tensor, optimizer: torch.optim.Optimizer, coarse: dict[str, Tensor], exact: dict[str, Tensor]
) -> None:
    """Put a checkpoint's parts `logits` and `exact` into logits and optimizer; `exact` may be {}."""
    device = logits.device
    exact = {name: value.to(device) for name, value in exact.items()}
    upper = unpack_upper(coarse["logits.upper"], logits.numel()).to(device)
    rounded = FixedPoint(upper, exact.get("logits.lower"), coarse["logits.scale"].to(device))
    logits.copy_(exact.get("logits", from_fixed_point(rounded, logits)))
    if "adam.mean" in exact:
        squares = CodedSquares(*(exact[f"adam.squares.{name}"] for name in CodedSquares._fields))
        state = {"step": exact["adam.step"], "exp_avg": exact["adam.mean"], "exp_avg_sq": from_coded_squares(squares)}
        optimizer.load_state_dict({"state": {0: state}, "param_groups": optimizer.state_dict()["param_groups"]})
