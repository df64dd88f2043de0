"""What a runtime can speed up: its rules against their own statements, and the whole network's shares."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)
from typer.testing import CliRunner

from maskpro.cli import app
from maskpro.dense_layers import multiply_adds
from maskpro.errors import MaskproError
from maskpro.export.eligibility import eligibility
from maskpro.initial_masks import magnitude_masked_model
from maskpro.mask_file import save_mask_file
from maskpro.pattern import NMPattern, weight_view
from maskpro.pipeline.masks import magnitude_mask_file
from maskpro.workloads.diffusion import run_on_zeros


def random_mask(shape, pattern="2:4", layout="channel"):
    pattern, shape = NMPattern.parse(pattern), torch.Size(shape)
    scores = torch.rand(shape.numel() // pattern.m, pattern.m, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(pattern.n).indices, True)
    return weight_view(kept.reshape(-1), shape, layout)


def row(mask, target, dtype=torch.float16, layer=None):
    network = None if layer is None else torch.nn.ModuleDict({"layer": layer})
    return eligibility({"layer": mask}, target=target, dtype=dtype, network=network, multiply_adds={}).layers[0]


def has_sparse_weights(mask):
    """TensorRT's rule for weights `[K, C, R, S]`, as its documentation writes it down."""
    for k in range(mask.shape[0]):
        for r in range(mask.shape[2]):
            for s in range(mask.shape[3]):
                for c in range(0, mask.shape[1], 4):
                    if mask[k, c : c + 4, r, s].sum() > 2:
                        return False
    return True


@pytest.mark.parametrize("layout", ["channel", "flattened"])
@pytest.mark.parametrize("pattern", ["1:4", "2:4", "3:4", "2:8", "4:8"])
@pytest.mark.parametrize("size", [1, 3])
def test_tensorrt_takes_what_its_documented_rule_takes(layout, pattern, size):
    mask = random_mask((8, 16, size, size), pattern, layout)
    fits = (pattern in ("1:4", "2:4", "2:8")) and (layout == "channel" or size == 1)
    assert has_sparse_weights(mask) == fits
    assert row(mask, "tensorrt").eligible == fits


@pytest.mark.parametrize("pattern", ["1:4", "2:4", "2:8", "3:4", "4:8"])
def test_torch_compresses_without_loss_what_it_is_said_to_take(pattern):
    weight = random_mask((32, 64), pattern) * torch.arange(1, 65).half()
    compressed = sparse_semi_structured_from_dense_cutlass(weight)
    lossless = bool((sparse_semi_structured_to_dense_cutlass(*compressed) == weight).all())
    assert row(weight != 0, "torch-sparse").eligible == lossless == (pattern in ("1:4", "2:4", "2:8"))


def test_torch_takes_sizes_by_backend_and_dtype():
    assert row(random_mask((32, 64)), "torch-sparse").backends == ("cuSPARSELt", "CUTLASS")
    assert row(random_mask((16, 48)), "torch-sparse").backends == ("cuSPARSELt",)
    assert row(random_mask((16, 128)), "torch-sparse", torch.int8).backends == ("CUTLASS",)
    refused = row(random_mask((16, 40)), "torch-sparse").problem
    assert refused == "has 16 x 40 weights, and torch takes multiples of 16 x 16 (cuSPARSELt) or 32 x 64 (CUTLASS)"
    assert row(random_mask((16, 40)), "tensorrt").eligible


@pytest.mark.parametrize(
    ("layer", "tensorrt", "torch_sparse"),
    [
        (torch.nn.Linear(64, 64), "", ""),
        (torch.nn.Conv2d(64, 64, 1), "", ""),
        (torch.nn.Conv2d(64, 64, 3), "", "has a 3x3 kernel"),
        (torch.nn.Conv2d(64, 64, 1, stride=2), "", "is a 1x1 convolution of stride"),
        (torch.nn.Conv2d(64, 64, 1, padding=1), "", "is a 1x1 convolution of stride"),
        (torch.nn.Conv2d(128, 64, 1, groups=2), "is a convolution in 2 groups", "is a convolution in 2 groups"),
    ],
    ids=str,
)
def test_what_each_target_makes_of_a_layer(layer, tensorrt, torch_sparse):
    mask = random_mask(layer.weight.shape)
    for target, problem in (("tensorrt", tensorrt), ("torch-sparse", torch_sparse)):
        found = row(mask, target, layer=layer)
        assert found.problem.startswith(problem)
        assert found.eligible == (problem == "")


@pytest.mark.parametrize(
    ("shape", "gain"),
    [
        ((256, 256), "likely"),
        ((256, 252), "unlikely"),
        ((252, 256), "unlikely"),
        ((256, 252, 1, 1), "unlikely"),
        ((256, 128, 3, 3), "possible"),
        ((128, 256, 3, 3), "unlikely"),
        ((256, 256, 3, 3), "likely"),
    ],
)
def test_a_gain_is_expected_from_256_channels_on(shape, gain):
    assert row(random_mask(shape), "tensorrt").gain == gain


@pytest.fixture
def network():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in = torch.nn.Conv2d(3, 16, 1)
            self.narrow = torch.nn.Conv2d(16, 256, 3, padding=1)
            self.wide = torch.nn.Conv2d(256, 256, 1)

        def forward(self, images, timesteps):
            return self.wide(self.narrow(self.conv_in(images)))

    return Network()


def test_shares_relate_to_all_layers_and_bound_the_speed_up(network):
    masks = magnitude_masked_model(network, pattern=NMPattern(2, 4), layout="channel").layer_masks()
    costs = multiply_adds(network, partial(run_on_zeros, network, (3, 4, 4)))
    given = {"dtype": torch.float16, "network": network, "multiply_adds": costs}
    weights = [48, 16 * 256 * 9, 256 * 256]
    whole = eligibility(masks, target="tensorrt", **given)
    assert [found.multiply_adds for found in whole.layers] == [16 * count for count in weights[1:]]
    assert whole.weights_share == whole.multiply_adds_share() == pytest.approx(sum(weights[1:]) / sum(weights))
    assert (
        whole.multiply_adds_share("likely") == whole.multiply_adds_share("likely", "possible") == weights[2] / sum(weights)
    )
    half = eligibility(masks, target="torch-sparse", **given)
    assert [found.eligible for found in half.layers] == [False, True]
    # Half of the eligible share of the time is saved.
    assert half.most_speed_up() == pytest.approx(sum(weights) / (sum(weights) - weights[2] / 2))
    assert "torch alone can speed up at most 64.0% of the multiply-adds" in half.lines()[1]
    assert "at most 1.47 times as fast" in half.lines()[1]


@pytest.fixture
def mask_path(tmp_path, digits):
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, magnitude_mask_file(digits, pattern=NMPattern(2, 4), layout="channel"))
    return path


def verify(*args):
    result = CliRunner().invoke(app, ["verify", *map(str, args)])
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


def test_verify_says_what_a_target_can_speed_up(mask_path, digits):
    without = verify(mask_path, "--target", "torch-sparse")
    assert "not eligible, as it has a 3x3 kernel" in without
    assert "of the weights of the masked layers" in without
    assert (
        "multiply-adds, strides and grouped convolutions are unknown without the network; allowed: with --workload"
        in without
    )
    output = verify(mask_path, "--target", "torch-sparse", "--workload", "digits")
    assert "torch alone can speed up at most 10.2% of the multiply-adds" in output
    assert "the network is at most 1.05 times as fast" in output
    assert "a gain is likely in 0 layers" in output
    output = verify(mask_path, "--target", "tensorrt", "--dtype", "int8", "--workload", "digits")
    assert "TensorRT can run 39 of 39 masked layers on sparse tensor cores, with 89.3% of the weights" in output


def test_verify_refuses_targets_and_dtypes_that_there_are_not(mask_path):
    with pytest.raises(MaskproError, match="target is 'onnx'; allowed: tensorrt, torch-sparse"):
        verify(mask_path, "--target", "onnx")
    with pytest.raises(MaskproError, match="dtype is 'float32'; allowed on sparse tensor cores: float16, bfloat16, int8"):
        verify(mask_path, "--target", "tensorrt", "--dtype", "float32")
    with pytest.raises(MaskproError, match="dtype is ''; allowed on sparse tensor cores"):
        verify(mask_path, "--target", "tensorrt", "--dtype", "")
    with pytest.raises(MaskproError, match="dtype is int8 without target; allowed: with --target"):
        verify(mask_path, "--dtype", "int8")


def test_a_flattened_mask_is_told_from_one_that_runtimes_take(tmp_path, digits):
    path = tmp_path / "masks.safetensors"
    content = magnitude_mask_file(digits, pattern=NMPattern(2, 4), layout="flattened")
    save_mask_file(path, replace(content, base_hash=""))
    output = verify(path, "--target", "tensorrt")
    assert "not eligible, as it keeps more than 2 of 4 channels in" in output
