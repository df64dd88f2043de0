import math

import pytest
import torch

from maskpro.distribution import (
    candidate_log_probs,
    log_prob,
    mode,
    perturb,
    sample,
)
from maskpro.errors import MaskproError
from maskpro.estimators import (
    CandidateSpace,
    LinearSpace,
    RelaxedLinearSpace,
    Sharpening,
    Tracker,
    leave_one_out,
    magnitude_prior,
    policy_gradient,
)
from maskpro.pattern import NMPattern
from maskpro.relaxation import relaxed_inclusion, relaxed_inclusion_gradient

TWO_OF_FOUR = NMPattern(2, 4)


def expected_loss(logits, losses):
    """E_mask[loss] of one 2:4 group by enumeration, with a loss per candidate mask."""
    return (candidate_log_probs(logits, 2).exp() * losses).sum()


def test_the_policy_gradient_is_unbiased(generator):
    """Averaged over all masks with their probabilities, loss times score is the gradient of the expected loss."""
    logits = torch.randn(1, 4, generator=generator, dtype=torch.float64).requires_grad_(True)
    losses = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(expected_loss(logits, losses), logits)
    probabilities = candidate_log_probs(logits.detach(), 2).exp()[0]
    constant = 0.7  # any baseline leaves the mean as it is
    mean = sum(
        probabilities[i] * policy_gradient(logits.detach(), mask[None], losses[0, i] - constant)
        for i, mask in enumerate(NMPattern(2, 4).candidates())
    )
    assert torch.allclose(mean, expected, atol=1e-12)


def test_straight_through_is_exact_for_a_linear_loss(generator):
    """With loss = sum_i c_i w_i m_i the expected loss is sum_i c_i w_i pi_i, which straight-through differentiates."""
    logits = torch.randn(1, 4, generator=generator, dtype=torch.float64).requires_grad_(True)
    weights, slopes = torch.randn(2, 1, 4, generator=generator, dtype=torch.float64)
    losses = (NMPattern(2, 4).candidates().double() * (weights * slopes)).sum(dim=1)
    (expected,) = torch.autograd.grad(expected_loss(logits, losses), logits)
    draw = LinearSpace(TWO_OF_FOUR).draw(logits.detach(), 0.0, generator)
    found = LinearSpace(TWO_OF_FOUR).gradient(logits.detach(), 0.0, draw, weights * slopes)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.slow
def test_straight_through_is_unbiased_for_a_linear_loss_beyond_70_masks(generator):
    """8:16 takes an estimate of the inclusion probabilities; over 20,000 draws it is within five standard errors."""
    pattern, draws = NMPattern(8, 16), 20_000
    logits = torch.randn(1, 16, generator=generator, dtype=torch.float64).requires_grad_(True)
    values = torch.randn(1, 16, generator=generator, dtype=torch.float64)
    candidates = pattern.candidates()
    losses = (candidates.double() * values).sum(dim=1)
    probabilities = log_prob(logits.expand(len(candidates), 16), candidates).exp()
    (expected,) = torch.autograd.grad((probabilities * losses).sum(), logits)
    rows = logits.detach().expand(draws, 16)
    space = LinearSpace(pattern)
    found = space.gradient(rows, 0.0, space.draw(rows, 0.0, generator), values.expand(draws, 16))
    assert ((found.mean(dim=0) - expected[0]).abs() < 5 * found.std(dim=0) / draws**0.5).all()


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pattern", [NMPattern(1, 4), TWO_OF_FOUR, NMPattern(4, 8)], ids=str)
def test_gumbel_softmax_differentiates_its_own_mixture(pattern, progress, generator):
    """The gradient equals autograd through the relaxed mask, with the noise held fixed."""
    space = CandidateSpace(pattern)
    logits = torch.randn(5, pattern.num_candidates, generator=generator, dtype=torch.float64).requires_grad_(True)
    values = torch.randn(5, pattern.m, generator=generator, dtype=torch.float64)
    draw = space.draw(logits.detach(), progress, torch.Generator().manual_seed(1))
    temperature, scale = 4.0 * (0.05 / 4.0) ** progress, 1.0 + 4.0 * progress
    noise = perturb(torch.zeros_like(logits), torch.Generator().manual_seed(1))
    mixture = ((scale * logits + noise) / temperature).softmax(dim=1) @ pattern.candidates().double()
    (expected,) = torch.autograd.grad((mixture * values).sum(), logits)
    assert torch.allclose(draw.mask, mixture, rtol=1e-10)
    assert torch.allclose(space.gradient(logits.detach(), progress, draw, values), expected, atol=1e-10)
    assert torch.allclose(draw.mask.sum(dim=1), torch.full((5,), float(pattern.n), dtype=torch.float64))


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pattern", [NMPattern(1, 4), TWO_OF_FOUR, NMPattern(3, 4), NMPattern(4, 8)], ids=str)
def test_relaxed_subset_differentiates_its_own_mask(pattern, progress, generator):
    """The gradient equals autograd through the relaxed mask, whose probabilities come of the list of all masks.

    From three kept positions on a mask's chance goes with the exponential of the sum of its logits.
    """
    space = RelaxedLinearSpace(pattern)
    logits = torch.randn(5, pattern.m, generator=generator, dtype=torch.float64).requires_grad_(True)
    values = torch.randn(5, pattern.m, generator=generator, dtype=torch.float64)
    draw = space.draw(logits.detach(), progress, torch.Generator().manual_seed(1))
    temperature, scale = 4.0 * (0.05 / 4.0) ** progress, 1.0 + 4.0 * progress
    noise = perturb(torch.zeros_like(logits), torch.Generator().manual_seed(1))
    sharpened, candidates = (scale * logits + noise) / temperature, pattern.candidates().double()
    drawn_in_turn = candidate_log_probs(sharpened, pattern.n)
    log_chances = drawn_in_turn if pattern.n <= 2 else (sharpened @ candidates.t()).log_softmax(dim=1)
    relaxed = log_chances.exp() @ candidates
    (expected,) = torch.autograd.grad((relaxed * values).sum(), logits)
    assert torch.allclose(draw.mask, relaxed, rtol=1e-9)
    assert torch.allclose(space.gradient(logits.detach(), progress, draw, values), expected, atol=1e-8)
    assert torch.allclose(draw.mask.sum(dim=1), torch.full((5,), float(pattern.n), dtype=torch.float64))


def test_relaxed_subset_ends_at_masks_drawn_from_the_logits(generator):
    """Cold, the relaxed mask is the mask that the same noise draws from the scaled logits, but for near ties."""
    space = RelaxedLinearSpace(TWO_OF_FOUR)
    logits = torch.randn(5_000, 4, generator=generator)
    relaxed = space.draw(logits, 1.0, torch.Generator().manual_seed(1)).mask
    drawn = mode(perturb(5.0 * logits, torch.Generator().manual_seed(1)), 2)
    assert ((relaxed > 0.5) == drawn).float().mean() > 0.999
    assert ((relaxed - drawn.float()).abs() < 0.01).float().mean() > 0.9
    hot = space.draw(torch.zeros(5_000, 4), 0.0, generator).mask
    assert hot.std() < 0.2 < relaxed.std()


@pytest.mark.parametrize("space", [LinearSpace, RelaxedLinearSpace, CandidateSpace])
@pytest.mark.parametrize("pattern", [NMPattern(1, 4), NMPattern(1, 2), TWO_OF_FOUR, NMPattern(4, 8)], ids=str)
def test_a_parametrisation_starts_at_the_initial_mask(space, pattern, generator):
    """Whatever the mask, and with a prior that would have chosen another one."""
    initial = sample(torch.zeros(200, pattern.m), pattern.n, generator)
    assert torch.equal(space(pattern).mode(space(pattern).start(initial, 3.0)), initial)
    prior = magnitude_prior(torch.randn(200, pattern.m, generator=generator), strength=10.0, bound=0.49 * 3.0)
    assert not torch.equal(mode(prior, pattern.n), initial)
    started = space(pattern).start(initial, 3.0, prior)
    assert torch.equal(space(pattern).mode(started), initial)
    assert not torch.equal(started, space(pattern).start(initial, 3.0))


def test_the_magnitude_prior_is_the_log_of_the_share_of_the_groups_mean():
    base = torch.tensor([[1.0, -2.0, 4.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    prior = magnitude_prior(base, strength=2.0, bound=1.0)
    assert torch.allclose(prior[0], torch.tensor([-1.0, 0.0, 1.0, -1.0]))
    assert (prior[1] == -1).all()
    assert magnitude_prior(base, 2.0, 10.0)[0, 2].item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("annealing", ["geometric", "linear"])
def test_the_relaxations_share_their_annealing(annealing):
    """Read off the perturbed logits, which are linear in the logits."""
    space = RelaxedLinearSpace(TWO_OF_FOUR, Sharpening(annealing, 0.5))
    logits = torch.tensor([[0.3, 0.0, 0.1, -0.2]], dtype=torch.float64)
    middle = math.sqrt(4.0 * 0.5) if annealing == "geometric" else (4.0 + 0.5) / 2
    for progress, temperature in ((0.0, 4.0), (0.5, middle), (1.0, 0.5)):
        noise = perturb(torch.zeros_like(logits), torch.Generator().manual_seed(1))
        sharpened = space.draw(logits, progress, torch.Generator().manual_seed(1)).context
        assert torch.allclose(sharpened, ((1 + 4 * progress) * logits + noise) / temperature, rtol=1e-9)


@pytest.mark.parametrize(("annealing", "halfway"), [("geometric", math.sqrt(4.0 * 0.05)), ("linear", (4.0 + 0.05) / 2)])
def test_the_temperature_falls_from_4_to_a_twentieth(annealing, halfway):
    """Read off a mixture: at the same noise its shares are exp((scale * logits + noise) / temperature), normalised."""
    space = CandidateSpace(TWO_OF_FOUR, Sharpening(annealing))
    logits = torch.tensor([[0.3, 0.0, 0.1, 0.0, 0.0, 0.0]], dtype=torch.float64)
    for progress, temperature in ((0.0, 4.0), (0.5, halfway), (1.0, 0.05)):
        noise = perturb(torch.zeros_like(logits), torch.Generator().manual_seed(1))
        shares = space.draw(logits, progress, torch.Generator().manual_seed(1)).context
        expected = (((1 + 4 * progress) * logits + noise) / temperature).softmax(dim=1)
        assert torch.allclose(shares, expected, rtol=1e-9)


def test_gumbel_softmax_refuses_more_than_70_masks_a_group():
    with pytest.raises(MaskproError, match="pattern is 8:16, which has 12,870 masks a group; allowed here: at most 70"):
        CandidateSpace(NMPattern(8, 16))


@pytest.mark.parametrize("pattern", [NMPattern(3, 4), NMPattern(4, 8), NMPattern(8, 16), NMPattern(7, 8)], ids=str)
@pytest.mark.parametrize("size", [1.0, 30.0, 1_000.0])
def test_relaxed_masks_of_any_pattern_sum_to_n_however_far_logits_lead(pattern, size, generator):
    logits = size * torch.randn(200, pattern.m, generator=generator)
    relaxed = relaxed_inclusion(logits, pattern.n)
    assert torch.allclose(relaxed.sum(dim=1), torch.full((200,), float(pattern.n)), rtol=1e-3)
    assert relaxed.min() >= 0
    assert relaxed.max() <= 1 + 1e-3
    assert torch.equal(relaxed.round().bool(), mode(logits, pattern.n)) or size < 1_000
    gradient = relaxed_inclusion_gradient(logits, pattern.n, torch.randn(200, pattern.m, generator=generator))
    assert gradient.isfinite().all()


def test_leave_one_out_compares_each_loss_with_the_mean_of_the_others():
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert torch.allclose(leave_one_out(losses), torch.tensor([1 - 4.0, 2 - 3.5, 6 - 1.5]))


def test_the_tracker_is_the_specs_moving_average():
    tracker = Tracker.start(torch.device("cpu"))
    delta = 0.0
    for residual in (0.5, -0.2, 0.1):
        tracker = tracker.update(torch.tensor(residual), torch.tensor(1.0))
        delta = 0.99 * delta + 0.01 * residual
        assert tracker.mean.item() == pytest.approx(delta, rel=1e-6)
        assert tracker.raw_advantage(torch.tensor(residual)).item() == pytest.approx(residual - delta, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_the_normalised_advantage_has_the_same_scale_for_every_loss(scale, generator):
    residuals = (torch.randn(2000, generator=generator) + 3.0) * scale
    tracker, advantages = Tracker.start(torch.device("cpu")), []
    for residual in residuals:
        tracker = tracker.update(residual, residual)
        advantages.append(tracker.normalised_advantage(residual))
    assert advantages[0] == 0
    settled = torch.stack(advantages[500:])
    assert abs(settled.mean().item()) < 0.15
    assert 0.85 < settled.std().item() < 1.15
