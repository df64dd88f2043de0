"""What can only be seen on a GPU; `benchmarks/gpu_check.sh` runs these where there is one."""

import copy

import pytest
import torch
from shared_fixtures import make_trainer

from maskpro import distribution, samples
from maskpro.evaluation.sampling import SamplingPlan
from maskpro.export import to_semi_structured
from maskpro.export.network import with_masks
from maskpro.export.semi_structured import SemiStructured, missing_kernels
from maskpro.graphs import GraphedPass
from maskpro.pattern import NMPattern, count_violations
from maskpro.pipeline.masks import magnitude_mask_file

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = torch.device("cuda")


@pytest.fixture
def trainer_on(digits):
    def make(device, **settings):
        return make_trainer(digits, device=torch.device(device), budget_samples=512, lr=2.0, **settings)

    return make


ESTIMATORS = [
    {"estimator": "straight_through"},
    {"estimator": "straight_through", "hidden_targets": 1.0},
    {"estimator": "relaxed_subset"},
    {"estimator": "relaxed_subset", "hidden_targets": 1.0},
    {"estimator": "gumbel_softmax"},
    {"estimator": "gumbel_softmax", "hidden_targets": 1.0},
    {"estimator": "policy_gradient"},
]


@pytest.mark.parametrize("settings", ESTIMATORS, ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_estimator_learns_on_a_gpu(trainer_on, settings, precision):
    trainer = trainer_on("cuda", precision=precision, **settings)
    history = trainer.train(512)
    assert history.isfinite().all()
    assert trainer.validate().error > 0
    masked = trainer.masked
    masked.set_mask(trainer.mode())
    for mask in masked.layer_masks().values():
        assert count_violations(mask.cpu(), masked.pattern, masked.layout) == 0


def test_straight_through_is_as_good_on_a_gpu_as_on_a_cpu(trainer_on):
    """Other random numbers, so not the same mask: the improvement is."""
    gains = {}
    for device in ("cpu", "cuda"):
        trainer = trainer_on(device)
        trainer.train(512)
        gains[device] = trainer.initial.error - trainer.validate().error
    assert gains["cuda"] == pytest.approx(gains["cpu"], rel=0.25)


def test_a_run_on_a_gpu_goes_on_bit_for_bit(trainer_on):
    whole, half = trainer_on("cuda"), trainer_on("cuda")
    whole.train(256)
    whole.validate()
    whole.train(256)
    half.train(256)
    half.validate()
    resumed = trainer_on("cuda")
    resumed.load_state_dict(*half.state_dict())
    resumed.train(256)
    assert torch.equal(resumed.logits, whole.logits)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_images_on_a_gpu_are_those_of_a_cpu(digits, sampler):
    plan = SamplingPlan(scheduler=digits.scheduler, shape=(1, 8, 8), sampler=sampler, steps=20, seed=0, batch_size=8)
    expected = plan.images(digits.model, range(8)).int()
    found = plan.images(digits.model.to(GPU), range(8)).int()
    digits.model.to("cpu")
    assert (found - expected).abs().float().mean() < 1, "of 255 grey levels"


def test_the_kernels_are_what_a_gpu_runs(monkeypatch):
    """The distribution of what is drawn, and that torch's own way gives the same score and gradient."""
    assert distribution._kernels() is not None
    generator = torch.Generator(GPU).manual_seed(0)
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]], device=GPU).repeat(200_000, 1)
    mask = distribution.sample(logits, 2, generator)
    expected = distribution.inclusion_probabilities(logits[:1], 2)[0]
    torch.testing.assert_close(mask.float().mean(dim=0), expected, rtol=0, atol=0.005)
    values = torch.randn(logits.shape, device=GPU, generator=generator)
    found = distribution.score(logits, mask, 2), distribution.inclusion_gradient(logits, 2, values)
    monkeypatch.setattr(distribution, "_kernels", lambda: None)
    by_torch = distribution.score(logits, mask, 2), distribution.inclusion_gradient(logits, 2, values)
    torch.testing.assert_close(found, by_torch, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("settings", [{}, {"strata": 400}, {"shares": (0.5, 0.3, 0.15, 0.05)}], ids=str)
@pytest.mark.parametrize("by_kernel", [True, False])
def test_samples_on_a_gpu_are_those_of_a_cpu(digits, monkeypatch, by_kernel, settings):
    """Integers and weights to the bit, the noise up to rounding; wherever the images are kept."""
    assert samples._kernels() is not None
    if not by_kernel:
        monkeypatch.setattr(samples, "_kernels", lambda: None)
    images, indices = digits.images.train, torch.tensor([0, 7, 399, 3, 3])
    expected = samples.CalibrationSamples(images, num_train_timesteps=1000, seed=2**32 + 5, **settings).batch(indices)
    for largest in (samples._LARGEST_ON_DEVICE, 0):
        monkeypatch.setattr(samples, "_LARGEST_ON_DEVICE", largest)
        drawn = samples.CalibrationSamples(images, num_train_timesteps=1000, seed=2**32 + 5, device=GPU, **settings)
        found = drawn.batch(indices)
        for name in ("timesteps", "weights"):
            assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))
        torch.testing.assert_close(found.images.cpu(), expected.images, rtol=0, atol=2e-7)
        torch.testing.assert_close(found.noise.cpu(), expected.noise, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1, 2**63 + 11])
@pytest.mark.parametrize("size", [1, 7, 3072])
def test_noise_on_a_gpu_is_that_of_a_cpu(seed, size):
    indices = torch.tensor([0, 77, 2**31, 2**33 + 7])
    expected = samples.normal_values(seed, indices, size)
    torch.testing.assert_close(samples.normal_values(seed, indices.to(GPU), size).cpu(), expected, rtol=0, atol=2e-6)


def test_a_batch_is_made_without_waiting_for_the_gpu(digits):
    objective = digits.training_objective(seed=0, device=GPU)
    objective.batch(torch.arange(8))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective.batch(torch.arange(8, 16))
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "batch_size": 24}])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_graphs_change_no_more_than_float_rounding(trainer_on, estimator, settings):
    trainers = [trainer_on("cuda", graphs=graphs, **estimator, **settings) for graphs in (False, True)]
    plain, graphed = (trainer.train(96) for trainer in trainers)
    torch.testing.assert_close(graphed, plain, rtol=1e-3, atol=0)
    assert trainers[1]._gradient._graphed is not None
    assert trainers[1]._gradient._graphed._graph is not None


@pytest.mark.filterwarnings("default")
def test_compiled_passes_change_no_more_than_float_rounding(trainer_on, monkeypatch):
    """Of float32: TensorFloat32's is as large as what a mask changes. A last smaller step is not compiled once more."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain, compiled = (trainer_on("cuda", compile=compile).train(36) for compile in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=0)


def test_a_pass_that_waits_for_the_gpu_is_called_as_it_is():
    passing = GraphedPass()
    ones = torch.ones(3, device=GPU)
    with pytest.warns(UserWarning, match="could not be recorded"):
        assert passing(lambda x: x * x.sum().item(), ones).sum() == 9
    assert passing(lambda x: x * x.sum().item(), 2 * ones).sum() == 36


def test_a_recorded_pass_takes_new_arguments_and_leaves_no_trace_in_what_it_adds_to():
    total = torch.zeros((), device=GPU)

    def add(x):
        total.add_(x.sum())
        return 2 * x

    passing = GraphedPass([total])
    for value in (1.0, 2.0):
        assert passing(add, torch.full((3,), value, device=GPU)).tolist() == [2 * value] * 3
    assert passing(add, torch.ones(2, device=GPU)).tolist() == [2, 2], "of another shape"
    assert total.item() == 3 + 6 + 2


@pytest.mark.skipif(missing_kernels() != "", reason=missing_kernels())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_torchs_2_to_4_kernels_compute_the_masked_network(digits, dtype):
    masks = magnitude_mask_file(digits, pattern=NMPattern(2, 4), layout="channel")
    model = torch.nn.Module.to(copy.deepcopy(digits.model), dtype)
    dense = torch.nn.Module.to(with_masks(model, masks), GPU)
    sparse = to_semi_structured(model, masks)
    kinds = [type(module.weight) for module in sparse.modules() if isinstance(module, SemiStructured)]
    assert kinds
    assert all(issubclass(kind, torch.sparse.SparseSemiStructuredTensor) for kind in kinds)
    sample = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(GPU, dtype)
    timesteps = torch.tensor([0, 10, 500, 999], device=GPU)
    found, expected = (network(sample, timesteps).sample.float() for network in (sparse, dense))
    torch.testing.assert_close(found, expected, rtol=0, atol=40 * torch.finfo(dtype).eps)
