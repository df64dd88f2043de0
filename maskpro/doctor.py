"""What was understood of a model and its data, on one screen."""

from __future__ import annotations

from maskpro.pattern import Layout, NMPattern
from maskpro.preflight import Preflight
from maskpro.workload import Workload
from maskpro.workload_evaluation import Evaluation

# Number of dense layers that are named; the others are counted.
_NAMED = 4


def understood(
    workload: Workload, found: Preflight, evaluation: Evaluation, *, pattern: NMPattern, layout: Layout
) -> dict[str, str]:
    """Name to what was understood, in the order in which it is read."""
    budgets = workload.budgets
    minutes = found.trial_minutes(
        max_samples=budgets.max_samples,
        report_samples=budgets.report_samples,
        validation_samples=budgets.validation_samples,
    )
    rows = {
        "model": workload.model_source,
        "network": workload.network_line(),
        "parameters": f"{found.parameters:,}",
        "layers with a mask": (
            f"{found.masked_layers}, {pattern} in layout {layout}: {found.masked_weights:,} weights, "
            f"{found.masked_weights / found.parameters:.1%} of the parameters"
        ),
        "layers that stay dense": _dense(found),
        **workload.understood(),
        **evaluation.understood(),
        "a full trial": (
            f"about {_minutes(minutes)} for {budgets.max_samples:,} samples, {_size(found.step_bytes)} of memory "
            f"(measured here on {_measured_on(found)})"
        ),
    }
    return rows | {f"note {number}": note for number, note in enumerate(workload.notes, 1)}


def _dense(found: Preflight) -> str:
    dense = found.dense
    if not dense.layers:
        return "none, beside what is never masked: embeddings, first and last convolution, a language model's head"
    named = [f"{row.layer} {row.why}" for row in dense.layers[:_NAMED]]
    more = f"; and {len(dense.layers) - _NAMED} more" if len(dense.layers) > _NAMED else ""
    return (
        f"{len(dense.layers)}, {dense.weights_share:.1%} of the weights, {dense.multiply_adds_share:.1%} of the "
        f"multiply-adds: {'; '.join(named)}{more}"
    )


def _measured_on(found: Preflight) -> str:
    if found.device != "cpu":
        return found.device
    return f"cpu, {found.threads} {'thread' if found.threads == 1 else 'threads'}"


def _minutes(minutes: float) -> str:
    return f"{60 * minutes:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
