"""The precision of networks' passes: what "auto" is on which device, and that sampling in bfloat16 moves no distance."""

import copy

import pytest
import torch

from maskpro.errors import MaskproError
from maskpro.evaluation.distances import FeatureStatistics, frechet_distance
from maskpro.evaluation.features import open_features
from maskpro.evaluation.sampling import SamplingPlan
from maskpro.initial_masks import magnitude_masked_model
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
