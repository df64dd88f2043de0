from functools import partial

import numpy as np
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelScheduler
from PIL import Image

from maskpro.data import philox
from maskpro.errors import MaskproError
from maskpro.evaluation.sampling import SamplingPlan, _ddpm_step, save_grid, write_images

SAMPLERS = ("ddim", "ddpm")


def images_of(digits, indices, batch_size, seed=0, sampler="ddim", steps=5, **more):
    settings = {"sampler": sampler, "steps": steps, "seed": seed, "batch_size": batch_size, **more}
    return SamplingPlan(scheduler=digits.scheduler, shape=(1, 8, 8), **settings).images(digits.model, indices)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_depends_on_seed_and_index_alone(digits, sampler):
    together, apart, some = (
        images_of(digits, indices, size, sampler=sampler)
        for indices, size in ((range(9), 9), (range(9), 4), (range(3, 7), 9))
    )
    # Kernels may round differently with the batch's shape: at most one grey level.
    assert (together.int() - apart.int()).abs().max() <= 1
    assert (together[3:7].int() - some.int()).abs().max() <= 1
    assert torch.equal(together, images_of(digits, range(9), 9, sampler=sampler))
    assert not torch.equal(together, images_of(digits, range(9), 9, seed=1, sampler=sampler))
    assert together.dtype == torch.uint8
    assert together.shape == (9, 1, 8, 8)


def test_sampling_draws_nothing_from_global_generators(digits):
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    images_of(digits, range(2), 2, sampler="ddpm")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 125])
def test_ddpm_is_diffusers_own_pipeline_given_the_same_noise(digits, monkeypatch, steps):
    streams = [philox(7, index) for index in range(2)]

    def same_noise(shape, **_):
        return torch.from_numpy(np.stack([stream.standard_normal(shape[1:], dtype=np.float32) for stream in streams]))

    monkeypatch.setattr("diffusers.pipelines.ddpm.pipeline_ddpm.randn_tensor", same_noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", same_noise)
    pipeline = DDPMPipeline(unet=digits.model, scheduler=digits.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(batch_size=2, num_inference_steps=steps, output_type="pt").images
    images = images_of(digits, range(2), 2, seed=7, sampler="ddpm", steps=steps)
    assert torch.equal(images, (expected * 255).round().to(torch.uint8))


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_a_ddpm_step_is_the_schedulers_own_given_the_same_noise(generator, variance_type, clip_sample):
    scheduler = DDPMScheduler(variance_type=variance_type, clip_sample=clip_sample)
    parallel = DDPMParallelScheduler.from_config(scheduler.config)
    prediction, sample = torch.randn(2, 3, 1, 4, 4, generator=generator)
    for steps in (1000, 50):
        scheduler.set_timesteps(steps)
        parallel.set_timesteps(steps)
        for timestep in scheduler.timesteps[[0, steps // 2, -2, -1]]:
            noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(5))
            expected = scheduler.step(prediction, timestep, sample, generator=torch.Generator().manual_seed(5)).prev_sample
            found = _ddpm_step(parallel, prediction, timestep, sample, lambda noise=noise: noise)
            assert torch.equal(found, expected)


def test_images_are_made_in_smaller_batches_where_memory_runs_out(digits, monkeypatch):
    expected = images_of(digits, range(7), 2)
    forward, sizes = digits.model.forward, []

    def short_of_memory(sample, *arguments, **named):
        sizes.append(len(sample))
        if len(sample) > 2:
            raise torch.OutOfMemoryError("no memory")
        return forward(sample, *arguments, **named)

    monkeypatch.setattr(digits.model, "forward", short_of_memory)
    assert torch.equal(images_of(digits, range(7), 8), expected)
    assert sizes == [7, 4, *[2] * 15, *[1] * 5]
    monkeypatch.setattr(digits.model, "forward", lambda sample, *_, **named: forward(torch.empty(2**60)))
    with pytest.raises(RuntimeError):
        images_of(digits, range(1), 8)


def test_bfloat16_makes_nearly_the_same_images(digits):
    exact, rounded = images_of(digits, range(8), 8).int(), images_of(digits, range(8), 8, precision="bfloat16").int()
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().float().mean() < 2, "of 255 grey levels"
    with pytest.raises(MaskproError, match="precision is 'float16'; allowed: float32, bfloat16"):
        images_of(digits, range(1), 1, precision="float16")


@pytest.mark.slow
def test_a_compiled_network_makes_the_images(digits, monkeypatch):
    """Compiled by the backend that changes nothing: that of users takes a minute and a C++ compiler or a GPU."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    assert torch.equal(images_of(digits, range(3), 3, compile=True), images_of(digits, range(3), 3))


def test_samplings_that_do_not_fit_are_refused(digits):
    with pytest.raises(MaskproError, match="sampler is 'euler'; allowed: ddim, ddpm"):
        images_of(digits, range(1), 1, sampler="euler")
    for steps in (0, 1001):
        with pytest.raises(MaskproError, match=f"sampling_steps is {steps}; allowed: 1 to 1000, the steps of the model's"):
            images_of(digits, range(1), 1, steps=steps)
    learned = DDPMScheduler(variance_type="learned")
    with pytest.raises(
        MaskproError, match="variance_type of the model's noise schedule is 'learned'; allowed with sampler"
    ):
        SamplingPlan(scheduler=learned, shape=(1, 8, 8), sampler="ddpm", steps=2, seed=0, batch_size=1)


def test_grids_and_images_are_pictures(digits, tmp_path):
    images = digits.images.test[:6]
    save_grid(images, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 34 + 2, 3 * 34 + 2)
    write_images(images, range(10, 16), tmp_path / "images")
    assert len(list((tmp_path / "images").iterdir())) == 6
    with Image.open(tmp_path / "images" / "00010.png") as image:
        assert np.asarray(image).tolist() == images[0, 0].tolist()
