"""The Triton kernels are what torch computes: on a GPU where there is one, else in Triton's interpreter."""

import importlib

import pytest
import torch
from test_distribution import enumerated, led_logits

from maskpro import distribution
from maskpro.pattern import NMPattern

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One block of groups and a part of the next.
GROUPS = 300


@pytest.fixture
def kernels(monkeypatch):
    pytest.importorskip("triton", reason="Triton comes with torch on Linux alone")
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    module = importlib.import_module("maskpro.kernels")
    yield importlib.reload(module)
    monkeypatch.undo()
    importlib.reload(module)


@pytest.fixture(params=[0.1, 3.0, 50.0, 200.0])
def logits(request, generator):
    return (torch.randn(GROUPS, 4, generator=generator) * request.param).to(DEVICE)


@pytest.fixture
def exponential(generator):
    return torch.empty(GROUPS, 4).exponential_(generator=generator).to(DEVICE)


@pytest.fixture
def by_torch(monkeypatch):
    """The same functions of torch alone."""
    monkeypatch.setattr(distribution, "_kernels", lambda: None)
    return distribution


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_draw_is_the_largest_of_the_noisy_logits(kernels, by_torch, logits, exponential, n):
    mask = kernels.sample(logits, n, exponential)
    assert torch.equal(mask, by_torch.mode(logits - exponential.log(), n))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_of_equal_noisy_logits_the_first_are_kept(kernels, n):
    mask = kernels.sample(torch.zeros(GROUPS, 4, device=DEVICE), n, torch.ones(GROUPS, 4, device=DEVICE))
    assert torch.equal(mask.cpu(), (torch.arange(4) < n).expand(GROUPS, 4))


def test_score(kernels, by_torch, logits, exponential):
    mask = kernels.sample(logits, 2, exponential)
    expected = by_torch.score(logits, mask)
    torch.testing.assert_close(kernels.score_of_pairs(logits, mask), expected, rtol=1e-5, atol=1e-6)
    factor = torch.tensor(-0.5, device=DEVICE)
    torch.testing.assert_close(kernels.score_of_pairs(logits, mask, factor), -0.5 * expected, rtol=1e-5, atol=1e-6)


def test_inclusion_probabilities_and_their_gradient(kernels, by_torch, logits, generator):
    values = torch.randn(GROUPS, 4, generator=generator).to(DEVICE)
    probabilities = by_torch.inclusion_probabilities(logits, 2)
    torch.testing.assert_close(kernels.inclusion_of_pairs(logits), probabilities, rtol=1e-5, atol=1e-6)
    found = kernels.inclusion_gradient_of_pairs(logits, values)
    torch.testing.assert_close(found, by_torch.inclusion_gradient(logits, 2, values), rtol=1e-5, atol=2e-6)


@pytest.fixture
def led(generator):
    """Logits of which one to three lead the others by up to 1000, and what float64 says of them by enumeration."""
    rows = led_logits(4, generator)
    return rows, torch.randn(rows.shape, generator=generator)


def test_leads_of_any_size_against_enumeration_in_float64(kernels, led):
    logits, values = led
    probabilities, gradient = enumerated(logits, 2, values)
    found = kernels.inclusion_of_pairs(logits.to(DEVICE))
    torch.testing.assert_close(found.cpu().double(), probabilities, rtol=5e-6, atol=2e-6)
    found = kernels.inclusion_gradient_of_pairs(logits.to(DEVICE), values.to(DEVICE))
    torch.testing.assert_close(found.cpu().double(), gradient, rtol=5e-6, atol=2e-6)
    candidates = NMPattern(2, 4).candidates()
    rows, masks = logits.repeat_interleave(6, dim=0), candidates.repeat(len(logits), 1)
    leaf = rows.double().requires_grad_(True)
    (slopes,) = torch.autograd.grad(distribution.log_prob(leaf, masks).sum(), leaf)
    scores = kernels.score_of_pairs(rows.to(DEVICE), masks.to(DEVICE))
    torch.testing.assert_close(scores.cpu().double(), slopes, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_exactly_n_are_kept_where_logits_are_nan(kernels, by_torch, n, generator):
    logits = torch.randn(GROUPS, 4, generator=generator)
    logits = logits.masked_fill(torch.rand(GROUPS, 4, generator=generator) < 0.5, torch.nan).to(DEVICE)
    mask = kernels.sample(logits, n, torch.ones(GROUPS, 4, device=DEVICE))
    assert (mask.sum(dim=1) == n).all()
    assert torch.equal(mask, by_torch.mode(logits, n))


def test_no_group_at_all(kernels):
    empty = torch.empty(0, 4, device=DEVICE)
    assert kernels.sample(empty, 2, empty).shape == (0, 4)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU runs the kernels")
def test_where_the_kernels_do_not_run_torch_does_the_work_and_says_so():
    with pytest.warns(UserWarning, match="without Triton's kernels"):
        assert distribution._kernels.__wrapped__() is None
