import pytest
import torch

from maskpro.distribution import candidate_log_probs
from maskpro.estimators import Tracker, policy_gradient, straight_through
from maskpro.pattern import NMPattern


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
    assert torch.allclose(straight_through(logits.detach(), weights, slopes, 2), expected, atol=1e-12)


def test_the_tracker_is_the_specs_moving_average():
    tracker = Tracker.start(torch.device("cpu"))
    delta = 0.0
    for residual in (0.5, -0.2, 0.1):
        tracker = tracker.update(torch.tensor(residual))
        delta = 0.99 * delta + 0.01 * residual
        assert tracker.mean.item() == pytest.approx(delta, rel=1e-6)
        assert tracker.raw_advantage(torch.tensor(residual)).item() == pytest.approx(residual - delta, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_the_normalised_advantage_has_the_same_scale_for_every_loss(scale, generator):
    residuals = (torch.randn(2000, generator=generator) + 3.0) * scale
    tracker, advantages = Tracker.start(torch.device("cpu")), []
    for residual in residuals:
        tracker = tracker.update(residual)
        advantages.append(tracker.normalised_advantage(residual))
    assert advantages[0] == 0
    settled = torch.stack(advantages[500:])
    assert abs(settled.mean().item()) < 0.15
    assert 0.85 < settled.std().item() < 1.15
