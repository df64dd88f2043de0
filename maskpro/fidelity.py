"""How near a mask brings a network to the dense one, with the standard error over held-out samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the analysis imports no torch, which would take seconds
    from torch import Tensor


# Why a fidelity may be undefined.
NO_DIFFERENCE = "the initial mask's output is the dense network's"


class Estimate(NamedTuple):
    """A value from samples, and its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.standard_error:.4f}"


def fidelity(initial: float, learned: float) -> float | None:
    """1 - E_learned / E_initial, E = mean difference from the dense network's output on held-out samples.

    The difference is the objective's: squared for diffusion, the KL divergence for language models.

    0 = initial mask, 1 = dense network; None where the initial mask's output is the dense network's.
    """
    return None if initial == 0 else 1 - learned / initial


def format_share(value: float | None) -> str:
    """A fidelity or recovery for the screen."""
    return "undefined" if value is None or math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"  # no -0.000


def advice(kept: float | None, *, initial_error: float, last_error: float, changed_share: float) -> str:
    """What to change after a run that kept its initial mask; "" after any other run.

    Args:
        kept: fidelity of the mask that the run has kept.
        last_error: error of the mask at the end of the run.
        changed_share: share of the initially kept positions that this mask drops.
    """
    if kept is None or kept > 0:
        return ""
    if changed_share == 0:
        return "no position of the mask has changed, as the step is too small for the logits: raise lr, or lower logits"
    if last_error > initial_error:
        return "learning made the mask worse, so that the initial mask is kept, as the step is too large: halve lr"
    return ""


def learned_against_dense(report: Mapping[str, Any]) -> str:
    """What a final evaluation says of the learned mask, in a sentence."""
    error = report.get("recovery_error")  # None of an older version
    recovered = format_share(report["recovery"]) + ("" if error is None else f" ± {error:.3f}")
    text = f"recovery {recovered}, loss improvement {report['loss_improvement']:.1%}"
    if "fidelity" not in report:  # an older version's
        text = f"The learned mask has {text}"
    elif report["fidelity"] is None:
        text = f"Fidelity is undefined: {NO_DIFFERENCE}; {text}"
    elif report.get("fidelity_error") is None:
        text = f"Fidelity of the learned mask {format_share(report['fidelity'])}; {text}"
    else:
        text = f"Fidelity of the learned mask {Estimate(report['fidelity'], report['fidelity_error'])}; {text}"
    found = (report.get("distance_to_dense") or {}).get("frechet_distance")
    if found is not None:
        difference = f"{found['value']:+.2f} ± {found['standard_error']:.2f}"
        text += f"; Frechet distance {difference} beside the dense network's, on the same sets of images"
    return f"{text}."


def images_judged_by(protocol: Mapping[str, Any]) -> str:
    """What images were judged by, in a sentence; "" where they were not, or the protocol does not say."""
    features, count, reference = map(protocol.get, ("frechet_features", "num_generated", "frechet_reference"))
    if not (features and count and reference):
        return ""
    others = ", kernel distance, precision and recall" if protocol.get("num_kernel_precision_recall") else ""
    return f"Frechet distance{others}: {count:,} images of each network against {reference}, in the features {features}."


def estimate_fidelity(initial: Tensor, learned: Tensor, *, images: int | None = None) -> Estimate | None:
    """`fidelity` of the samples' errors `[size]`, and its standard error.

    Both masks are judged on the same samples, so the ratio's error is that of the paired residuals
    (delta method: Cochran 1977, Sampling Techniques, equation 6.13).

    Args:
        images: number of images that the samples are of, in turn. Samples of one image are alike, so the standard error is
            that over images (Cochran 1977, chapter 9: clusters). None: each sample is independent of the others.
    """
    value = fidelity(initial.mean().item(), learned.mean().item())
    return value if value is None else Estimate(value, _ratio_error(learned - (1 - value) * initial, initial, images))


def estimate_recovery(initial: Tensor, learned: Tensor, dense: Tensor, *, images: int | None = None) -> Estimate | None:
    """(L_initial - L_learned) / (L_initial - L_dense) of the samples' losses `[size]`, and its standard error as above.

    Args:
        images: as for `estimate_fidelity`.
    """
    lost = initial - dense
    if lost.mean().item() == 0:
        return None
    value = (initial - learned).mean().item() / lost.mean().item()
    return Estimate(value, _ratio_error(initial - learned - value * lost, lost, images))


def estimate_gain(initial: Tensor, first: Tensor, second: Tensor, *, images: int | None = None) -> Estimate | None:
    """Fidelity of the second mask minus that of the first, paired, from the samples' errors `[size]` of the three.

    Args:
        images: as for `estimate_fidelity`.
    """
    denominator = initial.mean().item()
    if denominator == 0:
        return None
    gain = (first - second).mean().item() / denominator
    return Estimate(gain, _ratio_error(first - second - gain * initial, initial, images))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """Mean of second - first over paired sets, with its standard error; None for fewer than two sets."""
    if len(first) != len(second) or len(first) < 2:
        return None
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return Estimate(statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences)))


def standard_error(values: Tensor, images: int | None = None) -> float:
    """Standard error of the mean of values `[size]`; NaN for a single one.

    Args:
        images: as for `estimate_fidelity`.
    """
    size = len(values)
    if size < 2:
        return math.nan
    if images is None or not 1 < images < size:
        return float(values.std().item() / math.sqrt(size))
    of_images = [values[image::images].sum().item() for image in range(images)]
    return statistics.stdev(of_images) * math.sqrt(images) / size


def _ratio_error(residuals: Tensor, whole: Tensor, images: int | None) -> float:
    """Standard error of a ratio to the mean of `whole`."""
    return standard_error(residuals, images) / abs(whole.mean().item())
