import itertools
import math

import pytest
import torch

from maskpro import distribution
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
from maskpro.estimators import LinearSpace
from maskpro.pattern import NMPattern

PATTERNS = [(1, 4), (2, 4), (3, 4), (2, 8), (4, 8)]
SCALES = [1.0, 5.0, 12.0]


def random_logits(m, scale, generator, groups=50):
    return torch.randn(groups, m, generator=generator, dtype=torch.float64) * scale


LEADS = [0.1, 1.0, 10.0, 30.0, 41.0, 60.0, 79.0, 81.0, 100.0, 300.0, 1000.0]


def led_logits(m, generator, groups=12):
    """Float32 logits, some of which lead the others of their group by 0.1 to 1000; and a staircase of leads of 300."""
    rows = []
    for lead, leaders in itertools.product(LEADS, range(1, m)):
        row = torch.randn(groups, m, generator=generator)
        led = torch.rand(groups, m, generator=generator).argsort(dim=1) < leaders
        rows.append(row + lead * led)
    rows.append(torch.randn(groups, m, generator=generator) + 300.0 * torch.arange(m))
    return torch.cat(rows)


def enumerated(logits, n, values):
    """Float64 by autograd over all masks: inclusion probabilities, and the gradient of their sum times values."""
    leaf = logits.double().requires_grad_(True)
    included = candidate_log_probs(leaf, n).exp() @ NMPattern(n, logits.shape[1]).candidates().double()
    (gradient,) = torch.autograd.grad((included * values).sum(), leaf)
    return included.detach(), gradient


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


@pytest.mark.slow
def test_eight_of_sixteen_is_exact_over_its_12870_masks(generator):
    """Probabilities sum to 1, the score has mean zero, and inclusion probabilities sum to n."""
    logits = random_logits(16, 2.0, generator, groups=1)
    candidates = NMPattern(8, 16).candidates()
    everywhere = logits.expand(len(candidates), 16)
    probabilities = log_prob(everywhere, candidates).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    assert (probabilities @ score(everywhere, candidates)).abs().max() < 1e-12
    assert (probabilities @ candidates.double()).sum().item() == pytest.approx(8, abs=1e-11)


@pytest.mark.slow
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


@pytest.mark.parametrize(("n", "m"), [*PATTERNS, (1, 2), (7, 8), (8, 16), (14, 16)])
def test_entropy_of_equal_logits_is_the_log_of_the_number_of_masks(n, m, generator):
    found = entropy(torch.zeros(3, m), n, generator)
    torch.testing.assert_close(found, torch.full((3,), math.log(math.comb(m, n))), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("n", "m", "largest"), [(4, 8, 14), (8, 16, 7)])
def test_entropy_takes_few_groups_at_a_time_with_the_same_result(n, m, largest, monkeypatch):
    """All groups of a large network at once would need tens of gigabytes at 8:16."""
    logits = 2 * torch.randn(50, m, generator=torch.Generator().manual_seed(1))
    expected = entropy(logits, n, torch.Generator().manual_seed(2))
    taken = []
    for name in ("candidate_log_probs", "log_prob"):
        inner = getattr(distribution, name)
        monkeypatch.setattr(distribution, name, lambda rows, *more, f=inner: taken.append(len(rows)) or f(rows, *more))
    monkeypatch.setattr(distribution, "_LARGEST_BLOCK", 3_920)
    torch.testing.assert_close(entropy(logits, n, torch.Generator().manual_seed(2)), expected, rtol=1e-5, atol=0)
    assert (sum(taken), max(taken)) == (50, largest)


def test_no_enumeration_goes_through_many_sets_on_its_way_to_few_masks(generator, monkeypatch):
    """15:16 has 16 masks, but 12,870 sets of eight positions."""
    monkeypatch.setattr(distribution, "candidate_log_probs", None)
    assert entropy(torch.zeros(1, 12), 11, generator).item() == pytest.approx(math.log(12), rel=1e-5)
    logits = torch.randn(5, 16, generator=generator)
    space = LinearSpace(NMPattern(15, 16))
    draw = space.draw(logits, 0.0, generator)
    assert (draw.mask.sum(dim=1) == 15).all()
    assert space.gradient(logits, 0.0, draw, torch.ones(5, 16)).isfinite().all()


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


def test_a_lead_of_100_leaves_the_others_their_chances():
    """Once the first is drawn, the others are drawn as if it had never been: softmax(-50, -49, -51)."""
    logits = torch.tensor([[50.0, -50.0, -49.0, -51.0]])
    expected = torch.cat([torch.ones(1), logits[0, 1:].softmax(dim=0)])
    torch.testing.assert_close(inclusion_probabilities(logits, 2)[0], expected, rtol=1e-6, atol=0)
    assert [round(value, 3) for value in expected.tolist()] == [1, 0.245, 0.665, 0.090]


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4), (2, 8), (3, 6), (4, 8)])
def test_float32_is_right_for_leads_of_any_size(n, m, generator):
    """Against enumeration in float64, to float32's rounding."""
    logits = led_logits(m, generator, groups=12 if m < 8 else 3)
    values = torch.randn(logits.shape, generator=generator)
    included, gradient = enumerated(logits, n, values)
    torch.testing.assert_close(inclusion_probabilities(logits, n).double(), included, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(inclusion_gradient(logits, n, values).double(), gradient, rtol=5e-6, atol=2e-6)
    log_probs = candidate_log_probs(logits.double(), n)
    torch.testing.assert_close(candidate_log_probs(logits, n).double(), log_probs, rtol=2e-6, atol=2e-6)
    for _ in range(3):
        mask = sample(logits, n, generator)
        leaf = logits.double().requires_grad_(True)
        expected = log_prob(leaf, mask)
        (slopes,) = torch.autograd.grad(expected.sum(), leaf)
        torch.testing.assert_close(score(logits, mask).double(), slopes, rtol=5e-6, atol=5e-6)
        torch.testing.assert_close(log_prob(logits, mask).double(), expected.detach(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8)])
def test_scores_and_probabilities_of_unlikely_masks_are_right_too(n, m, generator):
    logits = led_logits(m, generator, groups=1)
    candidates = NMPattern(n, m).candidates()
    rows, masks = logits.repeat_interleave(len(candidates), dim=0), candidates.repeat(len(logits), 1)
    leaf = rows.double().requires_grad_(True)
    expected = candidate_log_probs(logits.double(), n).flatten()
    (slopes,) = torch.autograd.grad(log_prob(leaf, masks).sum(), leaf)
    torch.testing.assert_close(log_prob(rows, masks).double(), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(score(rows, masks).double(), slopes, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("lead", [50.0, 1000.0])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_estimates_are_unbiased_where_one_logit_leads(n, m, lead, generator):
    """Within five standard errors over 40,000 draws, in float32."""
    draws = 40_000
    logits = torch.randn(1, m, generator=generator)
    logits[0, 1] += lead
    values = torch.randn(1, m, generator=generator)
    included, gradient = enumerated(logits, n, values)
    rows = logits.expand(draws, m)
    noisy = perturb(rows, generator)
    for expected, found in (
        (included, estimate_inclusion_probabilities(rows, n, noisy)),
        (gradient, estimate_inclusion_gradient(rows, n, noisy, values.expand(draws, m))),
    ):
        found = found.double()
        assert ((found.mean(dim=0) - expected[0]).abs() < 5 * found.std(dim=0) / draws**0.5 + 1e-6).all()


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


def test_mode_and_sample_keep_exactly_n_of_groups_with_nan(generator):
    """NaN counts as minus infinity: any number goes before it, and of several the first is kept."""
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor(
        [[1.0, nan, 2.0, 0.0], [nan, -5.0, nan, -9.0], [nan, nan, nan, 0.0], [nan] * 4, [-inf, nan, 0, inf]]
    )
    expected = [[True, False, True, False], [False, True, False, True], [True, False, False, True]]
    expected += [[True, True, False, False], [False, False, True, True]]
    assert mode(logits, 2).tolist() == expected
    for n, m in PATTERNS:
        holes = torch.randn(500, m, generator=generator).masked_fill(torch.rand(500, m, generator=generator) < 0.5, nan)
        for mask in (mode(holes, n), sample(holes, n, generator)):
            assert (mask.sum(dim=1) == n).all()
            assert (~(mask & holes.isnan()).any(dim=1) | ((~holes.isnan()).sum(dim=1) < n)).all()
    assert holes.isnan().any()  # the caller's own logits are as they were


def test_a_sum_over_too_many_masks_is_refused():
    with pytest.raises(MaskproError, match="pattern is 8:16, which has 12,870 masks a group; allowed here: at most 70"):
        inclusion_probabilities(torch.zeros(1, 16), 8)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_nothing_depends_on_how_many_groups_are_worked_on_at_a_time(block, monkeypatch):
    """Not even the random numbers: a mask is a function of the generator's state alone."""

    def everything(block):
        monkeypatch.setattr("maskpro.columns._CACHED_GROUPS", block)
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


def test_noise_is_finite_where_the_uniform_number_is_zero():
    """A group with a logit of -inf would have a gradient of NaN where masks are enumerated, as at 1:4."""
    seed, shape = 12, (2**18, 4)
    assert (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) == 0).any()
    noisy = perturb(torch.zeros(shape), torch.Generator().manual_seed(seed))
    assert noisy.isfinite().all()
    assert inclusion_gradient(noisy, 1, torch.ones(shape)).isfinite().all()
