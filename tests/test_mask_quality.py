import torch
from torch import nn

from benchmarks.mask_quality import fidelity


def test_fidelity_is_zero_for_the_initial_mask_and_one_for_the_dense_network():
    initial = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert fidelity(initial, initial) == (0.0, 0.0)
    assert fidelity(initial, torch.zeros_like(initial)) == (1.0, 0.0)
    assert fidelity(initial, initial / 4) == (0.75, 0.0), "the same share of every sample: nothing is uncertain"
    assert all(value != value for value in fidelity(torch.zeros(3), torch.zeros(3))), "undefined, not a number"


def test_the_standard_error_of_fidelity_is_that_of_redrawn_samples():
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        initial = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
        noise = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
        return initial, 0.1 * initial + 0.05 * noise

    found = torch.tensor([fidelity(*draw(400)) for _ in range(400)])
    values, errors = found.unbind(1)
    assert abs(values.mean() - 0.85) < 0.001
    # A standard deviation from 400 values is known to 3.5 %.
    assert abs(errors.mean() / values.std() - 1) < 0.15


def test_the_dense_network_differs_in_nothing_from_its_own_outputs(digits):
    samples = digits.held_out_samples("validation", torch.device("cpu")).first(128)
    teacher = samples.outputs(digits.model)
    assert samples.teacher_losses(digits.model, teacher).tolist() == [0.0] * 128

    class Shifted(nn.Module):
        def forward(self, *arguments, **options):
            return (digits.model(*arguments, **options)[0] + 0.5,)

    losses = samples.teacher_losses(Shifted(), teacher)
    assert losses.shape == (128,)
    assert torch.allclose(losses, torch.full_like(losses, 0.25)), "the mean square of a shift by a half"
