"""Roundings keep the expectation, leave what is rounded already, and come back as they went."""

import pytest
import torch

from maskpro.rounding import (
    code_squares,
    fixed_point,
    from_coded_squares,
    from_fixed_point,
    pack_upper,
    round_to_bfloat16,
    unpack_upper,
)

ROUNDINGS = {
    "fixed point": lambda values, generator: from_fixed_point(fixed_point(values, generator), values),
    "bfloat16": lambda values, generator: round_to_bfloat16(values, generator).float(),
    "squares": lambda values, generator: from_coded_squares(code_squares(values, generator)),
}


@pytest.mark.parametrize("size", [1.0, 3e-30, 1e12])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_what_is_rounded_stays_as_it_is(generator, name, size):
    values = size * torch.randn(250, 4, generator=generator).abs()
    once = ROUNDINGS[name](values, generator)
    assert torch.equal(ROUNDINGS[name](once, generator), once)
    assert not torch.equal(once, values)


@pytest.mark.parametrize("name", ROUNDINGS)
def test_the_expectation_is_kept(generator, name):
    values = torch.tensor([1.0, 0.7123456, 0.1234567, 0.0012345, 0.9]).repeat(200_000, 1)
    exact, rounded = values.double(), ROUNDINGS[name](values, generator).double()
    error = rounded.std(dim=0) / len(values) ** 0.5
    assert ((rounded.mean(dim=0) - exact[0]).abs() <= 5 * error + 1e-9).all()
    assert (rounded.std(dim=0)[1:4] > 0).all()


def test_a_logit_is_told_to_a_16384th_of_the_largest_one(generator):
    values = 8 * torch.randn(5_000, 4, generator=generator)
    largest = values.abs().max()
    stored = fixed_point(values, generator)
    assert (from_fixed_point(stored, values) - values).abs().max() <= largest / 2**13
    coarse = from_fixed_point(stored._replace(lower=None), values)
    assert (coarse - values).abs().max() <= largest / 64 + largest / 2**13
    assert torch.equal(from_fixed_point(fixed_point(torch.zeros(4), generator), torch.zeros(4)), torch.zeros(4))


@pytest.mark.parametrize("count", [1, 7, 8, 4_001])
def test_seven_bits_come_back_as_they_went(generator, count):
    upper = torch.randint(128, (count,), dtype=torch.uint8, generator=generator)
    packed = pack_upper(upper)
    assert packed.numel() == 7 * -(-count // 8)
    assert torch.equal(unpack_upper(packed, count), upper)


def test_squares_keep_their_size_over_63_octaves_and_never_become_zero(generator):
    """Adam divides by the root of it: a zero beside a mean that is none would be a step without bound."""
    values = 2.0 ** -torch.arange(0, 120, dtype=torch.float32)
    found = from_coded_squares(code_squares(values, generator))
    assert torch.equal(found[:63], values[:63])
    assert (found[64:] == found[-1]).all()
    assert 2.0**-64 <= found[-1] <= 2.0**-63
    assert from_coded_squares(code_squares(torch.tensor([0.0, 1.0]), generator)).tolist() == [0.0, 1.0]
    assert from_coded_squares(code_squares(torch.zeros(3), generator)).tolist() == [0.0] * 3
