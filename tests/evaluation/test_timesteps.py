from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from maskpro.data import philox
from maskpro.errors import MaskproError
from maskpro.evaluation.sampling import SamplingPlan, sampling_protocol
from maskpro.evaluation.timesteps import parse_spacing, resolve_spacing, sampling_timesteps


@pytest.mark.parametrize(
    ("every", "steps", "spacing", "expected"),
    [
        (1000, 10, "leading", [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        (1000, 10, "trailing", [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (1000, 10, "linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        (1000, 10, "quad", [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]),
        (1000, 7, "trailing", [999, 856, 713, 570, 428, 285, 142]),
        (1000, 7, "linspace", [999, 832, 666, 500, 333, 166, 0]),
        (1000, 1, "trailing", [999]),
        (1000, 2, "linspace", [999, 0]),
        (1000, 2, "quad", [800, 0]),
        (100, 5, "quad", [80, 45, 20, 5, 0]),
        (100, 20, "leading", list(range(95, -1, -5))),
        (10, 4, "trailing", [9, 7, 4, 1]),
        *((7, 7, spacing, [6, 5, 4, 3, 2, 1, 0]) for spacing in ("leading", "trailing", "linspace")),
        (1, 1, "leading", [0]),
    ],
)
def test_timesteps_of_each_spacing(every, steps, spacing, expected):
    assert sampling_timesteps(every, steps, spacing) == expected


def test_the_default_is_leading_where_it_reaches_the_end_and_trailing_elsewhere():
    chosen = {steps: resolve_spacing(1000, steps, None) for steps in range(1, 1001)}
    divisors = {steps for steps in chosen if 1000 % steps == 0}
    assert {steps for steps in chosen if chosen[steps] == "leading"} == divisors - {1, 2, 4}
    assert {sampling_timesteps(1000, steps)[0] for steps in chosen if steps not in divisors} == {999}
    assert sampling_timesteps(1000, 600)[:4] == [999, 997, 996, 994]
    assert sampling_timesteps(1000, 1) == [999]
    assert sampling_timesteps(1000, 1000) == list(range(999, -1, -1))
    assert resolve_spacing(250, 50, None) == resolve_spacing(6, 6, None) == resolve_spacing(3, 3, None) == "leading"


@pytest.mark.slow
@pytest.mark.parametrize("every", [10, 100, 999, 1000])
def test_all_numbers_of_steps_begin_late_and_fall_strictly(every):
    for steps in range(1, every + 1):
        for spacing in (None, "leading", "trailing", "linspace", "quad"):
            try:
                timesteps = sampling_timesteps(every, steps, spacing)
            except MaskproError:
                assert spacing not in (None, "trailing")
                continue
            assert every * 0.8 - 1 <= timesteps[0] < every
            assert timesteps[-1] >= 0
            assert (np.diff(timesteps) < 0).all()
            assert len(timesteps) == steps or spacing == "quad"


def test_the_timesteps_are_diffusers_own_where_it_has_no_rounding_error():
    for spacing in ("leading", "trailing", "linspace"):
        scheduler, equal = DDIMScheduler(timestep_spacing=spacing), 0
        for steps in range(5, 1001):
            if spacing == "leading" and 1000 % steps:
                continue
            scheduler.set_timesteps(steps)
            theirs = scheduler.timesteps.tolist()
            ours = sampling_timesteps(1000, steps, spacing)
            equal += theirs == ours
            shared = theirs[:steps]  # with 61 trailing steps, for one, a 62nd follows, of timestep -1
            assert np.abs(np.subtract(shared, ours)).max() <= 1
            assert theirs[steps:] in ([], [-1])
        assert equal >= (13 if spacing == "leading" else 880)


def test_spacings_that_begin_too_early_are_refused_with_what_is_allowed():
    for steps, spacing, message in (
        (600, "leading", "begin at timestep 599 of 1000; allowed: a divisor of 1000, or timestep_spacing trailing"),
        (30, "leading", "begin at timestep 957 of 1000; allowed: a divisor of 1000"),
        (1, "leading", "begin at timestep 0 of 1000 with pure noise; allowed: more steps, or timestep_spacing trailing"),
        (2, "leading", "begin at timestep 500 of 1000 with pure noise"),
        (1, "linspace", "begin at timestep 0 of 1000 with pure noise"),
        (1, "quad", "begin at timestep 0 of 1000 with pure noise"),
    ):
        with pytest.raises(MaskproError, match=f"sampling_steps is {steps} with timestep_spacing {spacing}.*{message}"):
            SamplingPlan(scheduler=DDPMScheduler(), shape=(1, 8, 8), steps=steps, spacing=spacing, seed=0, batch_size=1)
    with pytest.raises(MaskproError, match="timestep_spacing is 'karras'; allowed: leading, trailing, linspace, quad"):
        parse_spacing("karras")


def plan_of(digits, **settings):
    return SamplingPlan(scheduler=digits.scheduler, shape=(1, 8, 8), seed=7, batch_size=2, **settings)


def expected_images(pipeline, **settings):
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, output_type="pt", **settings).images
    return (images * 255).round().to(torch.uint8)


def handed_noise(monkeypatch, *modules):
    """Give diffusers the noise of our own streams."""
    streams = [philox(7, index) for index in range(2)]

    def same_noise(shape, **_):
        return torch.from_numpy(np.stack([stream.standard_normal(shape[1:], dtype=np.float32) for stream in streams]))

    for module in modules:
        monkeypatch.setattr(f"diffusers.{module}.randn_tensor", same_noise)


@pytest.mark.parametrize(("steps", "spacing"), [(20, "leading"), (20, "trailing"), (1, "trailing"), (40, None)])
def test_ddim_is_diffusers_own_pipeline_where_its_strides_are_equal(digits, monkeypatch, steps, spacing):
    handed_noise(monkeypatch, "pipelines.ddim.pipeline_ddim")
    config = {"timestep_spacing": spacing or "leading", "steps_offset": 0}
    pipeline = DDIMPipeline(unet=digits.model, scheduler=DDIMScheduler.from_config(digits.scheduler.config))
    # The pipeline makes a scheduler of its own from the config, with leading timesteps.
    pipeline.scheduler = DDIMScheduler.from_config(digits.scheduler.config, **config)
    expected = expected_images(pipeline, num_inference_steps=steps, eta=0.0)
    assert torch.equal(plan_of(digits, steps=steps, spacing=spacing).images(digits.model, range(2)), expected)


@pytest.mark.parametrize(
    ("steps", "spacing"), [(25, "leading"), (25, "trailing"), (30, "trailing"), (30, None), (27, "linspace"), (30, "quad")]
)
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log"])
def test_ddpm_is_diffusers_own_pipeline_with_the_same_timesteps(digits, monkeypatch, steps, spacing, variance_type):
    handed_noise(monkeypatch, "pipelines.ddpm.pipeline_ddpm", "schedulers.scheduling_ddpm")
    scheduler = DDPMScheduler.from_config(digits.scheduler.config, variance_type=variance_type)
    plan = SamplingPlan(
        scheduler=scheduler, shape=(1, 8, 8), seed=7, batch_size=2, sampler="ddpm", steps=steps, spacing=spacing
    )
    theirs = DDPMScheduler.from_config(scheduler.config)
    monkeypatch.setattr(theirs, "set_timesteps", lambda _: DDPMScheduler.set_timesteps(theirs, timesteps=plan.timesteps))
    expected = expected_images(DDPMPipeline(unet=digits.model, scheduler=theirs), num_inference_steps=steps)
    assert torch.equal(plan.images(digits.model, range(2)), expected)


@pytest.mark.parametrize(
    ("every", "steps", "spacing"),
    [(100, 60, None), (1000, 30, "trailing"), (1000, 30, "linspace"), (1000, 30, "quad"), (1000, 2, "linspace")],
)
def test_ddim_steps_from_each_timestep_to_the_next_one(digits, every, steps, spacing):
    """Song et al. 2021, equation 12 with sigma 0, in plain arithmetic; diffusers goes back by a fixed stride instead."""
    scheduler = DDPMScheduler.from_config(digits.scheduler.config, num_train_timesteps=every)
    digits = replace(digits, scheduler=scheduler)
    plan = plan_of(digits, steps=steps, spacing=spacing)
    streams = [philox(7, index) for index in range(2)]
    sample = torch.from_numpy(np.stack([stream.standard_normal((1, 8, 8), dtype=np.float32) for stream in streams]))
    alphas = digits.scheduler.alphas_cumprod
    for timestep, following in zip(plan.timesteps, [*plan.timesteps[1:], None], strict=True):
        with torch.no_grad():
            noise = digits.model(sample, timestep).sample
        alpha, alpha_next = alphas[timestep], 1.0 if following is None else alphas[following]
        clean = ((sample - (1 - alpha) ** 0.5 * noise) / alpha**0.5).clamp(-1, 1)
        sample = alpha_next**0.5 * clean + (1 - alpha_next) ** 0.5 * noise
    expected = ((sample.clamp(-1, 1) + 1) * 127.5).round()
    assert (plan.images(digits.model, range(2)).float() - expected).abs().max() <= 1


def test_the_last_ancestral_step_adds_no_noise(digits):
    """Ho et al. 2020, algorithm 2: also where the last timestep is not 0, and the variance there is large."""
    scheduler = DDPMScheduler.from_config(digits.scheduler.config, variance_type="fixed_large")
    plan = SamplingPlan(scheduler=scheduler, shape=(1, 8, 8), seed=7, batch_size=2, sampler="ddpm", steps=1)
    assert plan.timesteps == [999]
    images = plan.images(digits.model, range(2))
    assert torch.equal(images, plan_of(digits, steps=1).images(digits.model, range(2)))


def test_the_protocol_names_the_resolved_spacing(digits):
    def record(**settings):
        protocol = sampling_protocol(plan_of(digits, **settings))
        return tuple(protocol[name] for name in ("sampling_steps", "timestep_spacing", "first_timestep", "num_timesteps"))

    assert record(steps=100) == (100, "leading", 990, 100)
    assert record(steps=600) == (600, "trailing", 999, 600)
    assert record(steps=100, spacing="quad") == (100, "quad", 800, 96)
