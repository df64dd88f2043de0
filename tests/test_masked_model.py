import copy

import pytest
import torch
from shared_fixtures import is_strictly_two_of_four, seeded_unet
from torch import nn
from torch.nn.utils import parametrizations, prune

from maskpro.errors import MaskproError
from maskpro.initial_masks import extract_masks, input_hessians, magnitude_mask, random_mask
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


class Tied(nn.Module):
    """Two layers of one parameter, and a third of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.last(self.second(self.first(inputs).relu()))


def test_a_parameter_that_two_layers_share_is_one_layer_with_one_mask(generator):
    masked = MaskedModel(Tied(), pattern=TWO_OF_FOUR)
    assert [layer.name for layer in masked.layers] == ["first", "last"]
    masked.set_mask(random_mask(masked, generator))
    assert masked.model.first.weight is masked.model.second.weight
    assert is_strictly_two_of_four(masked.model.second.weight, "flattened")
    assert torch.equal(masked.model.second.weight != 0, masked.layer_masks()["first"])
    gradient = masked.weight_gradient().zero_()
    inputs = torch.randn(5, 8, generator=generator)
    masked.model(inputs).square().sum().backward()
    reference = copy.deepcopy(masked.model).requires_grad_(True)
    reference.zero_grad()
    reference(inputs).square().sum().backward()
    torch.testing.assert_close(gradient.flatten()[:64], reference.first.weight.grad.flatten())


def test_the_inputs_of_all_layers_that_share_a_parameter_count(generator):
    inputs = torch.randn(32, 8, generator=generator)

    class Objective:
        def batch(self, indices):
            return inputs[indices]

        def predict(self, model, batch):
            return model(batch)

    masked = MaskedModel(Tied(), pattern=TWO_OF_FOUR)
    hidden = masked.model.first(inputs).relu()
    expected = inputs.t() @ inputs + hidden.t() @ hidden
    torch.testing.assert_close(input_hessians(masked, Objective(), 32)["first"], expected)


@pytest.mark.parametrize("kind", ["protected", "embedding"])
def test_a_parameter_that_a_protected_layer_has_too_stays_dense(kind, generator):
    model = nn.ModuleDict({"inner": nn.Linear(8, 8), "free": nn.Linear(8, 8)})
    model["conv_out" if kind == "protected" else "words"] = nn.Linear(8, 8) if kind == "protected" else nn.Embedding(8, 8)
    model["conv_out" if kind == "protected" else "words"].weight = model["inner"].weight
    dense = model["inner"].weight.clone()
    masked = MaskedModel(model, pattern=TWO_OF_FOUR)
    masked.set_mask(random_mask(masked, generator))
    assert [layer.name for layer in masked.layers] == ["free"]
    assert torch.equal(model["inner"].weight, dense)


def weight_norm_of_old(layer):
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(layer)


class Adapted(nn.Linear):
    """A Linear layer whose weight is that of a mask and a product that no mask reaches, as LoRA's."""

    def __init__(self, width_in, width_out):
        super().__init__(width_in, width_out)
        self.lora_A, self.lora_B = nn.Parameter(torch.ones(2, width_in)), nn.Parameter(torch.ones(width_out, 2))


class Wrapped(nn.Module):
    """A layer within an adapter, as the library PEFT wraps it."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (parametrizations.weight_norm, "1"),
        (parametrizations.spectral_norm, "1"),
        (parametrizations.orthogonal, "1"),
        (weight_norm_of_old, "1"),
        (torch.nn.utils.spectral_norm, "1"),
        (lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5), "1"),
        (lambda layer: Adapted(8, 8), "1"),
        (Wrapped, "1.base_layer"),
    ],
)
def test_a_layer_whose_weight_a_mask_would_not_make_sparse_is_refused_by_name(wrap, name, generator):
    model = nn.Sequential(nn.Linear(8, 8), wrap(nn.Linear(8, 8)))
    with pytest.raises(MaskproError, match=rf"^layer {name} .*, so that a mask would not make it sparse; allowed: "):
        MaskedModel(model, pattern=TWO_OF_FOUR)
    others = MaskedModel(model, pattern=TWO_OF_FOUR, covered=["0"])  # the other layer can be had
    others.set_mask(random_mask(others, generator))
    assert is_strictly_two_of_four(model[0].weight, "flattened")


@pytest.mark.parametrize("kind", ["view", "buffer", "grouped"])
def test_views_buffers_and_grouped_convolutions_are_masked_in_what_they_compute(kind, generator):
    """The layer's outputs are those of the dense weight times the mask."""
    layer = nn.Conv2d(16, 8, 3, groups=2, bias=False) if kind == "grouped" else nn.Linear(8, 8, bias=False)
    if kind == "view":
        layer.weight = nn.Parameter(torch.randn(24, 8, generator=generator)[8:16])
    elif kind == "buffer":
        values = layer.weight.detach().clone()
        del layer.weight
        layer.register_buffer("weight", values)
    dense = layer.weight.detach().clone()
    masked = MaskedModel(nn.Sequential(layer), pattern=TWO_OF_FOUR)
    masked.set_mask(random_mask(masked, generator))
    inputs = torch.randn(3, *((16, 5, 5) if kind == "grouped" else (8,)), generator=generator)
    sparse = dense * masked.layer_masks()["0"]
    assert is_strictly_two_of_four(sparse, "channel")
    plain = nn.functional.conv2d(inputs, sparse, groups=2) if kind == "grouped" else inputs @ sparse.t()
    torch.testing.assert_close(masked.model(inputs), plain)
    gradient = masked.weight_gradient().zero_()
    masked.model(inputs).square().sum().backward()
    assert (gradient[~masked.mask] != 0).any()


def test_transposed_and_one_dimensional_convolutions_are_left_alone(generator):
    model = nn.Sequential(nn.Linear(8, 8), nn.ConvTranspose2d(8, 8, 3), nn.Conv1d(8, 8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masked = MaskedModel(model, pattern=TWO_OF_FOUR)
    masked.set_mask(random_mask(masked, generator))
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["0.weight"]


def test_a_masked_network_is_frozen_in_evaluation_mode(generator):
    """In the caller's own object, as the docstring says."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    masked = MaskedModel(model, pattern=TWO_OF_FOUR)
    assert masked.model is model
    assert not any(module.training for module in model.modules())
    before = {name: value.clone() for name, value in model.named_buffers()}
    inputs = torch.randn(16, 8, generator=generator)
    assert torch.equal(model(inputs), model(inputs))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
