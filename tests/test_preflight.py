"""What can't work is told before anything is written; models of unusual widths, outputs and targets are served."""

import json
import math
import sys
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file, save_file
from shared_fixtures import seeded_unet
from torchvision.transforms.v2.functional import to_pil_image
from typer.testing import CliRunner

from maskpro import preflight as preflight_module
from maskpro.cli import app
from maskpro.data import to_model_range
from maskpro.dense_layers import dense_layers, multiply_adds
from maskpro.errors import MaskproError
from maskpro.evaluation.comparison import resolve_sampling
from maskpro.evaluation.sampling import SamplingPlan
from maskpro.fidelity import format_share
from maskpro.initial_masks import extract_masks, magnitude_mask, magnitude_masked_model
from maskpro.mask_file import load_mask_file, save_mask_file
from maskpro.masked_model import MaskedModel, maskable_layers, model_hash
from maskpro.metrics import recovery
from maskpro.noise_schedule import BETA_SCHEDULES, PREDICTION_TYPES
from maskpro.objectives.diffusion import DiffusionObjective
from maskpro.pattern import NMPattern
from maskpro.pipeline.masks import magnitude_mask_file
from maskpro.preflight import _timed_passes, run_preflight
from maskpro.pretrained import load_pretrained, save_pipeline
from maskpro.search_options import SearchOptions
from maskpro.tuning.search import prepare_search
from maskpro.workloads import open_workload
from maskpro.workloads.diffusion import run_on_zeros

pytestmark = pytest.mark.usefixtures("few_held_out")

CPU = torch.device("cpu")
TWO_OF_FOUR = NMPattern(2, 4)
TINY = ("--dataset-size", 16, "--batch-size", 8, "--epoch", 1)


@pytest.fixture
def images(tmp_path, generator):
    """40 random 8x8 RGB images."""
    (tmp_path / "images").mkdir()
    for index in range(40):
        picture = torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=generator)
        to_pil_image(picture).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def made(tmp_path):
    """Writes a model folder: the network's settings, what is done to its weights, its scheduler."""

    def make(name="model", scheduler=None, change=None, **overrides):
        unet = seeded_unet(**{"sample_size": 8, **overrides})
        if change is not None:
            with torch.no_grad():
                change(unet)
        (tmp_path / name).mkdir()
        save_pipeline(tmp_path / name, unet, scheduler or DDPMScheduler())
        return tmp_path / name

    return make


@pytest.fixture
def opened(made, images):
    def open_it(*arguments, **options):
        return open_workload("cifar10", model=str(made(*arguments, **options)), data=images)

    return open_it


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def cifar10(model, images):
    return ("--workload", "cifar10", "--model", model, "--data", images)


def preflight(workload, **options):
    judging = {name: options.pop(name) for name in ("sampling_steps", "timestep_spacing") if name in options}
    evaluation = workload.evaluation({"sampling_steps": 10} | judging)
    return run_preflight(workload, pattern=TWO_OF_FOUR, layout="channel", evaluation=evaluation, device=CPU, **options)


def refused(workload, **options):
    with pytest.raises(MaskproError) as caught:
        preflight(workload, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The preflight


def test_a_preflight_measures_a_job_and_leaves_the_network_alone(opened):
    workload = opened()
    before, state = model_hash(workload.model), torch.random.get_rng_state()
    found = preflight(workload)
    assert model_hash(workload.model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.parameters == sum(parameter.numel() for parameter in workload.model.parameters())
    assert found.masked_weights == sum(weight.numel() for weight in maskable_layers(workload.model).values())
    assert found.dense.layers == ()
    assert found.forward_seconds > 0
    assert found.step_bytes > 4 * (2 * found.parameters + 6 * found.masked_weights)
    # Activations are counted by the sample, weights are not: a slow network is tried on a single one.
    masked = magnitude_masked_model(workload.model, pattern=TWO_OF_FOUR, layout="channel")
    objective = workload.training_objective(seed=0, device=torch.device("cpu"))
    one, four = (_timed_passes(workload, objective, masked, size, torch.device("cpu"))[2] for size in (1, 4))
    assert one == four > 0
    minutes = found.trial_minutes(max_samples=100, report_samples=50, validation_samples=10)
    assert minutes == pytest.approx((100 * found.training_seconds + 130 * found.forward_seconds) / 60)


LEVELS = {"down_block_types": ("DownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4, "block_out_channels": (8,) * 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sample_size": 28, **LEVELS}, "is 28; allowed with its 4 levels: a multiple of 8"),
        (
            {
                "sample_size": 30,
                "down_block_types": ("DownBlock2D",) * 3,
                "up_block_types": ("UpBlock2D",) * 3,
                "block_out_channels": (8,) * 3,
            },
            "is 30; allowed with its 3 levels: a multiple of 4",
        ),
    ],
)
def test_sizes_that_the_levels_do_not_divide_are_refused_before_anything_is_written(
    made, images, tmp_path, overrides, message
):
    model = made(**overrides)
    assert message in refused(open_workload("cifar10", model=str(model), data=images))
    for command in ("prune", "baseline", "train"):
        with pytest.raises(MaskproError, match=message):
            run(command, "--output-dir", tmp_path / "out", *cifar10(model, images))
    with pytest.raises(MaskproError, match=message):
        run("doctor", model, images)
    with pytest.raises(MaskproError, match=message):
        search(tmp_path, model, images)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "results").exists()


def search(tmp_path, model, images, **options):
    (tmp_path / "space.py").write_text(
        "from ray import tune\nparam_space = {'lr': tune.loguniform(0.1, 1)}\nseed_points = []\n"
    )
    given = {"space": tmp_path / "space.py", "experiment": "e", "results_dir": tmp_path / "results", "frechet": False}
    return prepare_search(SearchOptions(**given, workload="cifar10", model=str(model), data=images, **options))


def test_a_network_that_makes_nan_is_refused_with_the_timestep(opened):
    def overflow(unet):
        unet.conv_in.weight.fill_(3e38)

    assert "output at timestep 0 of model" in refused(opened(change=overflow))


def test_an_output_that_overflows_in_the_loss_is_refused(opened):
    def large(unet):
        unet.conv_out.bias.fill_(3e30)

    assert "loss at timestep 0 of model" in refused(opened(change=large))


def test_a_record_that_is_no_json_is_refused(opened):
    workload = opened()
    broken = replace(workload, ema=math.inf)
    assert "can't be recorded as JSON" in refused(broken)


def test_a_network_of_another_output_shape_is_refused(opened):
    workload = opened()
    workload.model.conv_out = torch.nn.Conv2d(8, 3, 3)
    assert "makes [3, 6, 6] of images of [3, 8, 8]" in refused(workload)


# Noise schedules and prediction types


class Renamed(torch.nn.Module):
    """A layer under another name."""

    def __init__(self, layer, name):
        super().__init__()
        self.add_module(name, layer)
        self.name = name

    def forward(self, sample):
        return getattr(self, self.name)(sample)


@pytest.mark.parametrize("name", ["läyer [1]%#?", "a\nb"])
def test_a_layer_whose_name_no_mask_file_can_hold_is_refused(opened, name):
    workload = opened()
    workload.model.mid_block.resnets[0].conv1 = Renamed(workload.model.mid_block.resnets[0].conv1, name)
    message = refused(workload)
    assert message.startswith(
        f"a mask file can't hold a layer named {f'mid_block.resnets.0.conv1.{name}'!r}; allowed: module"
    )


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_target_is_what_the_scheduler_defines(opened, prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    workload = opened(scheduler=scheduler)
    objective = DiffusionObjective(scheduler, workload.images.train, seed=3, device=CPU)
    batch = objective.batch(torch.arange(5))
    raw = objective._samples.batch(torch.arange(5))
    alphas = scheduler.alphas_cumprod[raw.timesteps].view(-1, 1, 1, 1)
    expected = {
        "epsilon": raw.noise,
        "sample": raw.images,
        "v_prediction": alphas.sqrt() * raw.noise - (1 - alphas).sqrt() * raw.images,
    }[prediction_type]
    assert torch.allclose(batch.target, expected, atol=1e-6)
    exact = objective.losses(batch.target, batch)
    assert torch.equal(exact, torch.zeros(5))


class Perfect(torch.nn.Module):
    """Knows the image that is being made, and predicts what the scheduler asks for."""

    def __init__(self, scheduler, image):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.scheduler, self.image = scheduler, image

    def forward(self, sample, timestep, return_dict=False):
        alpha = self.scheduler.alphas_cumprod[timestep]
        noise = (sample - alpha.sqrt() * self.image) / (1 - alpha).sqrt()
        return (
            {
                "epsilon": noise,
                "sample": self.image.expand_as(sample),
                "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * self.image,
            }[self.scheduler.config["prediction_type"]],
        )


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_both_samplers_find_the_image_that_a_perfect_network_knows(sampler, schedule, prediction_type, generator):
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type=prediction_type, clip_sample=False)
    image = torch.randint(256, (3, 4, 4), dtype=torch.uint8, generator=generator)
    plan = SamplingPlan(scheduler=scheduler, shape=(3, 4, 4), sampler=sampler, steps=20, seed=0, batch_size=2)
    made = plan.images(Perfect(scheduler, to_model_range(image)), range(2))
    assert (made.int() - image.int()).abs().max() <= 1
    assert plan.first_step(Perfect(scheduler, to_model_range(image))).shape == (1, 3, 4, 4)


def test_zero_terminal_snr_is_sampled_with_velocities(generator):
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False)
    image = torch.randint(256, (3, 4, 4), dtype=torch.uint8, generator=generator)
    plan = SamplingPlan(scheduler=scheduler, shape=(3, 4, 4), steps=20, seed=0, batch_size=1)
    assert (plan.images(Perfect(scheduler, to_model_range(image)), range(1)).int() - image.int()).abs().max() <= 1


def test_a_schedule_of_few_timesteps_takes_all_of_them(opened):
    assert resolve_sampling(opened(scheduler=DDPMScheduler(num_train_timesteps=20)), "ddim", None) == 20


@pytest.mark.slow
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_other_prediction_types_train_and_evaluate(made, images, tmp_path, prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type, num_train_timesteps=20)
    model = made(scheduler=scheduler)
    run("train", "--output-dir", tmp_path / "run", *cifar10(model, images), *TINY, "--target", "noise")
    saved = load_pretrained(str(tmp_path / "run" / "checkpoint"))
    assert saved.scheduler.config["prediction_type"] == prediction_type
    masks = ("--masks", tmp_path / "run" / "masks.safetensors", "--num-samples", 2)
    run("evaluate", "--output-dir", tmp_path / "out", *cifar10(model, images), *masks, "--sampler", "ddpm")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    word = {"v_prediction": "velocity", "sample": "image"}[prediction_type]
    assert report["protocol"]["loss"] == f"MSE of the {word} prediction; timesteps stratified over the schedule"


def test_a_search_of_a_model_with_another_schedule_records_what_was_understood(made, images, tmp_path):
    model = made(scheduler=DDPMScheduler(prediction_type="v_prediction"), block_out_channels=(12, 30), norm_num_groups=6)
    described = search(tmp_path, model, images).describe()
    assert described["workload"]["prediction_type"] == "v_prediction"
    assert described["workload"]["dense_layers"]["layers"]
    json.dumps(described, allow_nan=False)


# Layers that can't be n:m


ODD = {
    "block_out_channels": (30, 60),
    "norm_num_groups": 10,
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
}


def test_widths_that_m_does_not_divide_stay_dense_and_are_listed(opened):
    workload = opened(**ODD)
    masked = MaskedModel(workload.model, pattern=TWO_OF_FOUR)
    assert masked.dense
    for name, weight in maskable_layers(workload.model).items():
        assert (name in masked.dense) == (weight.shape[1] % 4 != 0)
    masked.set_mask(magnitude_mask(masked))
    for name, weight in maskable_layers(workload.model).items():
        assert (weight == 0).float().mean() == (0.0 if name in masked.dense else 0.5)
    assert masked.dense["down_blocks.0.resnets.0.conv1"] == "is 30 wide in layout channel, which 4 does not divide"


def test_the_dense_layers_shares_are_those_of_weights_and_multiply_adds(opened):
    workload = opened(**ODD)
    model = workload.model
    masked = [name for name, weight in maskable_layers(model).items() if weight.shape[1] % 4 == 0]
    run = partial(run_on_zeros, model, (3, 8, 8))
    found = dense_layers(model, masked, pattern=TWO_OF_FOUR, layout="channel", run=run)
    costs = multiply_adds(model, run)
    assert costs["conv_in"] == 30 * 3 * 9 * 64
    assert costs["down_blocks.0.downsamplers.0.conv"] == 30 * 30 * 9 * 16
    assert costs["time_embedding.linear_1"] == model.time_embedding.linear_1.weight.numel()
    dense = [name for name in maskable_layers(model) if name not in masked]
    assert [row.layer for row in found.layers] == dense
    total = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    assert found.weights_share == pytest.approx(sum(row.weights for row in found.layers) / total)
    assert found.multiply_adds_share == pytest.approx(sum(costs[name] for name in dense) / sum(costs.values()))


class Mixed(torch.nn.Module):
    """A depthwise convolution, a skip convolution of 3 channels, and one that can be 2:4."""

    def __init__(self):
        super().__init__()
        self.depthwise = torch.nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.skip = torch.nn.Conv2d(3, 8, 1)
        self.plain = torch.nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images, timesteps):
        return self.plain(self.depthwise(self.skip(images)))


def test_depthwise_and_narrow_convolutions_stay_dense():
    model = Mixed()
    masked = MaskedModel(model, pattern=TWO_OF_FOUR)
    assert list(masked.dense) == ["depthwise", "skip"]
    assert multiply_adds(model, partial(run_on_zeros, model, (3, 8, 8))) == {
        "skip": 24 * 64,
        "depthwise": 72 * 64,
        "plain": 576 * 64,
    }
    with pytest.raises(
        MaskproError, match=r"targets holds 'skip', which matches only layers that stay dense: skip is 3 wide"
    ):
        MaskedModel(Mixed(), pattern=TWO_OF_FOUR, targets=("skip",))
    assert [layer.name for layer in MaskedModel(Mixed(), pattern=TWO_OF_FOUR, targets=("plain",)).layers] == ["plain"]
    with pytest.raises(MaskproError, match="does not divide the width of 1 layers of 2, such as skip"):
        MaskedModel(Mixed(), pattern=TWO_OF_FOUR, covered=("skip", "plain"))
    with pytest.raises(MaskproError, match="its 5 does not divide the width of 3 layers of 3"):
        MaskedModel(Mixed(), pattern=NMPattern(2, 5))


@pytest.mark.slow
def test_every_command_says_which_layers_stay_dense(made, images, tmp_path):
    model = made(**ODD)
    args = cifar10(model, images)
    run("prune", "--output-dir", tmp_path / "pruned", *args)
    output = run("train", "--output-dir", tmp_path / "run", *args, *TINY)
    assert "11 layers stay dense, with " in output
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    assert len(summary["dense_layers"]["layers"]) == 11
    table = pd.read_csv(tmp_path / "run" / "layers.csv")
    assert table["why_dense"].notna().sum() == 11
    masks = tmp_path / "run" / "masks.safetensors"
    line = "down_blocks.0.resnets.0.conv1: stays dense, is 30 wide in layout channel, which 4 does not divide"
    assert line in run("verify", masks)
    assert line in run("verify", masks, *args)
    sizes = ("--num-samples", 2, "--sampling-steps", 2)
    output = run("evaluate", "--output-dir", tmp_path / "out", *args, "--masks", masks, *sizes)
    assert "11 layers stay dense" in output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dense_layers"] == summary["dense_layers"]
    run("extract", "--output-dir", tmp_path / "masks", "--model-path", tmp_path / "pruned", "--original-model", model)
    content = load_mask_file(tmp_path / "masks" / "masks.safetensors")
    assert len(content.provenance["dense_layers"]["layers"]) == 11
    assert content.masks.keys() == load_mask_file(masks).masks.keys()


# Checkpoints and masks of some layers


def zeros_of_its_own(unet):
    unet.mid_block.resnets[0].conv1.weight[0, :3, 0, 0] = 0


@pytest.mark.slow
def test_a_checkpoint_of_a_dense_network_with_zeros_is_evaluated_and_extracted(made, images, tmp_path):
    model = made(change=zeros_of_its_own)
    run("prune", "--output-dir", tmp_path / "pruned", *cifar10(model, images))
    sizes = ("--num-samples", 2, "--sampling-steps", 2)
    checkpoint = ("--checkpoint-path", tmp_path / "pruned")
    output = run("evaluate", "--output-dir", tmp_path / "out", *cifar10(model, images), *checkpoint, *sizes)
    assert "recovery 0.000" in output, "the checkpoint is the initial mask's"
    run("extract", "--output-dir", tmp_path / "masks", "--model-path", tmp_path / "pruned", "--original-model", model)
    masks = load_mask_file(tmp_path / "masks" / "masks.safetensors").masks
    dense, pruned = (maskable_layers(load_pretrained(str(path)).unet) for path in (model, tmp_path / "pruned"))
    assert masks.keys() == dense.keys()
    assert all(torch.equal(dense[name] * mask, pruned[name]) for name, mask in masks.items())


def test_what_was_put_right_of_a_checkpoint_is_said(made, images, tmp_path):
    """As a network that was trained under DataParallel, with a key too many, has it."""
    model = made()
    run("prune", "--output-dir", tmp_path / "pruned", *cifar10(model, images))
    file = tmp_path / "pruned" / "unet" / "diffusion_pytorch_model.safetensors"
    found = {f"module.{name}": value for name, value in load_file(file).items()}
    save_file(found | {"module.step": torch.zeros(1)}, file, metadata={"format": "pt"})
    sizes = ("--num-samples", 2, "--sampling-steps", 2)
    for command in (
        (
            "evaluate",
            "--output-dir",
            tmp_path / "out",
            *cifar10(model, images),
            "--checkpoint-path",
            tmp_path / "pruned",
            *sizes,
        ),
        ("extract", "--output-dir", tmp_path / "masks", "--model-path", tmp_path / "pruned", "--original-model", model),
        ("extract", "--output-dir", tmp_path / "same", "--model-path", tmp_path / "pruned"),
    ):
        lines = [line for line in run(*command).splitlines() if line.startswith(f"model {tmp_path / 'pruned'}: ")]
        assert any("module." in line and "removed" in line for line in lines), lines
        assert any("step" in line and "left out" in line for line in lines), lines


def test_more_than_n_kept_is_still_refused(made, images, tmp_path):
    model = made()

    def half(unet):
        weight = unet.mid_block.resnets[0].conv1.weight
        weight[:, 0] = 0

    three_of_four = made("three", change=half)
    with pytest.raises(MaskproError, match=r"mask of layer mid_block.resnets.0.conv1 is not 2:4"):
        run("evaluate", "--output-dir", tmp_path / "out", *cifar10(model, images), "--checkpoint-path", three_of_four)
    with pytest.raises(MaskproError, match="model has no zeros"):
        run("evaluate", "--output-dir", tmp_path / "out", *cifar10(model, images), "--checkpoint-path", model)


def test_own_zeros_fill_a_mask_up_to_n():
    dense, pruned = torch.nn.Sequential(torch.nn.Linear(8, 1)), torch.nn.Sequential(torch.nn.Linear(8, 1))
    with torch.no_grad():
        dense[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0, 1, 2, 3, 4]]))
        pruned[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0, 2, 3, 0]]))
    (mask,) = extract_masks(pruned, pattern=TWO_OF_FOUR, layout="channel", dense=dense).values()
    assert mask.tolist() == [[True, True, False, False, False, True, True, False]]
    with pytest.raises(MaskproError, match="is not 2:4"):
        extract_masks(pruned, pattern=TWO_OF_FOUR, layout="channel")


@pytest.mark.slow
def test_the_initial_mask_covers_the_learned_masks_layers(made, images, tmp_path):
    model = made()
    workload = open_workload("cifar10", model=str(model), data=images)
    whole = magnitude_mask_file(workload, pattern=TWO_OF_FOUR, layout="channel")
    name = "mid_block.resnets.0.conv1"
    save_mask_file(tmp_path / "one.safetensors", replace(whole, masks={name: whole.masks[name]}))
    save_mask_file(tmp_path / "all.safetensors", whole)
    args = (*cifar10(model, images), "--num-samples", 2, "--sampling-steps", 2)
    one, every = ("--masks", tmp_path / "one.safetensors"), ("--initial-masks", tmp_path / "all.safetensors")
    output = run("evaluate", "--output-dir", tmp_path / "a", *args, *one)
    assert "recovery 0.000" in output, "the magnitude mask of that layer is the learned mask"
    output = run("evaluate", "--output-dir", tmp_path / "b", *args, *one, *every)
    assert "the initial mask is held to the learned mask's 1 layers" in output
    assert "recovery 0.000" in output
    first, second = (json.loads((tmp_path / part / "report.json").read_text()) for part in "ab")
    assert first["models"] == second["models"]
    assert len(first["dense_layers"]["layers"]) == len(whole.masks) - 1
    with pytest.raises(MaskproError, match=r"initial mask lacks \d+ of the learned mask's \d+ layers"):
        run("evaluate", "--output-dir", tmp_path / "c", *args, "--masks", every[1], "--initial-masks", one[1])


# Recovery without a difference


@pytest.mark.slow
def test_a_constant_network_has_no_recovery(made, images, tmp_path):
    def constant(unet):
        unet.conv_out.weight.zero_()
        unet.conv_out.bias.zero_()

    model = made(change=constant)
    undefined = "undefined: the initial mask's output is the dense network's"
    assert f"held-out fidelity {undefined}" in run(
        "train", "--output-dir", tmp_path / "run", *cifar10(model, images), *TINY
    )
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    assert (summary["fidelity"], summary["recovery"]) == (None, None)
    masks = ("--masks", tmp_path / "run" / "masks.safetensors", "--num-samples", 2, "--sampling-steps", 2)
    said = run("evaluate", "--output-dir", tmp_path / "out", *cifar10(model, images), *masks)
    assert f"Fidelity is {undefined}; recovery undefined" in said


def test_recovery_in_words():
    assert format_share(recovery(2.0, 1.5, 1.0)) == "0.500"
    assert format_share(recovery(1.0, 1.0, 1.0)) == format_share(math.nan) == "undefined"


# maskpro doctor


def test_doctor_shows_what_was_understood(made, images):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
    model = made(scheduler=scheduler, **ODD)
    (model / "unet_ema").mkdir()
    for file in (model / "unet").iterdir():
        (model / "unet_ema" / file.name).write_bytes(file.read_bytes())
    lines = dict(line.split(": ", 1) for line in run("doctor", model, images).splitlines())
    assert lines["network"] == "UNet2DModel, 3 x 8 x 8, widths 30, 60"
    assert lines["layers with a mask"].startswith("16, 2:4 in layout channel")
    assert lines["layers that stay dense"].startswith("11, ")
    assert lines["noise schedule"] == "squaredcos_cap_v2, betas 4.13e-05 to 0.999, 1,000 timesteps"
    assert lines["prediction type"] == "v_prediction: the network predicts the velocity"
    assert lines["weights"] == "as stored in the checkpoint; not recorded"
    assert lines["images"] == "32 training, 4 validation, 4 test"
    assert lines["sampler"] == "ddim, 100 of 1,000 timesteps, spacing leading, from 990 down to 0"
    assert "MiB of memory (measured here on cpu, 1 thread)" in lines["a full trial"]
    assert "--ema takes them" in lines["note 1"]
    assert "weights: EMA weights" in run("doctor", model, images, "--ema")


def test_the_spacing_of_timesteps_is_the_one_asked_for(opened, made, images):
    workload = opened()
    preflight(workload, sampling_steps=10, timestep_spacing="quad")
    plan = workload.evaluation({"sampling_steps": 10, "timestep_spacing": "quad"}).plan
    assert plan.timesteps == [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]
    model = made("other")
    for spacing, visited in (("quad", "from 800 down to 0"), ("trailing", "from 999 down to 99"), ("linspace", "from 999")):
        shown = run("doctor", model, images, "--sampling-steps", 10, "--timestep-spacing", spacing)
        assert f"sampler: ddim, 10 of 1,000 timesteps, spacing {spacing}, {visited}" in shown
    with pytest.raises(MaskproError, match="sampling_steps is 600 with timestep_spacing leading"):
        preflight(workload, sampling_steps=600, timestep_spacing="leading")


def test_doctor_ends_well_without_a_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    app(["doctor"], standalone_mode=False)


def test_doctor_knows_the_embedded_workload():
    lines = run("doctor").splitlines()
    assert "model: embedded digits DDPM" in lines
    assert "weights: EMA weights" in lines
    assert len(lines) <= 20


# Networks and schedules of other kinds


@pytest.mark.parametrize(
    "overrides",
    [
        {"dropout": 0.3},
        {"mid_block_type": None},
        {"resnet_time_scale_shift": "scale_shift"},
        {"downsample_type": "resnet", "upsample_type": "resnet"},
        {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
        {"block_out_channels": (12, 20)},
        {"sample_size": [8, 8]},
    ],
    ids=str,
)
def test_networks_of_other_kinds_pass(opened, overrides):
    found = preflight(opened(**overrides))
    assert found.masked_layers > 0


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_schedules_of_few_timesteps_pass(opened, steps):
    assert preflight(opened(scheduler=DDPMScheduler(num_train_timesteps=steps)), sampling_steps=steps).masked_layers > 0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [({"layers_per_block": 0}, ""), ({"attention_head_dim": 32}, "(integer division or modulo by zero)")],
    ids=["without layers", "without heads"],
)
def test_a_network_that_was_never_finished_is_refused_in_one_sentence(opened, overrides, reason):
    workload = opened(**overrides)
    assert f"can't be run on images of 8x8 {reason}" in refused(workload)
    with pytest.raises(MaskproError, match=r"network can't be run on images of \[3, 8, 8\] .*; name another model"):
        workload.run_once()


def test_values_of_a_config_that_json_does_not_know_are_left_out(made, images):
    model = made()
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"steps_offset": 0', '"steps_offset": 0, "lambda_min_clipped": -Infinity'))
    assert preflight(open_workload("cifar10", model=str(model), data=images)).masked_layers > 0


def test_what_else_the_machine_does_is_not_taken_for_the_networks_time(opened, monkeypatch):
    timed = iter([(3.0, 9.0, 100), (1.0, 8.0, 100), (2.0, 7.0, 100)])
    monkeypatch.setattr(preflight_module, "_timed_passes", lambda *arguments: next(timed))
    found = preflight(opened())
    assert (found.forward_seconds, found.training_seconds) == (1.0, 7.0)
