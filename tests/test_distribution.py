import itertools

import pytest
import torch

from maskpro.distribution import (
    candidate_log_probs,
    entropy,
    estimate_inclusion_gradient,
    estimate_inclusion_probabilities,
    inclusion_gradient,
    inclusion_probabilities,
    log_prob,
    mode,
    perturb,
    sample,
    score,
)
from maskpro.errors import MaskproError
from maskpro.pattern import NMPattern

PATTERNS = [(1, 4), (2, 4), (3, 4), (2, 8), (4, 8)]
SCALES = [1.0, 5.0, 12.0]


def random_logits(m, scale, generator, groups=50):
    return torch.randn(groups, m, generator=generator, dtype=torch.float64) * scale


def ordered_probability(p, kept):
    """p(kept) by summing over all orders of drawing without replacement: the definition itself."""
    total = 0.0
    for order in itertools.permutations(kept):
        left, product = 1.0, 1.0
        for i in order:
            product *= p[i] / left
            left -= p[i]
        total += product
    return total


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_probabilities_of_all_masks_sum_to_one_and_match_the_definition(n, m, generator):
    logits = random_logits(m, 1.0, generator, groups=3)
    log_probs = candidate_log_probs(logits, n)
    assert torch.allclose(log_probs.exp().sum(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-12)
    candidates = NMPattern(n, m).candidates()
    one_by_one = log_prob(logits[:1].expand(len(candidates), m), candidates)
    assert torch.allclose(one_by_one, log_probs[0], rtol=1e-12)
    p = logits.softmax(dim=1)
    for column, mask in enumerate(NMPattern(n, m).candidates()):
        kept = mask.nonzero().flatten().tolist()
        expected = ordered_probability(p[0].tolist(), kept)
        assert log_probs[0, column].exp().item() == pytest.approx(expected, rel=1e-10)


def test_two_of_four_equals_the_papers_formula(generator):
    logits = random_logits(4, 2.0, generator)
    mask = sample(logits, 2, generator)
    p = logits.softmax(dim=1)
    a, b = (p[mask].view(-1, 2)[:, i] for i in (0, 1))
    expected = a * b * (1 / (1 - a) + 1 / (1 - b))
    assert torch.allclose(log_prob(logits, mask).exp(), expected, rtol=1e-10)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_score_equals_autograd_of_log_prob(n, m, scale, generator):
    logits = random_logits(m, scale, generator).requires_grad_(True)
    mask = sample(logits.detach(), n, generator)
    (expected,) = torch.autograd.grad(log_prob(logits, mask).sum(), logits)
    assert torch.allclose(score(logits.detach(), mask), expected, atol=1e-10)
    single = score(logits.detach().float(), mask).double()
    assert (single - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_score_has_mean_zero(n, m, generator):
    logits = random_logits(m, 3.0, generator, groups=5)
    probabilities = candidate_log_probs(logits, n).exp()
    mean = torch.zeros_like(logits)
    for column, mask in enumerate(NMPattern(n, m).candidates()):
        mean += probabilities[:, column, None] * score(logits, mask.expand(5, m))
    assert mean.abs().max() < 1e-10


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_inclusion_probabilities_equal_enumeration_and_sum_to_n(n, m, scale, generator):
    logits = random_logits(m, scale, generator)
    expected = candidate_log_probs(logits, n).exp() @ NMPattern(n, m).candidates().double()
    found = inclusion_probabilities(logits, n)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(found.sum(dim=1), torch.full((50,), float(n), dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_inclusion_gradient_equals_autograd(n, m, scale, generator):
    logits = random_logits(m, scale, generator).requires_grad_(True)
    values = torch.randn(50, m, generator=generator, dtype=torch.float64)
    enumerated = candidate_log_probs(logits, n).exp() @ NMPattern(n, m).candidates().double()
    (expected,) = torch.autograd.grad((enumerated * values).sum(), logits)
    assert torch.allclose(inclusion_gradient(logits.detach(), n, values), expected, atol=1e-10)


def test_eight_of_sixteen_is_exact_over_its_12870_masks(generator):
    """Probabilities sum to 1, the score has mean zero, and inclusion probabilities sum to n."""
    logits = random_logits(16, 2.0, generator, groups=1)
    candidates = NMPattern(8, 16).candidates()
    everywhere = logits.expand(len(candidates), 16)
    probabilities = log_prob(everywhere, candidates).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    assert (probabilities @ score(everywhere, candidates)).abs().max() < 1e-12
    assert (probabilities @ candidates.double()).sum().item() == pytest.approx(8, abs=1e-11)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8), (8, 16)])
def test_estimated_inclusion_probabilities_and_their_gradient_are_unbiased(n, m, generator):
    """Within five standard errors of the exact values, over 40,000 draws."""
    draws = 40_000
    logits = random_logits(m, 2.0, generator, groups=1).requires_grad_(True)
    values = torch.randn(1, m, generator=generator, dtype=torch.float64)
    candidates = NMPattern(n, m).candidates()
    probabilities = log_prob(logits.expand(len(candidates), m), candidates).exp()
    exact = probabilities @ candidates.double()
    (gradient,) = torch.autograd.grad((exact * values).sum(), logits)
    rows = logits.detach().expand(draws, m)
    noisy = perturb(rows, generator)
    for expected, found in (
        (exact.detach(), estimate_inclusion_probabilities(rows, n, noisy)),
        (gradient[0], estimate_inclusion_gradient(rows, n, noisy, values.expand(draws, m))),
    ):
        assert ((found.mean(dim=0) - expected).abs() < 5 * found.std(dim=0) / draws**0.5 + 1e-9).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (8, 16)])
def test_entropy_is_that_of_the_masks_probabilities(n, m, generator):
    logits = random_logits(m, 1.0, generator, groups=1)
    candidates = NMPattern(n, m).candidates()
    log_probs = log_prob(logits.expand(len(candidates), m), candidates)
    expected = -(log_probs.exp() * log_probs).sum().item()
    found = entropy(logits.expand(4000, m), n, generator)
    assert found.mean().item() == pytest.approx(expected, abs=5 * found.std().item() / 4000**0.5 + 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [50.0, 200.0])
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8), (8, 16)])
def test_saturated_logits_give_finite_values(n, m, value, dtype, generator):
    logits = ((torch.rand(200, m, generator=generator) < 0.5).float() * 2 - 1).mul(value).to(dtype)
    noisy = perturb(logits, generator)
    likely = mode(noisy, n)
    values = torch.randn(200, m, generator=generator)
    results = [estimate_inclusion_probabilities(logits, n, noisy), estimate_inclusion_gradient(logits, n, noisy, values)]
    for mask in (likely, likely.roll(1, dims=1), likely.roll(m // 2, dims=1)):
        results += [log_prob(logits, mask), score(logits, mask)]
    if m < 16:
        results += [inclusion_probabilities(logits, n), inclusion_gradient(logits, n, values)]
    for result in results:
        assert result.dtype == torch.float32
        assert result.isfinite().all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 8)])
def test_sampled_frequencies_match_the_inclusion_probabilities(n, m, generator):
    row = random_logits(m, 1.5, generator, groups=1).float()
    draws = 40_000
    masks = sample(row.expand(draws, m), n, generator)
    assert (masks.sum(dim=1) == n).all()
    # Four standard errors of a frequency.
    assert (masks.float().mean(dim=0) - inclusion_probabilities(row, n)[0]).abs().max() < 4 * (0.25 / draws) ** 0.5


def test_samples_are_a_function_of_the_generator():
    logits = torch.zeros(100, 4)
    first, again, other = (sample(logits, 2, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mode_keeps_exactly_n_even_under_ties():
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0], [3.0, 0.0, 1.0, 2.0]])
    expected = [[True, True, False, False], [False, True, True, False], [True, False, False, True]]
    assert mode(logits, 2).tolist() == expected


def test_a_sum_over_too_many_masks_is_refused():
    with pytest.raises(MaskproError, match="pattern is 8:16, which has 12,870 masks a group; allowed here: at most 70"):
        inclusion_probabilities(torch.zeros(1, 16), 8)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_nothing_depends_on_how_many_groups_are_worked_on_at_a_time(block, monkeypatch):
    """Not even the random numbers: a mask is a function of the generator's state alone."""

    def everything(block):
        monkeypatch.setattr("maskpro.distribution._CACHED_GROUPS", block)
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
        mask = sample(logits, 2, generator)
        return (
            mask,
            generator.get_state(),
            mode(logits.round(), 2),
            score(logits, mask),
            inclusion_probabilities(logits, 2),
            inclusion_gradient(logits, 2, logits.flip(0)),
        )

    for found, expected in zip(everything(block), everything(50), strict=True):
        assert torch.equal(found, expected)
