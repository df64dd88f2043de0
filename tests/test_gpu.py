"""What can only be seen on a GPU; `benchmarks/gpu_check.sh` runs these where there is one."""

import pytest
import torch
from conftest import make_trainer

from maskpro.evaluation.sampling import SamplingPlan
from maskpro.pattern import count_violations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = torch.device("cuda")


@pytest.fixture
def trainer_on(digits):
    def make(device, **settings):
        return make_trainer(digits, device=torch.device(device), budget_samples=512, lr=2.0, **settings)

    return make


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel_softmax", "policy_gradient"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_estimator_learns_on_a_gpu(trainer_on, estimator, precision):
    trainer = trainer_on("cuda", estimator=estimator, precision=precision)
    history = trainer.train(512)
    assert history.isfinite().all()
    assert trainer.validate() > 0
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
        gains[device] = trainer.initial_val_loss - trainer.validate()
    assert gains["cuda"] == pytest.approx(gains["cpu"], rel=0.25)


def test_a_run_on_a_gpu_goes_on_bit_for_bit(trainer_on):
    whole, half = trainer_on("cuda"), trainer_on("cuda")
    whole.train(512)
    half.train(256)
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
