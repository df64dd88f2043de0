"""What was understood of a model and its data, on one screen."""

from __future__ import annotations

from maskpro.evaluation.sampling import SamplingPlan
from maskpro.evaluation.timesteps import resolve_spacing
from maskpro.objectives.diffusion import PREDICTED
from maskpro.pattern import Layout, NMPattern
from maskpro.preflight import Preflight
from maskpro.pretrained import resolution
from maskpro.workloads import Workload

# Dense layers that are named; the others are counted.
_NAMED = 4


def understood(workload: Workload, found: Preflight, *, pattern: NMPattern, layout: Layout) -> dict[str, str]:
    """Name to what was understood, in the order in which it is read."""
    config, schedule, images, budgets = workload.model.config, workload.scheduler, workload.images, workload.budgets
    side, channels = resolution(workload.model), config["in_channels"]
    splits = {"training": images.train, "validation": images.validation, "test": images.test}
    minutes = found.trial_minutes(
        max_samples=budgets.max_samples,
        report_samples=budgets.report_samples,
        validation_samples=budgets.validation_samples,
    )
    rows = {
        "model": workload.model_source,
        "network": f"UNet2DModel, {channels} x {side} x {side}, widths {', '.join(map(str, config['block_out_channels']))}",
        "parameters": f"{found.parameters:,}",
        "layers with a mask": (
            f"{found.masked_layers}, {pattern} in layout {layout}: {found.masked_weights:,} weights, "
            f"{found.masked_weights / found.parameters:.1%} of the parameters"
        ),
        "layers that stay dense": _dense(found),
        "weights": workload.ema,
        "noise schedule": _schedule(workload),
        "prediction type": f"{schedule.config['prediction_type']}: the network predicts the {_predicted(workload)}",
        "clipping": _clipping(workload),
        "data": workload.data_source,
        "images": ", ".join(f"{len(part):,} {split}" for split, part in splits.items()),
        "images read": images.counts.line(),
        "features": workload.features,
        "sampler": _sampler(found.plan),
        "a full trial": (
            f"about {_minutes(minutes)} for {budgets.max_samples:,} samples, {_size(found.step_bytes)} of memory "
            f"(measured here on {_measured_on(found)})"
        ),
    }
    return rows | {f"note {number}": note for number, note in enumerate(workload.notes, 1)}


def _predicted(workload: Workload) -> str:
    return PREDICTED[workload.scheduler.config["prediction_type"]]


def _dense(found: Preflight) -> str:
    dense = found.dense
    if not dense.layers:
        return "none, beside first and last convolution and embeddings"
    named = [f"{row.layer} {row.why}" for row in dense.layers[:_NAMED]]
    more = f"; and {len(dense.layers) - _NAMED} more" if len(dense.layers) > _NAMED else ""
    return (
        f"{len(dense.layers)}, {dense.weights_share:.1%} of the weights, {dense.multiply_adds_share:.1%} of the "
        f"multiply-adds: {'; '.join(named)}{more}"
    )


def _schedule(workload: Workload) -> str:
    config, betas = workload.scheduler.config, workload.scheduler.betas
    name = "values of its own" if config["trained_betas"] is not None else config["beta_schedule"]
    return f"{name}, betas {betas[0].item():.3g} to {betas[-1].item():.3g}, {len(betas):,} timesteps"


def _clipping(workload: Workload) -> str:
    config = workload.scheduler.config
    if config["thresholding"]:
        return f"dynamic thresholding at {config['dynamic_thresholding_ratio']:g}"
    return f"predicted images to +-{config['clip_sample_range']:g}" if config["clip_sample"] else "none"


def _sampler(plan: SamplingPlan) -> str:
    every, visited = plan.scheduler.config["num_train_timesteps"], plan.timesteps
    spacing = resolve_spacing(every, plan.steps, plan.spacing)
    ends = f"from {visited[0]} down to {visited[-1]}"
    return f"{plan.sampler}, {len(visited):,} of {every:,} timesteps, spacing {spacing}, {ends}"


def _measured_on(found: Preflight) -> str:
    if found.device != "cpu":
        return found.device
    return f"cpu, {found.threads} {'thread' if found.threads == 1 else 'threads'}"


def _minutes(minutes: float) -> str:
    return f"{60 * minutes:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
