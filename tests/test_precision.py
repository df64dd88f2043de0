"""The precision of networks' passes: what "auto" is on which device, and what bfloat16 moves by less than its own error."""

import copy
from dataclasses import replace

import pytest
import torch

from maskpro.errors import MaskproError
from maskpro.evaluation.distances import FeatureStatistics, frechet_distance
from maskpro.evaluation.features import open_features
from maskpro.evaluation.sampling import SamplingPlan
from maskpro.fidelity import estimate_fidelity, estimate_gain
from maskpro.initial_masks import magnitude_masked_model
from maskpro.objectives import HeldOutSamples, teacher_outputs
from maskpro.pattern import NMPattern
from maskpro.precision import check_precision, parse_sampling_precision, resolve_sampling_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MANY = 50_000 * 100


@pytest.fixture
def gpu(monkeypatch):
    """Lets the GPU be one that computes in bfloat16, or not, and one that torch compiles for, or not."""

    def install(*, bfloat16, compiles=True):
        monkeypatch.setattr("maskpro.precision._computes_bfloat16", lambda device: bfloat16)
        monkeypatch.setattr("maskpro.precision._compiles", lambda device: compiles)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")

    return install


def test_auto_is_bfloat16_and_compiled_on_a_gpu_that_computes_in_it_alone(gpu):
    gpu(bfloat16=True)
    assert resolve_sampling_precision("auto", None, GPU, passes=MANY) == ("bfloat16", True, "a GPU with bfloat16")
    assert resolve_sampling_precision("auto", None, GPU, passes=1_000)[:2] == ("bfloat16", False), "too few to compile for"
    assert resolve_sampling_precision("float32", False, GPU, passes=MANY)[:2] == ("float32", False)
    gpu(bfloat16=True, compiles=False)
    assert resolve_sampling_precision("auto", None, GPU, passes=MANY)[:2] == ("bfloat16", False)
    gpu(bfloat16=False)
    assert resolve_sampling_precision("auto", None, GPU, passes=MANY) == ("float32", False, "a GPU without bfloat16")
    assert resolve_sampling_precision("auto", None, CPU, passes=MANY) == ("float32", False, "a CPU")
    assert resolve_sampling_precision("bfloat16", None, CPU, passes=MANY)[:2] == ("bfloat16", False)


def test_bfloat16_on_a_gpu_without_it_gives_one_sentence(gpu):
    gpu(bfloat16=False)
    with pytest.raises(MaskproError, match="sampling_precision is bfloat16, which Tesla T4 can't compute in; allowed"):
        resolve_sampling_precision("bfloat16", None, GPU, passes=MANY)
    with pytest.raises(
        MaskproError, match="precision is bfloat16, which Tesla T4 can't compute in; allowed on it: float32"
    ):
        check_precision("bfloat16", GPU)
    check_precision("float32", GPU)
    check_precision("bfloat16", CPU)
    with pytest.raises(MaskproError, match="sampling_precision is 'half'; allowed: auto, float32, bfloat16"):
        parse_sampling_precision("half")


@pytest.mark.slow
def test_in_bfloat16_the_distance_is_unchanged_within_its_own_error(digits):
    """Four disjoint sets of 96 images, the same noise in both precisions.

    The bound: the mean change is below the standard error of the mean distance over the sets. Masking the network
    (magnitude, 2:4) breaks it many times over.
    """
    extractor = open_features("digits-classifier", device=CPU, shape=(1, 8, 8))

    def statistics(images):
        found = FeatureStatistics()
        found.add(extractor(images))
        return found.result()

    real = statistics(digits.images.train)

    def distances(model, precision):
        plan = SamplingPlan(
            scheduler=digits.scheduler, shape=(1, 8, 8), steps=8, seed=3, batch_size=96, precision=precision
        )
        return torch.tensor([frechet_distance(statistics(part), real) for part in plan.images(model, range(384)).split(96)])

    exact, rounded = (distances(digits.model, precision) for precision in ("float32", "bfloat16"))
    assert not torch.equal(exact, rounded), "other images"
    error = exact.std() / len(exact) ** 0.5
    assert abs((rounded - exact).mean()) < error
    masked = magnitude_masked_model(copy.deepcopy(digits.model), pattern=NMPattern(2, 4), layout="channel").model
    assert abs((distances(masked, "float32") - exact).mean()) > 5 * error


@pytest.mark.slow
def test_validation_in_bfloat16_moves_fidelity_and_gains_by_less_than_half_of_their_standard_error(digits):
    """Three magnitude masks that keep half, five eighths and three quarters of the weights, on 384 samples.

    The masks of a run, on all 1,200 samples: benchmarks/validation_precision.py.
    """
    small = replace(digits, budgets=replace(digits.budgets, validation_samples=384))
    models = [
        magnitude_masked_model(copy.deepcopy(digits.model), pattern=NMPattern.parse(pattern), layout="channel").model
        for pattern in ("2:4", "5:8", "3:4")
    ]
    exact, rounded = (
        [held_out.judge(model).errors for model in models]
        for held_out in (small.held_out_samples("validation", CPU, name) for name in ("float32", "bfloat16"))
    )
    assert not torch.equal(exact[0], rounded[0])
    for estimate, masks in ((estimate_fidelity, (0, 1)), (estimate_fidelity, (0, 2)), (estimate_gain, (0, 1, 2))):
        expected, found = (estimate(*(errors[mask] for mask in masks)) for errors in (exact, rounded))
        assert expected.value > 2 * expected.standard_error, "the masks differ by more than chance"
        assert found.value > 2 * found.standard_error, "and are in the same order"
        assert abs(found.value - expected.value) < expected.standard_error / 2


def test_the_dense_network_has_no_error_where_both_passes_are_in_one_precision(digits):
    """Against outputs in another precision its rounding would count as an error, which is why both are in one."""
    objective = digits.training_objective(seed=0, device=CPU)
    for precision in ("float32", "bfloat16"):
        held_out = HeldOutSamples(objective, 64, digits.model, precision)
        assert held_out.judge(digits.model).errors.count_nonzero() == 0
        assert held_out.first(1).judge(digits.model).errors.count_nonzero() == 0
    exact, rounded = (
        teacher_outputs(digits.model, objective, precision=name)(torch.arange(64)) for name in ("float32", "bfloat16")
    )
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (rounded - exact).square().mean() < 1e-3 * exact.square().mean()
