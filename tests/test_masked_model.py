import copy

import pytest
import torch
from conftest import is_strictly_two_of_four, seeded_unet
from torch import nn

from maskpro.errors import MaskproError
from maskpro.initial_masks import extract_masks, magnitude_mask, random_mask
from maskpro.masked_model import MaskedModel, is_protected, is_target, maskable_layers, model_hash
from maskpro.pattern import NMPattern

TWO_OF_FOUR = NMPattern(2, 4)


@pytest.fixture
def unet():
    return seeded_unet().eval()


def masked_model(model, layout="channel", **settings):
    return MaskedModel(copy.deepcopy(model), pattern=TWO_OF_FOUR, layout=layout, **settings)


@pytest.mark.parametrize("layout", ["channel", "flattened"])
def test_the_dense_network_is_unchanged_by_the_flat_buffer(unet, layout):
    masked = masked_model(unet, layout)
    images, timesteps = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])
    with torch.no_grad():
        assert torch.allclose(masked.model(images, timesteps).sample, unet(images, timesteps).sample, atol=1e-5)
    assert model_hash(masked.model) == model_hash(unet)


@pytest.mark.parametrize("layout", ["channel", "flattened"])
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_masks_are_strictly_two_of_four_and_spare_protected_layers(unet, layout, method, generator):
    masked = masked_model(unet, layout)
    masked.set_mask(magnitude_mask(masked) if method == "magnitude" else random_mask(masked, generator))
    dense, now = unet.state_dict(), masked.model.state_dict()
    maskable = {f"{name}.weight" for name in maskable_layers(unet)}
    assert maskable
    for name, weight in now.items():
        if name in maskable:
            assert is_strictly_two_of_four(weight, layout)
            kept = weight != 0
            assert torch.equal(weight[kept], dense[name][kept])
        else:
            assert torch.equal(weight, dense[name])


def test_magnitude_keeps_the_largest(unet):
    masked = masked_model(unet)
    mask = magnitude_mask(masked)
    sizes = masked.learned_base.abs()
    assert (sizes.masked_fill(~mask, torch.inf).amin(1) >= sizes.masked_fill(mask, 0).amax(1)).all()


def test_protected_layers_are_those_of_the_original():
    for name in (
        "conv_in",
        "conv_out",
        "time_embedding.linear_1",
        "down_blocks.0.resnets.0.time_emb_proj",
        "class_embedding",
    ):
        assert is_protected(name)
    for name in ("down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.to_q", "up_blocks.1.resnets.0.conv_shortcut"):
        assert not is_protected(name)
    protected = [name for name in maskable_layers(seeded_unet()) if "time_emb" in name or name.startswith("conv_")]
    assert protected == []


@pytest.mark.parametrize(
    ("target", "name", "matches"),
    [
        ("all", "mid_block.attentions.0.to_q", True),
        ("down_blocks", "down_blocks.1.resnets.0.conv1", True),
        ("down_blocks.1", "down_blocks.1.resnets.0.conv1", True),
        ("down_blocks.1", "down_blocks.10.resnets.0.conv1", False),
        ("attentions", "mid_block.attentions.0.to_q", True),
        ("attention", "mid_block.attentions.0.to_q", False),
        ("down_blocks.1.attentions.0", "down_blocks.1.attentions.0.to_q", True),
    ],
)
def test_targets_match_whole_parts_of_names(target, name, matches):
    assert is_target(name, (target,)) is matches


def test_layers_outside_the_targets_keep_their_mask(unet):
    masked = masked_model(unet, targets=("mid_block", "up_blocks.1"))
    masked.set_mask(magnitude_mask(masked))
    before = masked.layer_masks()
    masked.set_mask(~masked.mask[: len(masked.learned_base)])
    after = masked.layer_masks()
    for name in before:
        if is_target(name, ("mid_block", "up_blocks.1")):
            assert torch.equal(after[name], ~before[name])
        else:
            assert torch.equal(after[name], before[name])


def test_a_target_that_matches_nothing_is_refused(unet):
    with pytest.raises(MaskproError, match=r"targets holds 'down_block', which matches no maskable layer; allowed: all"):
        masked_model(unet, targets=("mid_block", "down_block"))
    with pytest.raises(MaskproError, match="targets is empty"):
        masked_model(unet, targets=())


def test_a_width_that_m_does_not_divide_is_refused():
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(
        MaskproError, match=r"pattern is 2:4; its 4 does not divide the width of 1 layers of 1, such as 0, which is 6 wide"
    ):
        MaskedModel(model, pattern=TWO_OF_FOUR)
    with pytest.raises(MaskproError, match="no maskable layer"):
        MaskedModel(nn.Sequential(nn.ReLU()), pattern=TWO_OF_FOUR)


@pytest.mark.parametrize("layout", ["channel", "flattened"])
def test_layer_masks_round_trip(unet, layout, generator):
    masked = masked_model(unet, layout)
    mask = random_mask(masked, generator)
    masked.set_mask(mask)
    other = masked_model(unet, layout, targets=("mid_block",))  # another order in the buffer, the same layers
    other.set_mask(other.groups(masked.layer_masks()))
    assert model_hash(other.model) == model_hash(masked.model)
    assert torch.equal(masked.groups(masked.layer_masks()), mask)


def test_masks_that_do_not_fit_are_refused(unet):
    masked = masked_model(unet)
    masked.set_mask(magnitude_mask(masked))
    masks = masked.layer_masks()
    name = next(iter(masks))
    with pytest.raises(MaskproError, match=f"mask of layer {name} is missing: the mask is for another model"):
        masked.groups({other: mask for other, mask in masks.items() if other != name})
    with pytest.raises(MaskproError, match="mask of layer extra is for another model, which has that layer"):
        masked.groups(masks | {"extra": masks[name]})
    with pytest.raises(MaskproError, match=f"mask of layer {name} has shape"):
        masked.groups(masks | {name: masks[name][:1]})
    with pytest.raises(MaskproError, match=f"mask of layer {name} is not 2:4 in layout channel: .* do not keep exactly 2"):
        masked.groups(masks | {name: torch.ones_like(masks[name])})


def test_the_weight_gradient_is_that_of_every_position_kept_or_not(unet):
    masked = masked_model(unet)
    masked.set_mask(magnitude_mask(masked))
    images, timesteps = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])
    gradient = masked.weight_gradient().zero_()
    masked.model(images, timesteps).sample.square().mean().backward()
    reference = copy.deepcopy(unet)
    reference.load_state_dict(masked.model.state_dict())
    reference.requires_grad_(True)
    reference(images, timesteps).sample.square().mean().backward()
    expected = torch.cat(
        [
            maskable_layers(reference)[layer.name].grad.permute(0, 2, 3, 1).reshape(-1)
            if len(layer.shape) == 4
            else maskable_layers(reference)[layer.name].grad.reshape(-1)
            for layer in masked.layers
        ]
    )
    assert torch.allclose(gradient.view(-1), expected, atol=1e-6)
    assert (gradient[~masked.mask] != 0).any()


def test_extraction_finds_the_masks_of_a_pruned_model(unet):
    masked = masked_model(unet)
    masked.set_mask(magnitude_mask(masked))
    found = extract_masks(masked.model, pattern=TWO_OF_FOUR, layout="channel")
    assert found.keys() == masked.layer_masks().keys()
    assert all(torch.equal(found[name], mask) for name, mask in masked.layer_masks().items())


def test_extraction_leaves_dense_layers_alone_and_refuses_what_is_not_n_of_m(unet):
    with pytest.raises(MaskproError, match="model has no zeros in its maskable layers"):
        extract_masks(unet, pattern=TWO_OF_FOUR, layout="channel")
    partly = masked_model(unet, targets=("mid_block",))
    partly.set_mask(magnitude_mask(partly)[: len(partly.learned_base)])
    found = extract_masks(partly.model, pattern=TWO_OF_FOUR, layout="channel")
    assert all(name.startswith("mid_block") for name in found)
    with torch.no_grad():
        maskable_layers(partly.model)["mid_block.resnets.0.conv1"][0, :4, 0, 0] = 0
    with pytest.raises(MaskproError, match=r"mask of layer mid_block.resnets.0.conv1 is not 2:4"):
        extract_masks(partly.model, pattern=TWO_OF_FOUR, layout="channel")
