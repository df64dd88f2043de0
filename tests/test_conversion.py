"""`maskpro convert`: the network computes what the original one does, and what can't be converted leaves nothing behind."""

import json
import math
import os
import shutil

import diffusers
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from shared_fixtures import seeded_unet
from torch.nn import functional
from typer.testing import CliRunner

from maskpro.cli import app
from maskpro.errors import MaskproError
from maskpro.masked_model import model_hash
from maskpro.pretrained import load_pretrained

# Warnings of diffusers' own schedulers, which the tests make.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


class OriginalNetwork:
    """The network of DDIM's repository, written from its paper and keys; the first pass draws the weights.

    Attributes:
        weights: under the original's keys.
        outputs: of each level of the last pass.
    """

    def __init__(self, multipliers, attention, *, blocks=2, width=32, seed=0):
        self.widths, self.attention, self.blocks = [width * factor for factor in multipliers], attention, blocks
        self.weights, self.outputs = {}, {}
        self.generator = torch.Generator().manual_seed(seed)

    def parameter(self, key, *shape, around=0.0, scale=0.1):
        if key not in self.weights:
            self.weights[key] = around + scale * torch.randn(shape, generator=self.generator)
        return self.weights[key]

    def convolve(self, key, x, width, size=3, **options):
        scale = (x.shape[1] * size * size) ** -0.5
        weight = self.parameter(f"{key}.weight", width, x.shape[1], size, size, scale=scale)
        return functional.conv2d(x, weight, self.parameter(f"{key}.bias", width), **options)

    def linear(self, key, x, width):
        weight = self.parameter(f"{key}.weight", width, x.shape[1], scale=x.shape[1] ** -0.5)
        return functional.linear(x, weight, self.parameter(f"{key}.bias", width))

    def norm(self, key, x):
        weight, bias = self.parameter(f"{key}.weight", x.shape[1], around=1.0), self.parameter(f"{key}.bias", x.shape[1])
        return functional.group_norm(x, 32, weight, bias, eps=1e-6)

    def block(self, key, x, embedded, width):
        h = self.convolve(f"{key}.conv1", functional.silu(self.norm(f"{key}.norm1", x)), width, padding=1)
        h = h + self.linear(f"{key}.temb_proj", functional.silu(embedded), width)[:, :, None, None]
        h = self.convolve(f"{key}.conv2", functional.silu(self.norm(f"{key}.norm2", h)), width, padding=1)
        return h + (x if x.shape[1] == width else self.convolve(f"{key}.nin_shortcut", x, width, size=1))

    def attend(self, key, x):
        width = x.shape[1]
        normed = self.norm(f"{key}.norm", x)
        q, k, v = (self.convolve(f"{key}.{part}", normed, width, size=1).flatten(2) for part in "qkv")
        shares = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(width), dim=2)
        return x + self.convolve(f"{key}.proj_out", (v @ shares.transpose(1, 2)).reshape(x.shape), width, size=1)

    def embed(self, timesteps):
        width, half = self.widths[0], self.widths[0] // 2
        angles = timesteps[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        hidden = self.linear("temb.dense.0", torch.cat([angles.sin(), angles.cos()], dim=1), 4 * width)
        return self.linear("temb.dense.1", functional.silu(hidden), 4 * width)

    def __call__(self, x, timesteps):
        embedded, channels, last = self.embed(timesteps), x.shape[1], len(self.widths) - 1
        h = self.convolve("conv_in", x, self.widths[0], padding=1)
        skips = [h]
        for level, width in enumerate(self.widths):
            for index in range(self.blocks):
                h = self.block(f"down.{level}.block.{index}", h, embedded, width)
                h = self.attend(f"down.{level}.attn.{index}", h) if level in self.attention else h
                skips.append(h)
            if level < last:
                h = self.convolve(f"down.{level}.downsample.conv", functional.pad(h, (0, 1, 0, 1)), width, stride=2)
                skips.append(h)
            self.outputs[f"down.{level}"] = h
        h = self.attend("mid.attn_1", self.block("mid.block_1", h, embedded, self.widths[-1]))
        h = self.outputs["mid"] = self.block("mid.block_2", h, embedded, self.widths[-1])
        for level in range(last, -1, -1):
            for index in range(self.blocks + 1):
                h = torch.cat([h, skips.pop()], dim=1)
                h = self.block(f"up.{level}.block.{index}", h, embedded, self.widths[level])
                h = self.attend(f"up.{level}.attn.{index}", h) if level in self.attention else h
            if level > 0:
                h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
                h = self.convolve(f"up.{level}.upsample.conv", h, self.widths[level], padding=1)
            self.outputs[f"up.{level}"] = h
        return self.convolve("conv_out", functional.silu(self.norm("norm_out", h)), channels, padding=1)


# Dark images: an epsilon of the normalisation that is not the original's changes the result.
IMAGES, TIMESTEPS = 0.05 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 40])


def small_original(seed=0):
    network = OriginalNetwork((1, 2), (1,), blocks=1, seed=seed)
    network(IMAGES[:, :, :8, :8], TIMESTEPS)
    return network.weights


def convert(*arguments):
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refusal(source, *options):
    """The sentence of a refusal, which has written nothing."""
    output = source.parent / "converted"
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(MaskproError) as caught:
        convert(source, "--output-dir", output, *options)
    assert sorted(source.parent.rglob("*")) == before
    assert "\n" not in str(caught.value)
    assert "--model" not in str(caught.value)
    return str(caught.value)


def saved(folder, content):
    torch.save(content, folder / "model.ckpt")
    return folder / "model.ckpt"


def pipeline(folder):
    return diffusers.DDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)


def record(folder):
    return json.loads((folder / "weights.json").read_text())


@pytest.mark.parametrize(
    ("multipliers", "attention", "side", "sample_size", "variance"),
    [
        ((1, 2, 2, 2), (1,), 16, 32, "fixed_large"),
        ((1, 2, 2, 2, 4), (2,), 32, 64, "fixed_large"),
        ((1, 1, 2, 2, 4, 4), (4,), 64, 256, "fixed_small"),
    ],
    ids=["CIFAR-10", "CelebA", "LSUN"],
)
@torch.no_grad()
def test_a_converted_network_computes_what_the_original_does(tmp_path, multipliers, attention, side, sample_size, variance):
    original, images = OriginalNetwork(multipliers, attention), IMAGES[:, :, :side, :side]
    expected = original(images, TIMESTEPS)
    said = convert(saved(tmp_path, original.weights), "--output-dir", tmp_path / "converted")
    assert f"sample_size {sample_size} is guessed: attention at 16x16" in said
    assert f"linear betas from 0.0001 to 0.02, prediction_type epsilon, {variance})" in said
    assert list((tmp_path / "converted" / "unet").glob("*.safetensors"))
    converted = pipeline(tmp_path / "converted")
    unet, found = converted.unet.eval(), {}
    places = {f"down.{level}": block for level, block in enumerate(unet.down_blocks)} | {"mid": unet.mid_block}
    places |= {f"up.{level}": block for level, block in enumerate(reversed(unet.up_blocks))}
    for name, block in places.items():
        block.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
    torch.testing.assert_close(unet(images, TIMESTEPS).sample, expected, rtol=1e-5, atol=2e-5)
    assert found.keys() == original.outputs.keys()
    for name, output in found.items():
        hidden = output[0] if isinstance(output, tuple) else output
        torch.testing.assert_close(hidden, original.outputs[name], rtol=1e-5, atol=5e-5, msg=lambda text, n=name: n + text)
    assert unet.config["sample_size"] == sample_size
    assert converted.scheduler.config["variance_type"] == variance
    torch.testing.assert_close(converted.scheduler.betas, torch.linspace(1e-4, 0.02, 1000))


def test_of_a_training_runs_weights_the_ema_ones_are_taken_and_recorded(tmp_path):
    raw, averaged = small_original(0), small_original(1)
    wrapped = {f"module.{key}": value for key, value in raw.items()}
    optimizer = {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 2e-4}]}
    source = saved(tmp_path, [wrapped, optimizer, 3, 7, averaged])
    for option, weights, is_ema in (((), averaged, True), (("--ema",), averaged, True), (("--raw",), raw, False)):
        folder = tmp_path / f"converted{option}"
        said = convert(source, "--output-dir", folder, *option)
        assert f"of the file's EMA and raw weights the {'EMA' if is_ema else 'raw'} ones are taken" in said
        assert "1 tensors beside the network are left out: 1.state.0.exp_avg" in said
        assert torch.equal(pipeline(folder).unet.conv_in.weight, weights["conv_in.weight"])
        assert record(folder) == {"ema": is_ema}
        assert load_pretrained(str(folder)).ema == ("EMA weights" if is_ema else "raw weights (not EMA)")


def test_a_training_run_without_ema_is_recorded_as_raw(tmp_path):
    source = saved(tmp_path, [small_original(), {}, 3, 7])
    assert "holds raw weights (not EMA) alone; allowed: without --ema or --raw" in refusal(source, "--ema")
    convert(source, "--output-dir", tmp_path / "converted")
    assert record(tmp_path / "converted") == {"ema": False}


@pytest.mark.parametrize(
    "content", [[small_original(0), small_original(1)], {"a": small_original(0), "b": small_original(1)}]
)
def test_several_networks_of_which_none_is_known_to_be_ema_are_refused(tmp_path, content):
    source = saved(tmp_path, content)
    places = ("0., 1." if isinstance(content, list) else "a., b.") + ", and names none of them EMA; allowed: one network"
    for options in ((), ("--ema",), ("--raw",)):
        assert f"holds 2 networks, under {places}" in refusal(source, *options)


def test_what_a_file_of_one_network_does_not_tell_is_asked_for(tmp_path):
    source = saved(tmp_path, {f"_orig_mod.{key}": value for key, value in small_original().items()})
    said = convert(source, "--output-dir", tmp_path / "unknown", "--sample-size", 8)
    assert "whether these are EMA weights is not recorded; --ema or --raw records it" in said
    assert not (tmp_path / "unknown" / "weights.json").exists()
    assert pipeline(tmp_path / "unknown").unet.config["sample_size"] == 8
    convert(source, "--output-dir", tmp_path / "known", "--ema")
    assert record(tmp_path / "known") == {"ema": True}


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (
            {"mid.attn_2.q.weight": torch.zeros(1), "logvar": torch.zeros(1)},
            (),
            "no known layout: mid.attn_2.q.weight, logvar;",
        ),
        ({"up.0.block.0.conv1.bias": None}, (), "holds no up.0.block.0.conv1.bias; allowed: the"),
        ({"conv_out.weight": None}, (), "holds no convolution conv_out.weight; allowed: a whole"),
        ({"down.7.block.0.conv1.weight": torch.zeros(1)}, (), "holds no convolution down.2.block.0.conv1.weight"),
        ({"conv_in.bias": torch.zeros(8)}, (), "conv_in.bias is [8], allowed: [32]"),
        ({"temb.dense.0.weight": None}, (), "keys of no known layout: temb.dense.0.bias"),
        ({"conv_in.bias": torch.full((32,), math.nan)}, (), "not finite in conv_in.bias"),
        ({}, ("--sample-size", 9), "sample_size is 9; allowed with 2 resolutions: a multiple of 2"),
        ({"down.1.attn.0.q.weight": None}, (), "allowed: --sample-size"),
    ],
)
def test_a_file_that_is_no_original_checkpoint_says_what_is_wrong(tmp_path, change, options, said):
    weights = small_original() | change
    source = saved(tmp_path, {key: value for key, value in weights.items() if value is not None})
    assert said in refusal(source, *options)


class _Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_file_that_holds_code_is_refused_with_its_name_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ({"conv_in.weight": _Code()}, _Code()):
        for is_zip in (True, False):
            source = tmp_path / "model.ckpt"
            torch.save(content, source, _use_new_zipfile_serialization=is_zip)
            assert f"{os.system.__module__}.system in it may be code and is not run" in refusal(source)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_is_cut_off_is_one_sentence(tmp_path, is_zip):
    source = tmp_path / "model.ckpt"
    torch.save(small_original(), source, _use_new_zipfile_serialization=is_zip)
    content = source.read_bytes()
    for size in (0, 1000, len(content) // 2, len(content) - 10):
        source.write_bytes(content[:size])
        assert "can't be loaded (model.ckpt: " in refusal(source)


def test_a_file_of_something_else_is_said_to_be_no_file_of_tensors(tmp_path):
    source = tmp_path / "model.ckpt"
    source.write_bytes(b"junk" * 100)
    assert "can't be loaded (model.ckpt: damaged or no file of tensors, KeyError" in refusal(source)


def test_results_are_never_overwritten(tmp_path):
    source = saved(tmp_path, small_original())
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "kept").write_text("")
    assert "converted exists already and is not overwritten" in refusal(source)


@pytest.fixture
def training(tmp_path):
    """A checkpoint as diffusers' train_unconditional.py leaves it in its output folder."""
    folder = tmp_path / "output" / "checkpoint-500"
    seeded_unet(0).save_pretrained(folder / "unet")
    average = seeded_unet(1)
    EMAModel(average.parameters(), model_cls=UNet2DModel, model_config=average.config).save_pretrained(folder / "unet_ema")
    return folder


def test_a_training_folder_becomes_a_pipeline_of_its_ema_weights(tmp_path, training):
    said = convert(training, "--output-dir", tmp_path / "ema")
    assert "no scheduler is there; that of diffusers' training script is guessed (1000 timesteps, linear betas" in said
    assert model_hash(pipeline(tmp_path / "ema").unet) == model_hash(seeded_unet(1))
    assert record(tmp_path / "ema") == {"ema": True}
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(training.parent / "scheduler")
    said = convert(training, "--output-dir", tmp_path / "raw", "--raw")
    assert f"the scheduler is that of {training.parent / 'scheduler'}" in said
    assert model_hash(pipeline(tmp_path / "raw").unet) == model_hash(seeded_unet(0))
    assert pipeline(tmp_path / "raw").scheduler.config["beta_schedule"] == "squaredcos_cap_v2"
    assert record(tmp_path / "raw") == {"ema": False}
    shutil.rmtree(training / "unet_ema")
    convert(training / "unet", "--output-dir", tmp_path / "bare")
    assert not (tmp_path / "bare" / "weights.json").exists()


def test_of_a_hub_model_too_the_ema_weights_are_taken(tmp_path, training, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(training))
    for option, seed in (((), 1), (("--ema",), 1), (("--raw",), 0)):
        folder = tmp_path / f"converted{option}"
        convert("somebody/ddpm", "--output-dir", folder, *option)
        assert model_hash(pipeline(folder).unet) == model_hash(seeded_unet(seed))
        assert record(folder) == {"ema": seed == 1}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrapped_bin_weights_become_safetensors(tmp_path, training, prefix):
    shutil.rmtree(training / "unet_ema")
    weights = {f"{prefix}{name}": value for name, value in seeded_unet(2).state_dict().items()}
    (training / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, training / "unet" / "diffusion_pytorch_model.bin")
    assert f"prefixes of keys are removed: {prefix}" in convert(training, "--output-dir", tmp_path / "converted")
    assert model_hash(pipeline(tmp_path / "converted").unet) == model_hash(seeded_unet(2))
    assert [path.suffix for path in (tmp_path / "converted" / "unet").iterdir() if path.suffix != ".json"] == [
        ".safetensors"
    ]


def test_a_record_is_not_contradicted(tmp_path, training):
    convert(training, "--output-dir", tmp_path / "source")
    assert "is recorded as EMA weights; allowed: without --ema or --raw" in refusal(tmp_path / "source", "--raw")
    assert "is no checkpoint file; allowed: without it" in refusal(tmp_path / "source", "--sample-size", 8)
    convert(tmp_path / "source", "--output-dir", tmp_path / "converted", "--ema")
    assert record(tmp_path / "converted") == {"ema": True}
