import pytest
import torch

from maskpro.errors import MaskproError
from maskpro.pattern import NMPattern, PackedMask, count_violations, group_order, group_width, parse_layout, weight_view


@pytest.mark.parametrize("text", ["5:4", "0:4", "4:4", "2:17", "2", "2:4:8", "a:b", "-1:4", ""])
def test_a_pattern_that_is_not_n_of_m_is_refused(text):
    with pytest.raises(MaskproError, match=r"pattern is .*allowed: n:m"):
        NMPattern.parse(text)


def test_pattern_counts_kept_weights():
    pattern = NMPattern.parse("1:4")
    assert pattern.sparsity == 0.75
    assert str(pattern) == "1:4"
    candidates = NMPattern.parse("2:4").candidates()
    assert len(candidates) == 6
    assert (candidates.sum(dim=1) == 2).all()
    assert len({tuple(row.tolist()) for row in candidates}) == 6


def test_unknown_layout_is_refused():
    with pytest.raises(MaskproError, match="layout is 'rows'; allowed: channel, flattened"):
        parse_layout("rows")


@pytest.mark.parametrize("layout", ["channel", "flattened"])
@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 3, 3), (5, 4, 1, 1)])
def test_weight_view_inverts_group_order(layout, shape):
    weight = torch.arange(torch.Size(shape).numel()).float().view(shape)
    flat = group_order(weight, layout)
    assert torch.equal(weight_view(flat, torch.Size(shape), layout), weight)
    view = weight_view(flat, torch.Size(shape), layout)
    view[0, 0] += 1000
    assert (flat >= 1000).any(), "the view must share memory with the buffer"


def test_channel_groups_run_along_input_channels():
    weight = torch.arange(2 * 8 * 3 * 3).view(2, 8, 3, 3)
    groups = group_order(weight, "channel").view(-1, 4)
    assert groups[0].tolist() == weight[0, :4, 0, 0].tolist()
    assert groups[1].tolist() == weight[0, 4:, 0, 0].tolist()
    assert group_width(weight.shape, "channel") == 8


def test_flattened_groups_run_in_stored_order():
    weight = torch.arange(2 * 8 * 3 * 3).view(2, 8, 3, 3)
    assert group_order(weight, "flattened").view(-1, 4)[1].tolist() == [4, 5, 6, 7]
    assert group_width(weight.shape, "flattened") == 72


def test_a_channel_view_is_channels_last_in_memory():
    view = weight_view(torch.zeros(4 * 8 * 3 * 3), torch.Size((4, 8, 3, 3)), "channel")
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_violations_are_counted_per_group():
    mask = torch.tensor([[True, True, False, False, True, True, True, False]])
    assert count_violations(mask, NMPattern(2, 4), "channel") == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (5, 7)])
def test_a_packed_mask_is_the_mask_again(shape, generator):
    mask = torch.rand(shape, generator=generator) < 0.5
    assert torch.equal(PackedMask(mask).unpack(), mask)
