"""From a mask to files for runtimes: each holds the masked network, whatever way it goes."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shared_fixtures import is_strictly_two_of_four, seeded_unet
from torch import nn
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass as from_dense
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass as to_dense
from typer.testing import CliRunner

from benchmarks.step_cost import CIFAR10_UNET
from maskpro.cli import app
from maskpro.embedded import DIGITS_MODEL
from maskpro.errors import MaskproError
from maskpro.evaluation.sampling import SamplingPlan
from maskpro.export import (
    load_compressed,
    load_network,
    load_semi_structured,
    masked_network,
    to_semi_structured,
)
from maskpro.export.compressed import FORMAT, kept_groups, position_bits, save_compressed, tensors_checksum
from maskpro.export.formats import FORMATS
from maskpro.export.onnx_file import save_onnx
from maskpro.export.semi_structured import SemiStructured
from maskpro.initial_masks import magnitude_masked_model
from maskpro.mask_file import MaskFile, read_described, save_mask_file, write_described
from maskpro.masked_model import maskable_layers, model_hash
from maskpro.pattern import NMPattern
from maskpro.pipeline.masks import magnitude_mask_file
from maskpro.pretrained import Pretrained, load_pretrained, save_pipeline

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def run(*arguments):
    """A command's output; errors are raised as the console script would see them."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def dense():
    return load_pretrained(str(DIGITS_MODEL))


def magnitude_masks(model, pattern="2:4", layout="channel"):
    masked = magnitude_masked_model(copy.deepcopy(model), pattern=NMPattern.parse(pattern), layout=layout)
    return MaskFile(
        pattern=masked.pattern, layout=layout, base_hash=model_hash(model), masks=masked.layer_masks(), provenance={"x": 1}
    )


@pytest.fixture(scope="module")
def network(dense):
    """The digits network under its 2:4 magnitude mask."""
    return masked_network(dense, magnitude_masks(dense.unet))


@pytest.fixture
def mask_path(tmp_path, network):
    save_mask_file(tmp_path / "masks.safetensors", network.masks)
    return tmp_path / "masks.safetensors"


def expected_state(dense, masks, dtype):
    """By plain products of the dense weights, apart from the package's own code."""
    state = {name: value.to(dtype) for name, value in dense.unet.state_dict().items()}
    for name, mask in masks.masks.items():
        state[f"{name}.weight"] = torch.where(mask, state[f"{name}.weight"], torch.zeros((), dtype=dtype))
    return state


def settings(part):
    return {name: value for name, value in part.config.items() if not name.startswith("_")}


def same_bits(one, other):
    parts = [value.reshape(-1).view(torch.uint8) for value in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*parts)


@pytest.mark.parametrize(
    ("pattern", "layout", "dtype"),
    [
        ("2:4", "channel", "float16"),
        ("2:4", "flattened", "bfloat16"),
        ("1:4", "channel", "float32"),
        ("4:8", "flattened", "float16"),
        ("2:16", "channel", "float32"),
    ],
)
def test_a_compressed_file_gives_the_masked_network_back_bit_for_bit(tmp_path, dense, pattern, layout, dtype):
    masks = magnitude_masks(dense.unet, pattern, layout)
    path = tmp_path / "compressed.safetensors"
    save_compressed(path, masked_network(dense, masks).cast(DTYPES[dtype]))
    expected, found = expected_state(dense, masks, DTYPES[dtype]), load_compressed(str(path))
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], value) for name, value in expected.items())
    loaded = load_network(path)
    assert all(same_bits(loaded.unet.state_dict()[name], value) for name, value in expected.items())
    assert loaded.masks.masks.keys() == masks.masks.keys()
    assert all(torch.equal(loaded.masks.masks[name], mask) for name, mask in masks.masks.items())
    assert replace(loaded.masks, masks={}) == replace(masks, masks={})
    for one, other in ((loaded.scheduler, dense.scheduler), (loaded.unet, dense.unet)):
        assert settings(one) == settings(other)
    assert loaded.ema == dense.ema


@pytest.mark.parametrize("pattern", [NMPattern(n, m) for n, m in itertools.combinations(range(1, 17), 2)], ids=str)
def test_positions_of_every_pattern_are_packed_in_the_shorter_way(pattern, generator):
    count = 50
    groups = torch.zeros(count, pattern.m, dtype=torch.bool)
    groups.scatter_(1, torch.rand(count, pattern.m, generator=generator).topk(pattern.n).indices, True)
    bits = position_bits(groups, pattern)
    assert bits.size == count * min(pattern.m, pattern.n * int(np.ceil(np.log2(pattern.m))))
    assert set(bits.tolist()) <= {0, 1}
    assert torch.equal(kept_groups(bits, count, pattern), groups)


@pytest.mark.slow
def test_export_to_a_compressed_file_and_back_to_a_diffusers_folder(tmp_path, dense, network, mask_path):
    output = run("export", mask_path, "--to", "safetensors", "--output", tmp_path / "small.safetensors")
    size = (tmp_path / "small.safetensors").stat().st_size
    whole = 2 * sum(value.numel() for value in dense.unet.state_dict().values())
    assert f"bytes in float16: dense network {whole:,}, masked with its zeros {whole:,}, compressed {size:,}" in output
    assert f"({1 - size / whole:.1%} less)" in output
    assert "compressed 2:4 file in float16, positions as indices of 2 bits" in output
    with safe_open(tmp_path / "small.safetensors", framework="pt") as opened:
        kept = sum(int(mask.sum()) for mask in network.masks.masks.values())
        assert opened.get_tensor("values").shape == (kept,)
        assert opened.get_tensor("positions").numel() == kept / 4  # of 2 bits each
    run("export", tmp_path / "small.safetensors", "--to", "diffusers", "--output-dir", tmp_path / "folder")
    expected = expected_state(dense, network.masks, torch.float16)
    found = load_file(tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(same_bits(found[name], value) for name, value in expected.items())
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "folder", low_cpu_mem_usage=False)
    assert all(torch.equal(value, expected[name].float()) for name, value in pipeline.unet.state_dict().items())
    assert load_pretrained(str(tmp_path / "folder")).ema == dense.ema
    run("export", mask_path, "--to", "diffusers", "--output", tmp_path / "float32")
    found = load_pretrained(str(tmp_path / "float32")).unet.state_dict()
    assert all(
        torch.equal(found[name], value) for name, value in expected_state(dense, network.masks, torch.float32).items()
    )
    run("export", tmp_path / "small.safetensors", "--to", "safetensors", "--output", tmp_path / "again.safetensors")
    again = load_compressed(tmp_path / "again.safetensors")
    wide = ("--to", "diffusers", "--dtype", "float32", "--output", tmp_path / "wide")
    assert "small.safetensors are float16, and become float32\n" in run("export", tmp_path / "small.safetensors", *wide)
    assert all(same_bits(again[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_the_compressed_cifar10_network_is_two_fifths_smaller_than_its_dense_file(tmp_path):
    """google/ddpm-cifar10-32's config, with random weights."""
    dense = Pretrained(unet=seeded_unet(**CIFAR10_UNET, norm_num_groups=32), scheduler=DDPMScheduler(), ema="")
    assert sum(value.numel() for value in dense.unet.parameters()) == 35_746_307
    network = masked_network(dense, magnitude_masks(dense.unet)).cast(torch.float16)
    save_compressed(tmp_path / "compressed.safetensors", network)
    save_file({name: value.half() for name, value in dense.unet.state_dict().items()}, tmp_path / "dense.safetensors")
    sizes = {name: (tmp_path / f"{name}.safetensors").stat().st_size for name in ("dense", "compressed")}
    assert sizes["compressed"] <= 0.6 * sizes["dense"]


class AsTheKernels(torch.Tensor):
    """A weight that is multiplied as torch's 2:4 kernels do it: by an input that can be viewed as a matrix."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is not nn.functional.linear:
            return super().__torch_function__(func, types, args, kwargs or {})
        values, weight, bias = args
        rows = values.view(-1, values.shape[-1])
        return torch.addmm(bias, rows, weight.as_subclass(torch.Tensor).T).view(*values.shape[:-1], -1)


@torch.no_grad()
def test_layers_on_the_2_to_4_kernels_compute_the_masked_network(tmp_path, dense, network, generator):
    compressed = []

    def compress(weight):
        assert weight.ndim == 2
        assert weight.is_contiguous()
        assert weight.shape[0] % 16 == weight.shape[1] % 16 == 0
        assert is_strictly_two_of_four(weight, "channel")
        if weight.shape[0] % 32 == weight.shape[1] % 64 == 0:  # torch's own compression without a GPU, for CUTLASS
            half = weight.half()
            assert torch.equal(to_dense(*from_dense(half)), half)
        compressed.append(weight)
        return weight.as_subclass(AsTheKernels)

    save_compressed(tmp_path / "float32.safetensors", network.cast(torch.float32))
    found = load_semi_structured(str(tmp_path / "float32.safetensors"), device="cpu", compress=compress)
    layers = [name for name, module in found.named_modules() if isinstance(module, SemiStructured)]
    assert len(layers) == len(compressed)
    assert {type(network.unet.get_submodule(name)) for name in layers} == {nn.Conv2d, nn.Linear}
    sample, timesteps = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0, 500, 999])
    expected = network.unet(sample, timesteps).sample
    torch.testing.assert_close(found(sample, timesteps).sample, expected, rtol=0, atol=2e-5)
    of_dense = to_semi_structured(dense.unet, network.masks, device="cpu", compress=compress)
    torch.testing.assert_close(of_dense(sample, timesteps).sample, expected, rtol=0, atol=2e-5)
    for name in layers:
        layer = network.unet.get_submodule(name)
        shape = (2, layer.in_channels, 5, 4) if isinstance(layer, nn.Conv2d) else (2, 5, layer.in_features)
        values = torch.randn(shape, generator=generator)
        torch.testing.assert_close(found.get_submodule(name)(values), layer(values), rtol=0, atol=1e-5)


def test_without_a_gpu_the_file_is_written_and_what_was_not_tried_is_said(tmp_path, dense, network, mask_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = run("export", mask_path, "--to", "torch-sparse", "--output", tmp_path / "sparse.safetensors")
    assert "masked layers, with 1" in output
    assert "neither these kernels nor their speed was tried, as there is no CUDA GPU here" in output
    assert load_network(tmp_path / "sparse.safetensors").dtype == torch.float16
    with pytest.raises(MaskproError, match="torch's 2:4 kernels can't run: there is no CUDA GPU here; allowed: an NVIDIA"):
        load_semi_structured(tmp_path / "sparse.safetensors")
    with pytest.raises(
        MaskproError, match="dtype of the model is float32; allowed on torch's 2:4 kernels: float16, bfloat16"
    ):
        to_semi_structured(network.unet, network.masks)
    with pytest.raises(MaskproError, match="torch's 2:4 kernels can't run: device is cpu; allowed: an NVIDIA GPU"):
        load_semi_structured(tmp_path / "sparse.safetensors", device="cpu")
    save_mask_file(tmp_path / "wide.safetensors", magnitude_masks(dense.unet, "4:8"))
    output = run("export", tmp_path / "wide.safetensors", "--to", "torch-sparse", "--output", tmp_path / "wide")
    assert "0 of 39 masked layers, with 0.0% of the weights, run on torch's 2:4 kernels" in output


class OnnxNetwork(nn.Module):
    """An ONNX file as a network that images are sampled from."""

    def __init__(self, path):
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.where = nn.Parameter(torch.zeros(()))

    def forward(self, sample, timestep, return_dict=False):
        inputs = {"sample": sample.numpy(), "timestep": timestep.expand(len(sample)).numpy()}
        return (torch.from_numpy(self.session.run(["prediction"], inputs)[0]),)


@pytest.mark.slow
@torch.no_grad()
def test_onnxruntime_makes_the_masked_networks_images(tmp_path, dense, network, mask_path, generator):
    import onnx

    path = tmp_path / "digits.onnx"
    output = run("export", mask_path, "--to", "onnx", "--output", path)
    assert "39 of 39 masked layers meet TensorRT's rules for sparse weights, by the weights in the file\n" in output
    assert "ONNX file in float32, opset 18, any number of images" in output
    stored = onnx.load(path)
    assert [(part.domain, part.version) for part in stored.opset_import] == [("", 18)]
    # Apart from the command's own check: every product of a masked layer, whichever way its weight is stored.
    values = {part.name: torch.from_numpy(onnx.numpy_helper.to_array(part).copy()) for part in stored.graph.initializer}
    found = 0
    for node in stored.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in values:
            continue
        weight = values[node.input[1]].T if node.op_type == "MatMul" else values[node.input[1]]
        assert node.op_type != "Gemm" or {part.name: part.i for part in node.attribute}["transB"] == 1
        found += weight.shape[1] % 4 == 0 and is_strictly_two_of_four(weight, "channel")
    assert found == 39
    runtime = OnnxNetwork(path)
    for size in (1, 3):
        sample, timestep = (
            torch.randn(size, 1, 8, 8, generator=generator),
            torch.randint(1000, (size,), generator=generator),
        )
        torch.testing.assert_close(runtime(sample, timestep)[0], network.unet(sample, timestep).sample, rtol=0, atol=1e-5)
    plan = SamplingPlan(scheduler=dense.scheduler, shape=(1, 8, 8), steps=10, seed=0, batch_size=8)
    differences = plan.images(runtime, range(8)).int() - plan.images(network.unet, range(8)).int()
    assert differences.abs().max() <= 1  # of 255


@pytest.mark.slow
@torch.no_grad()
def test_onnx_in_half_precision_says_which_layers_of_a_flattened_mask_are_not_accelerated(tmp_path, dense, generator):
    masks = magnitude_masks(dense.unet, layout="flattened")
    save_mask_file(tmp_path / "masks.safetensors", masks)
    path = tmp_path / "half.onnx"
    output = run("export", tmp_path / "masks.safetensors", "--to", "onnx", "--dtype", "float16", "--output", path)
    matrices = sum(mask.ndim == 2 or mask.shape[2:] == (1, 1) for mask in masks.masks.values())
    rest = len(masks.masks) - matrices
    assert f"{matrices} of 39 masked layers meet TensorRT's rules for sparse weights, by the weights in the file" in output
    assert f"; {rest} do not, such as down_blocks.0.resnets.0.conv1, which keeps more than 2 of 4 channels in" in output
    expected = masked_network(dense, masks).unet
    sample, timestep = torch.randn(2, 1, 8, 8, generator=generator), torch.tensor([3, 900])
    found = OnnxNetwork(path)(sample.half(), timestep)[0]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected(sample, timestep).sample, rtol=0, atol=1e-2)


class UntracedActivation(nn.Module):
    def forward(self, values):
        return values if values.sum() > 0 else -values


@pytest.mark.slow
def test_a_network_that_torch_can_not_trace_is_refused(tmp_path):
    unet = seeded_unet()
    unet.conv_act = UntracedActivation()
    network = masked_network(Pretrained(unet=unet, scheduler=DDPMScheduler(), ema=""), magnitude_masks(unet))
    with pytest.raises(MaskproError, match=r"network can't be exported as ONNX \(.*\); allowed: another --to"):
        save_onnx(tmp_path / "new.onnx", network)
    assert list(tmp_path.iterdir()) == []


def refused(tmp_path, message, *arguments):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MaskproError, match=message):
        run("export", *arguments)
    assert sorted(tmp_path.iterdir()) == before


def test_what_can_not_be_exported_is_one_sentence_and_writes_nothing(tmp_path, dense, network, mask_path, model_folder):
    output = ("--output", tmp_path / "new")
    small = tmp_path / "small.safetensors"
    save_compressed(small, network.cast(torch.bfloat16))
    refused(
        tmp_path,
        "to is 'tflite'; allowed: diffusers, transformers, safetensors, torch-sparse, onnx",
        mask_path,
        "--to",
        "tflite",
        *output,
    )
    refused(
        tmp_path, f"mask file {mask_path} is for another model", mask_path, "--to", "onnx", "--model", model_folder, *output
    )
    other = tmp_path / "other.safetensors"
    save_mask_file(other, replace(magnitude_masks(seeded_unet()), base_hash=""))
    refused(tmp_path, "mask of layer .* (has shape|is for another model)", other, "--to", "diffusers", *output)
    for to, dtype, allowed in (
        ("onnx", "bfloat16", "float32, float16"),
        ("torch-sparse", "float32", "float16, bfloat16"),
        ("diffusers", "int8", "float32, float16, bfloat16"),
        ("diffusers", "", "float32, float16, bfloat16"),
    ):
        message = rf"dtype is '{dtype}'; allowed with --to {to}: {allowed} \(--dtype\)"
        refused(tmp_path, message, mask_path, "--to", to, "--dtype", dtype, *output)
    refused(tmp_path, "dtype is 'bfloat16'; allowed with --to onnx: float32, float16", small, "--to", "onnx", *output)
    refused(tmp_path, "is given with compressed file", small, "--to", "diffusers", "--model", model_folder, *output)
    refused(tmp_path, "no mask file", tmp_path / "none", "--to", "onnx", *output)
    for to, kind in (("diffusers", "folder"), ("safetensors", "file"), ("torch-sparse", "file"), ("onnx", "file")):
        refused(tmp_path, f"output {kind} {small} exists already", mask_path, "--to", to, "--output", small)


def test_a_damaged_compressed_file_is_refused(tmp_path, network):
    path = tmp_path / "small.safetensors"
    save_compressed(path, network.cast(torch.float16))
    whole = path.read_bytes()
    output = ("--to", "diffusers", "--output", tmp_path / "new")
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    refused(tmp_path, "is damaged: its weights do not match their checksum", path, *output)
    with pytest.raises(MaskproError, match="is damaged: its weights do not match their checksum"):
        load_compressed(path)
    path.write_bytes(whole.replace(b"2:4", b"1:4", 1))
    refused(tmp_path, "is damaged: its description does not match its checksum", path, *output)
    path.write_bytes(whole)
    description, tensors = read_described(path, kind="compressed file", format=FORMAT)
    for positions in (tensors["positions"][1:], tensors["positions"] ^ 255):
        forged = tensors | {"positions": positions.clone()}
        write_described(path, forged, description | {"tensors_checksum": tensors_checksum(forged)})
        refused(tmp_path, "is damaged: it can't be unpacked", path, *output)
    path.write_bytes(whole[:-100])
    with pytest.raises(MaskproError, match=r"compressed file .* is damaged or not safetensors"):
        load_compressed(path)
    with pytest.raises(MaskproError, match="no compressed file"):
        load_compressed(tmp_path / "none")


def test_weights_that_a_dtype_can_not_hold_and_shared_weights_are_refused(tmp_path, dense, network):
    large = copy.deepcopy(dense.unet)
    large.conv_in.weight.data.mul_(1e6)
    save_pipeline(tmp_path, large, dense.scheduler)
    masks = tmp_path / "masks.safetensors"
    save_mask_file(masks, magnitude_masks(large))
    arguments = (masks, "--to", "safetensors", "--model", tmp_path, "--output", tmp_path / "new")
    refused(tmp_path, "dtype is float16, in which conv_in.weight holds weights that are not finite; allowed", *arguments)
    run("export", *arguments, "--dtype", "bfloat16")
    shared = copy.deepcopy(dense.unet)
    shared.mid_block.resnets[1].conv1.weight = shared.mid_block.resnets[0].conv1.weight
    with pytest.raises(
        MaskproError, match=r"resnets.0.conv1.weight and .*resnets.1.conv1.weight of the model are one weight"
    ):
        masked_network(replace(dense, unet=shared), network.masks)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_the_packages_of_onnx_the_extra_is_named(tmp_path, mask_path, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    message = rf"to is onnx, for which package {package} is missing; allowed: after pip install maskpro\[export\]"
    refused(tmp_path, message, mask_path, "--to", "onnx", "--output", tmp_path / "new.onnx")


def test_the_digits_workloads_masks_fit(tmp_path, digits):
    """A mask that a workload's own steps have made is exported without naming a model."""
    masks = magnitude_mask_file(digits, pattern=NMPattern(2, 4), layout="channel")
    save_mask_file(tmp_path / "masks.safetensors", replace(masks, base_hash=""))  # as of extract without the original
    output = run("export", tmp_path / "masks.safetensors", "--to", "safetensors", "--output", tmp_path / "new")
    assert "masks.safetensors names no model; its layers' names and shapes are those of embedded digits DDPM\n" in output
    assert load_network(tmp_path / "new").masks.base_hash == digits.fingerprint()
    assert len(maskable_layers(load_network(tmp_path / "new").unet)) == len(masks.masks)


def test_a_file_that_grows_is_said_to(tmp_path):
    """With a mask of one small layer the names and configs outweigh what its zeros save."""
    unet = seeded_unet()
    masks = magnitude_masks(unet)
    smallest = min(masks.masks, key=lambda name: masks.masks[name].numel())
    masks = replace(masks, masks={smallest: masks.masks[smallest]})
    network, said = masked_network(Pretrained(unet=unet, scheduler=DDPMScheduler(), ema=""), masks).cast(torch.float16), []
    FORMATS["safetensors"].write(network, tmp_path / "small.safetensors", said.append)
    size = (tmp_path / "small.safetensors").stat().st_size
    assert size > network.dense_bytes
    assert said[0].endswith(f"compressed {size:,} ({size / network.dense_bytes - 1:.1%} more)")
