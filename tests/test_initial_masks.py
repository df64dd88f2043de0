import copy

import pytest
import torch
from shared_fixtures import CPU, is_strictly_two_of_four, seeded_unet
from torch import nn

from maskpro.errors import MaskproError
from maskpro.initial_masks import (
    INITIAL_MASK_METHODS,
    _sparsegpt,
    extract_masks,
    input_hessians,
    magnitude_mask,
    one_shot_mask,
    wanda_mask,
)
from maskpro.masked_model import MaskedModel, maskable_layers
from maskpro.pattern import LAYOUTS, NMPattern, group_order

TWO_OF_FOUR = NMPattern(2, 4)


class Layers(nn.Module):
    """Convolutions of several kinds and a Linear layer, and an objective that feeds them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.strided = nn.Conv2d(4, 8, 3, stride=2, padding=(1, 0), dilation=(1, 2), bias=False)
        self.pointwise = nn.Conv2d(8, 8, 1, bias=False)
        self.linear = nn.Linear(8, 4, bias=False)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)

    def forward(self, images):
        x = self.pointwise(self.strided(self.first(images).relu()).relu())
        return self.linear(x.flatten(2).transpose(1, 2))


class RandomImages:
    def batch(self, indices):
        return torch.stack([torch.randn(8, 9, 11, generator=torch.Generator().manual_seed(int(i))) for i in indices])

    def predict(self, model, batch):
        return model(batch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hessians_give_the_energy_of_a_layers_outputs(layout):
    """The sum of squared outputs of a layer without bias is trace(W H W^T): columns and weights are in the same order."""
    model, energies = Layers(), {}
    for name, module in model.named_children():
        energies[name] = 0.0

        def add(module, inputs, output, name=name):
            energies[name] += output.double().square().sum().item()

        module.register_forward_hook(add)
    masked = MaskedModel(model, pattern=TWO_OF_FOUR, layout=layout)
    hessians = input_hessians(masked, RandomImages(), 40)
    assert hessians.keys() == energies.keys()
    for layer in masked.layers:
        weight = masked.base[layer.start : layer.stop].view(layer.shape[0], -1).double()
        energy = (weight @ hessians[layer.name].double() @ weight.t()).trace().item()
        assert energy == pytest.approx(energies[layer.name], rel=1e-4)


@pytest.mark.parametrize("pattern", [NMPattern(1, 4), TWO_OF_FOUR, NMPattern(4, 8)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", INITIAL_MASK_METHODS)
def test_every_method_gives_strict_masks_and_leaves_the_model_as_it_was(tiny, method, layout, pattern, generator):
    masked = MaskedModel(copy.deepcopy(tiny.model), pattern=pattern, layout=layout)
    before = masked.base.clone()
    objective = tiny.training_objective(seed=0, device=CPU)
    mask = one_shot_mask(masked, method, objective=objective, generator=generator)
    assert (mask.sum(dim=1) == pattern.n).all()
    assert torch.equal(masked.base, before)
    assert masked.mask.all()
    if pattern == TWO_OF_FOUR:
        masked.set_mask(mask)
        assert all(is_strictly_two_of_four(weight, layout) for weight in maskable_layers(masked.model).values())


def test_wanda_is_magnitude_where_all_inputs_are_equally_large_and_follows_them_where_not():
    masked = MaskedModel(Layers(), pattern=TWO_OF_FOUR)
    equal = {layer.name: torch.eye(layer.shape[1:].numel()) for layer in masked.layers}
    assert torch.equal(wanda_mask(masked, equal), magnitude_mask(masked))
    # Inputs 0 and 1 of each four carry everything.
    skewed = {name: torch.diag(torch.tensor([1e8, 1e8, 1, 1]).repeat(len(h) // 4)) for name, h in equal.items()}
    assert (wanda_mask(masked, skewed) == torch.tensor([True, True, False, False])).all()


@pytest.mark.parametrize("pattern", [NMPattern(1, 4), TWO_OF_FOUR, NMPattern(4, 8)])
def test_sparsegpt_equals_the_recursion_on_the_whole_inverse(pattern, generator):
    """Optimal brain surgeon with the inverse Hessian eliminated column by column, written out in float64."""
    columns = torch.randn(200, 16, generator=generator, dtype=torch.float64) @ torch.randn(
        16, 16, generator=generator, dtype=torch.float64
    )
    hessian = columns.t() @ columns
    weight = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    found = _sparsegpt(weight, hessian, pattern)

    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    for row in range(6):
        w, kept = weight[row].clone(), torch.ones(16, dtype=torch.bool)
        for start in range(0, 16, pattern.m):
            saliency = []
            for j in range(start, start + pattern.m):
                rest = damped[j:, j:].inverse()  # the columns to the left are settled
                saliency.append(w[j] ** 2 / rest[0, 0])
            worst = torch.stack(saliency).argsort()[: pattern.m - pattern.n] + start
            kept[worst] = False
            for j in range(start, start + pattern.m):
                if not kept[j]:
                    rest = damped[j:, j:].inverse()
                    w[j:] -= w[j] / rest[0, 0] * rest[0]
        assert torch.equal(found[row], kept)


def test_sparsegpt_drops_inputs_that_are_never_there(generator):
    hessian = torch.diag(torch.tensor([1.0, 0, 1, 0]).repeat(4))
    weight = torch.randn(6, 16, generator=generator)
    assert (_sparsegpt(weight, hessian, TWO_OF_FOUR).view(-1, 4) == torch.tensor([True, False, True, False])).all()


def test_a_grouped_convolution_is_refused_by_name():
    model = Layers()
    model.strided = nn.Conv2d(4, 8, 3, groups=1, padding="same")
    masked = MaskedModel(model, pattern=TWO_OF_FOUR)
    with pytest.raises(MaskproError, match="layer strided is a grouped convolution or pads by a word; allowed"):
        input_hessians(masked, RandomImages(), 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_nearest_mask_differs_in_the_fewest_positions_and_keeps_the_larger_weights(layout, generator):
    dense, pruned = seeded_unet(), seeded_unet()
    with torch.no_grad():
        for weight in maskable_layers(pruned).values():
            weight[torch.rand(weight.shape, generator=generator) < 0.5] = 0
    with pytest.raises(MaskproError, match=r"mask of layer \S+ is not 2:4 in layout .* \(and \d+ layers more\)"):
        extract_masks(pruned, pattern=TWO_OF_FOUR, layout=layout)
    found = extract_masks(pruned, pattern=TWO_OF_FOUR, layout=layout, nearest_to=dense)
    for name, weight in maskable_layers(pruned).items():
        zeros, kept = (group_order(mask, layout).view(-1, 4) for mask in (weight != 0, found[name]))
        # At least |k - 2| positions of a group that keeps k must change, and no more do.
        assert ((zeros != kept).sum(dim=1) == (zeros.sum(dim=1) - 2).abs()).all()
        assert (kept.sum(dim=1) == 2).all()
        sizes = group_order(maskable_layers(dense)[name].abs(), layout).view(-1, 4)
        crowded = zeros.sum(dim=1) > 2
        removed = zeros & ~kept
        largest_removed, smallest_kept = (sizes * removed).amax(dim=1), sizes.masked_fill(~kept, torch.inf).amin(dim=1)
        assert (largest_removed <= smallest_kept)[crowded].all()
