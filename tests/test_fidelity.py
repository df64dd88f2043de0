import math

import pytest
import torch

from maskpro.fidelity import (
    Estimate,
    advice,
    estimate_fidelity,
    estimate_gain,
    estimate_recovery,
    fidelity,
    format_share,
    images_judged_by,
    learned_against_dense,
    paired_difference,
)


def test_fidelity_is_zero_of_the_initial_mask_and_one_of_the_dense_network():
    assert fidelity(0.02, 0.02) == 0
    assert fidelity(0.02, 0.0) == 1
    assert fidelity(0.02, 0.005) == pytest.approx(0.75)
    assert fidelity(0.02, 0.03) == pytest.approx(-0.5)


def test_fidelity_is_undefined_where_the_initial_mask_changes_no_output():
    assert fidelity(0.0, 0.0) is None
    zeros = torch.zeros(8, dtype=torch.float64)
    assert estimate_fidelity(zeros, zeros) is None
    assert estimate_gain(zeros, zeros, zeros) is None
    assert estimate_recovery(zeros, zeros, zeros) is None
    assert format_share(None) == format_share(math.nan) == "undefined"
    assert format_share(0.96) == "0.960"


def draws(generator, count, size):
    """Errors of samples under three masks: heavy-tailed, and correlated between the masks as those of real masks are."""
    common = torch.randn(count, size, generator=generator, dtype=torch.float64).exp()
    own = torch.randn(2, count, size, generator=generator, dtype=torch.float64).mul(0.3).exp()
    return common, 0.2 * common * own[0], 0.15 * common.sqrt() * own[1]


def test_standard_errors_are_the_spread_over_sets_of_samples(generator):
    """Of 2,000 sets of 500 samples: the mean of the standard errors is the standard deviation of the estimates."""
    initial, first, second = draws(generator, 2000, 500)
    for found in (
        [estimate_fidelity(i, a) for i, a in zip(initial, first, strict=True)],
        [estimate_gain(i, a, b) for i, a, b in zip(initial, first, second, strict=True)],
        [estimate_recovery(i, a, b) for i, a, b in zip(initial, first, second, strict=True)],
    ):
        values, errors = torch.tensor(found, dtype=torch.float64).unbind(dim=1)
        assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.1)


def test_the_standard_error_of_several_samples_of_an_image_is_the_spread_over_sets_of_images(generator):
    """50 images, 10 samples of each in turn; samples of an image share a part of their error, which 500 would not."""
    initial, learned, _ = draws(generator, 1000, 500)
    shared = torch.randn(1000, 50, generator=generator, dtype=torch.float64).mul(0.5).exp().repeat(1, 10)
    sets = list(zip(initial, learned * shared, strict=True))
    by_image, by_sample = (
        torch.tensor([estimate_fidelity(*errors, images=images) for errors in sets], dtype=torch.float64)
        for images in (50, None)
    )
    spread = by_image[:, 0].std().item()
    assert by_image[:, 1].mean().item() == pytest.approx(spread, rel=0.1)
    assert by_sample[:, 1].mean().item() < 0.8 * spread
    assert estimate_fidelity(*sets[0], images=500) == estimate_fidelity(*sets[0])
    initial, learned = sets[0]
    gain = estimate_gain(initial, initial, learned, images=50)
    assert gain == pytest.approx(estimate_fidelity(initial, learned, images=50)), "over the initial mask itself"


def test_the_gain_is_the_difference_of_two_fidelities_and_far_quieter_where_masks_are_alike(generator):
    initial, first, _ = (part[0] for part in draws(generator, 1, 500))
    second = 0.99 * first
    fidelities = [estimate_fidelity(initial, errors) for errors in (first, second)]
    gain = estimate_gain(initial, first, second)
    assert gain.value == pytest.approx(fidelities[1].value - fidelities[0].value)
    assert gain.standard_error < 0.1 * fidelities[0].standard_error
    assert estimate_gain(initial, first, first) == Estimate(0.0, 0.0)


def test_of_one_sample_the_error_is_not_a_number():
    found = estimate_fidelity(torch.tensor([2.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64))
    assert found.value == 0.5
    assert math.isnan(found.standard_error)


def test_recovery_is_zero_of_the_initial_mask_and_one_of_the_dense_network_without_an_error(generator):
    initial, learned, dense = draws(generator, 1, 100)[0][0], *(part[0] for part in draws(generator, 1, 100)[1:])
    assert estimate_recovery(initial, initial, dense) == Estimate(0.0, 0.0)
    assert estimate_recovery(initial, dense, dense) == Estimate(1.0, 0.0)
    found = estimate_recovery(initial, learned, dense)
    assert found.value == pytest.approx(((initial - learned).mean() / (initial - dense).mean()).item())
    worse = estimate_recovery(dense, learned, initial)  # a dense network that is worse than the initial mask
    assert worse.value == pytest.approx(1 - found.value)
    assert worse.standard_error == pytest.approx(found.standard_error)


def test_differences_are_paired_over_sets():
    assert paired_difference([10.0, 30.0, 20.0], [11.0, 31.0, 21.0]) == Estimate(1.0, 0.0)
    found = paired_difference([10.0, 30.0], [11.0, 33.0])
    assert found.value == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(1.0)
    assert paired_difference([10.0], [11.0]) is None
    assert paired_difference([], []) is None
    assert paired_difference([1.0, 2.0], [1.0, 2.0, 3.0]) is None


def test_a_report_says_fidelity_first_and_the_distance_beside_the_dense_network():
    report = {
        "fidelity": 0.9,
        "fidelity_error": 0.002,
        "recovery": 0.95,
        "loss_improvement": 0.19,
        "distance_to_dense": {"frechet_distance": {"value": 0.6, "standard_error": 0.2}},
    }
    assert learned_against_dense(report) == (
        "Fidelity of the learned mask 0.9000 ± 0.0020; recovery 0.950, loss improvement 19.0%; Frechet distance "
        "+0.60 ± 0.20 beside the dense network's, on the same sets of images."
    )
    text = learned_against_dense(report | {"recovery_error": 0.01})
    assert text.startswith("Fidelity of the learned mask 0.9000 ± 0.0020; recovery 0.950 ± 0.010, loss improvement 19.0%;")
    undefined = report | {"fidelity": None, "recovery": None, "distance_to_dense": {"frechet_distance": None}}
    older = {name: report[name] for name in ("recovery", "loss_improvement")}
    assert learned_against_dense(older) == "The learned mask has recovery 0.950, loss improvement 19.0%."
    assert learned_against_dense(undefined).startswith(
        "Fidelity is undefined: the initial mask's output is the dense network's; recovery undefined"
    )


def test_images_are_judged_by_what_the_reference_allows():
    protocol = {"frechet_features": "f", "num_generated": 2000, "frechet_reference": "training and validation images"}
    text = ": 2,000 images of each network against training and validation images, in the features f."
    assert images_judged_by({}) == ""
    assert images_judged_by(protocol | {"num_kernel_precision_recall": None}) == f"Frechet distance{text}"
    every = f"Frechet distance, kernel distance, precision and recall{text}"
    assert images_judged_by(protocol | {"num_kernel_precision_recall": 2000}) == every


def test_a_run_that_came_to_nothing_says_what_to_change():
    found = {"initial_error": 0.1, "last_error": 0.1, "changed_share": 0.0}
    assert advice(0.0, **found).endswith("raise lr, or lower logits")
    assert advice(0.0, **(found | {"last_error": 0.3, "changed_share": 0.2})).endswith("halve lr")
    for kept in (None, 0.4):
        assert advice(kept, **found) == ""
