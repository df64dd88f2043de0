import copy
import math
from dataclasses import replace

import pytest
import torch
from shared_fixtures import CPU, make_trainer

from maskpro.distribution import score
from maskpro.errors import MaskproError
from maskpro.estimators import Tracker
from maskpro.initial_masks import magnitude_masked_model
from maskpro.logit_gradient import normalised
from maskpro.names import ESTIMATORS
from maskpro.objectives import HeldOutSamples, HeldOutValues, baseline_losses
from maskpro.objectives.diffusion import DiffusionObjective
from maskpro.pattern import NMPattern, PackedMask
from maskpro.trainer import MaskTrainer, NonFiniteLossError
from maskpro.trainer_config import TrainerConfig

TARGET = {
    "straight_through": "teacher",
    "relaxed_subset": "teacher",
    "gumbel_softmax": "teacher",
    "policy_gradient": "noise",
}


def run_to_end(trainer, chunk=64):
    while not trainer.finished:
        trainer.train(chunk)
        trainer.validate()
    return trainer


def assert_same_state(first, second):
    (tensors, counters), (other_tensors, other_counters) = flat_state(first), flat_state(second)
    assert counters == other_counters
    assert tensors.keys() == other_tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(value, other_tensors[name]), name
    assert torch.equal(first.logits, second.logits)
    for name, value in first._optimizer.state[first.logits].items():
        assert torch.equal(value, second._optimizer.state[second.logits][name]), name


def flat_state(trainer):
    parts, counters = trainer.state_dict()
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}, counters


def assert_resumes_bit_for_bit(workload, settings, chunk):
    """A run that is loaded after any of its chunks ends as one that went through, which is returned."""
    whole, states = make_trainer(workload, **settings), []
    while not whole.finished:
        whole.train(chunk)
        whole.validate()
        states.append(whole.state_dict())
    assert_same_state(run_to_end(make_trainer(workload, **settings), chunk=chunk), whole)  # nobody looked at its state
    for state in states:
        resumed = make_trainer(workload, **settings)
        resumed.load_state_dict(*state)
        assert_same_state(run_to_end(resumed, chunk=chunk), whole)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny, estimator):
    settings = {"estimator": estimator, "target": TARGET[estimator], "lr": 2.0, "budget_samples": 96}
    assert_resumes_bit_for_bit(tiny, settings, chunk=32)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny):
    first, again, other = (run_to_end(make_trainer(tiny, seed=seed)) for seed in (0, 0, 1))
    assert_same_state(first, again)
    assert not torch.equal(first.logits, other.logits)


@pytest.mark.parametrize(("batch_size", "steps"), [(8, 8), (24, 3), (64, 1)])
def test_train_consumes_exactly_the_samples_asked_for(tiny, batch_size, steps):
    trainer = make_trainer(tiny, batch_size=batch_size, budget_samples=100)
    assert len(trainer.train(64)) == steps
    assert trainer.num_samples_seen == 64
    trainer.train(1000)
    assert trainer.num_samples_seen == 100
    assert trainer.finished


@pytest.mark.slow
def test_straight_through_improves_on_the_initial_mask(digits):
    trainer = run_to_end(make_trainer(digits, lr=2.0, batch_size=32, dataset_size=2000, budget_samples=1920), chunk=640)
    assert trainer.best.error < 0.8 * trainer.initial.error
    assert 0 < trainer.changed_share() < 0.5


@pytest.mark.slow
def test_a_validated_mask_is_kept_with_its_loss_and_never_one_worse_than_the_initial_mask(digits):
    trainer = make_trainer(digits, lr=2.0, batch_size=32, budget_samples=640)
    judged = []
    while not trainer.finished:
        trainer.train(64)
        judged.append(trainer.validate())
    assert trainer.lowest == min(judged, key=lambda means: means.error)
    assert trainer.lowest.error <= trainer.best.error
    assert trainer.best in judged
    assert trainer.best.error < trainer.initial.error
    trainer.masked.set_mask(trainer.best_mask)
    assert trainer._validation.judge(trainer.masked.model).means() == trainer.best


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_accumulated_batches_equal_one_large_batch(tiny, estimator):
    settings = {"estimator": estimator, "target": TARGET[estimator], "budget_samples": 64, "dataset_size": 64}
    large = make_trainer(tiny, batch_size=32, **settings)
    small = make_trainer(tiny, batch_size=8, gradient_accumulation_steps=4, **settings)
    large.train(64)
    small.train(64)
    assert small.num_steps == large.num_steps == 2
    # Sums of the same terms in another order: float32 rounding, which Adam's normalisation enlarges where gradients vanish.
    assert (small.logits - large.logits).abs().median() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"masks_per_step": 4},
        {"masks_per_step": 2, "gradient_accumulation_steps": 2, "lr_decay": "cosine"},
        {"refresh_reference": True, "target": "teacher", "logits": 0.5},
        {"optimizer": "adam", "lr_decay": "constant"},
        {"estimator": "straight_through", "target": "teacher", "magnitude_prior": 2.0},
        {"optimizer": "sgd", "estimator": "straight_through"},
        {"optimizer": "sgd", "estimator": "gumbel_softmax"},
        {"estimator": "relaxed_subset", "target": "teacher", "annealing": "linear", "final_temperature": 0.5},
    ],
    ids=str,
)
def test_every_setting_resumes_bit_for_bit(tiny, settings, monkeypatch):
    # Far from the initial mask at once, so that the reference is replaced on the way.
    monkeypatch.setattr(Tracker, "reference_is_far", lambda self: self.updates == 3)
    settings = {"estimator": "policy_gradient", "target": "noise", "lr": 2.0, "budget_samples": 96} | settings
    whole = assert_resumes_bit_for_bit(tiny, settings, chunk=48)
    assert not torch.equal(whole.logits, make_trainer(tiny, **settings).logits)
    if settings.get("refresh_reference"):
        assert not torch.equal(whole.state_dict()[0]["logits"]["reference"], PackedMask(whole.initial_mask).bits)


def test_without_moments_nothing_is_rounded(tiny):
    trainer = make_trainer(tiny, estimator="policy_gradient", target="noise", lr=0.01)
    trainer.train(32)
    before = trainer.logits.clone()
    trainer.validate()
    assert torch.equal(trainer.logits, before)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_run_goes_on_from_coarse_logits_with_new_moments(tiny, estimator):
    settings = {"estimator": estimator, "target": TARGET[estimator], "lr": 2.0, "budget_samples": 96}
    first = make_trainer(tiny, **settings)
    first.train(48)
    first.validate()
    parts, counters = first.state_dict()
    second = make_trainer(tiny, **settings)
    second.load_state_dict({name: parts[name] for name in ("mask", "logits")}, counters)
    assert 0 < (second.logits - first.logits).abs().max() <= first.logits.abs().max() / 64
    assert second._optimizer.state[second.logits] == {}
    assert torch.equal(second.best_mask, first.best_mask)
    assert (second.lowest, second.num_samples_seen) == (first.lowest, 48)
    assert run_to_end(second).num_samples_seen == 96


@pytest.mark.slow
def test_small_steps_are_not_lost_to_the_rounding(digits):
    """Each far below what a checkpoint resolves, with a rounding after each: on average the logits go as far as without."""
    settings = {"lr": 1e-4, "lr_decay": "constant", "budget_samples": 128, "logits": 4.0}
    rounded, plain = (make_trainer(digits, **settings) for _ in range(2))
    plain.round_state = lambda: None
    start = plain.logits.clone()
    for trainer in (rounded, plain):
        run_to_end(trainer, chunk=8)
    moved = plain.logits - start
    # A bound for 16 steps, the first of which have the same sign for a weight; a logit is resolved to 1 / 4,096.
    assert 1e-5 < moved.abs().max() < 1 / 4_096
    # Far from where they would be, every logit by itself, but with the mean of those that went up and those that went down.
    for way in (moved > 2e-5, moved < -2e-5):
        error = (rounded.logits - start)[way].std() / way.sum().sqrt()
        assert way.sum() > 10_000
        assert (rounded.logits - start)[way].mean() == pytest.approx(moved[way].mean().item(), abs=5 * error.item())
        assert moved[way].mean().abs() > 10 * error


def test_a_state_of_another_model_or_device_is_refused(digits):
    parts, counters = make_trainer(digits).state_dict()
    with pytest.raises(MaskproError, match=r"checkpoint has about 621568 logits; allowed: \d+, as the model has"):
        make_trainer(digits, targets=("mid_block",)).load_state_dict(parts, counters)
    parts["logits"]["generator"] = torch.zeros(16, dtype=torch.uint8)
    with pytest.raises(MaskproError, match="checkpoint is from another type of device; allowed: cpu"):
        make_trainer(digits).load_state_dict(parts, counters)


def test_masks_of_a_step_see_the_same_samples_and_each_counts(tiny):
    seen = []
    trainer = make_trainer(
        tiny, estimator="policy_gradient", target="noise", masks_per_step=3, batch_size=8, budget_samples=48
    )
    objective = trainer._gradient.objective
    predict = objective.predict
    objective.predict = lambda model, batch: seen.append(batch.images) or predict(model, batch)
    assert len(trainer.train(48)) == 2
    assert trainer.num_samples_seen == 48
    expected = [objective.batch(torch.arange(start, start + 8)).images for start in (0, 0, 0, 8, 8, 8)]
    assert all(torch.equal(images, wanted) for images, wanted in zip(seen, expected, strict=True))
    with pytest.raises(MaskproError, match="num_samples is 32; allowed: a multiple of masks_per_step, 3"):
        trainer.train(32)


def test_the_leave_one_out_step_is_the_mean_of_advantage_times_score(tiny):
    """One step of two masks, written out: (L1 - L2) / rms goes to the first mask's score, its negative to the second's."""
    trainer = make_trainer(
        tiny, estimator="policy_gradient", target="noise", masks_per_step=2, batch_size=8, budget_samples=32, lr=3.0
    )
    logits, masks, losses = trainer.logits.clone(), [], []
    set_mask, objective = trainer.masked.set_mask, trainer._gradient.objective
    trainer.masked.set_mask = lambda mask: masks.append(mask.clone()) or set_mask(mask)
    original = objective.losses
    objective.losses = lambda prediction, batch: losses.append(original(prediction, batch)) or losses[-1]
    trainer.train(16)
    difference = (losses[0].mean() - losses[1].mean()).item()
    rms = math.sqrt((0.99 * 0.01 * difference**2 + 0.01 * difference**2) / (1 - 0.99**2))
    expected = logits - 0.1 * 3.0 * difference / rms * (score(logits, masks[0]) - score(logits, masks[1])) / 2
    assert torch.allclose(trainer.logits, expected, atol=1e-6)


def test_the_reference_is_replaced_once_the_loss_is_half_of_its_own():
    """MaskPro's condition f(m) > f(m0) / 2, on moving averages."""
    near, far = (Tracker.start(CPU).update(torch.tensor(-share), torch.tensor(1.0)) for share in (0.49, 0.51))
    assert not near.reference_is_far()
    assert far.reference_is_far()


@pytest.mark.parametrize("pattern", ["1:4", "4:8", "2:8", "8:16"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_pattern_is_learned_by_every_estimator_or_refused_in_words(tiny, estimator, pattern):
    settings = {"estimator": estimator, "target": TARGET[estimator], "batch_size": 2, "budget_samples": 4, "lr": 4.0}
    if (estimator, pattern) == ("gumbel_softmax", "8:16"):
        with pytest.raises(MaskproError, match="pattern is 8:16, which has 12,870 masks a group"):
            make_trainer(tiny, pattern=pattern, **settings)
        return
    trainer = make_trainer(tiny, pattern=pattern, **settings)
    before = trainer.logits.clone()
    trainer.train(4)
    assert trainer.logits.isfinite().all()
    assert not torch.equal(trainer.logits, before)
    assert (trainer.mode().sum(dim=1) == int(pattern.split(":")[0])).all()


def test_layers_outside_the_targets_are_not_touched(tiny):
    trainer = make_trainer(tiny, targets=("mid_block",), lr=4.0, budget_samples=128)
    before = trainer.masked.layer_masks()
    run_to_end(trainer)
    trainer.masked.set_mask(trainer.best_mask)
    for name, mask in trainer.masked.layer_masks().items():
        if not name.startswith("mid_block"):
            assert torch.equal(mask, before[name])
    assert len(trainer.logits) < len(trainer.masked.mask)


class Float64Objective(DiffusionObjective):
    """The same samples in float64, so that a formula can be compared without float32's rounding of the network."""

    def batch(self, indices):
        batch = super().batch(indices)
        return batch._replace(images=batch.images.double(), target=batch.target.double())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"estimator": "straight_through"}, {"estimator": "policy_gradient", "lr": 20.0}], ids=str
)
def test_bfloat16_learns_as_well_as_float32_within_the_noise_of_seeds(digits, settings):
    """Validation error after the same samples: with passes, teacher and baseline in bfloat16 less apart than seeds are."""
    losses = {}
    for precision, seed in (("float32", 0), ("float32", 1), ("float32", 2), ("bfloat16", 0)):
        trainer = make_trainer(digits, **{"lr": 2.0} | settings, budget_samples=512, precision=precision, seed=seed)
        trainer.train(512)
        losses[precision, seed] = trainer.validate().error
    seeds = [losses["float32", seed] for seed in range(3)]
    assert abs(losses["bfloat16", 0] - losses["float32", 0]) < max(seeds) - min(seeds)
    assert losses["bfloat16", 0] != losses["float32", 0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_initial_mask_has_no_residual_in_any_precision(tiny, precision):
    """Teacher, baseline and losses are of the same precision: its rounding is no reward or punishment of a mask."""
    settings = {"estimator": "policy_gradient", "batch_size": 64, "budget_samples": 128, "precision": precision}
    trainer = make_trainer(tiny, **settings)
    (batch,) = trainer._gradient.batches(torch.arange(64))
    baseline = trainer._gradient.baseline(torch.arange(64))
    assert (batch.teacher.dtype, baseline.dtype) == (torch.float32, torch.float32)
    with torch.no_grad():
        assert torch.equal(trainer._gradient.losses(batch.samples, batch.teacher), baseline)
        other = make_trainer(tiny, **settings | {"precision": {"float32": "bfloat16"}.get(precision, "float32")})
        assert not torch.equal(
            trainer._gradient.losses(batch.samples, batch.teacher), other._gradient.baseline(torch.arange(64))
        )


def test_a_reference_that_is_refreshed_has_no_residual_either(tiny):
    trainer = make_trainer(
        tiny, estimator="policy_gradient", refresh_reference=True, batch_size=64, budget_samples=128, precision="bfloat16"
    )
    trainer._gradient.refresh(trainer.initial_mask)
    (batch,) = trainer._gradient.batches(torch.arange(64))
    with torch.no_grad():
        assert torch.equal(
            trainer._gradient.losses(batch.samples, batch.teacher), trainer._gradient.baseline(torch.arange(64))
        )


def test_of_masks_that_held_out_samples_cannot_tell_apart_the_latest_is_kept(tiny, generator, monkeypatch):
    """Worse by less than the standard error of the paired difference is as good; worse by more is not."""
    trainer = make_trainer(tiny)
    initial, noise = trainer.initial.error, torch.randn(400, generator=generator, dtype=torch.float64)
    error = (noise - noise.flip(0)).std(correction=0).item() / 20
    shift = (noise - noise.flip(0)).mean().item()
    lowest = initial / 2 + 0.001 * noise
    steps = {
        "first": initial / 2 + 0.001 * (noise.flip(0) + 5 * error),
        "lowest": lowest,
        "as good": initial / 2 + 0.001 * (noise.flip(0) + shift + 0.9 * error),
        "worse": initial / 2 + 0.001 * (noise.flip(0) + shift + 1.1 * error),
        "worse than the initial mask": initial + torch.zeros(400, dtype=torch.float64),
    }
    kept = []
    for place, errors in enumerate(steps.values()):
        mask = torch.arange(len(steps)) == place
        monkeypatch.setattr(trainer, "mode", lambda mask=mask: mask)
        values = HeldOutValues(losses=-errors, errors=errors)
        monkeypatch.setattr(trainer, "_judge", lambda _, values=values: values)
        assert trainer.validate() == values.means()
        kept.append(torch.equal(trainer.best_mask, mask))
    assert kept == [True, True, True, False, False]
    assert trainer.lowest.error == lowest.mean().item() < trainer.best.error == steps["as good"].mean().item()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo", "ignore:.*lru_cache")
def test_compiled_passes_change_no_more_than_float_rounding(digits):
    """The last step's smaller batch goes through the network as it is."""
    settings = {"estimator": "policy_gradient", "budget_samples": 512}
    plain, compiled = (make_trainer(digits, compile=compile, **settings).train(20) for compile in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=0)


def test_raw_step_is_exactly_the_specs_update(digits):
    """A direct transcription of the spec in float64: tracker, residual to the initial mask, formula and gradient of 2:4."""
    lr, magnitude = 50.0, 2.0
    dense = copy.deepcopy(digits.model).double()
    objective = Float64Objective(digits.scheduler, digits.images.train, seed=0, device=CPU)
    masked = magnitude_masked_model(dense, pattern=NMPattern(2, 4), layout="channel")
    initial = masked.mask.clone()
    trainer = MaskTrainer(
        TrainerConfig(
            estimator="policy_gradient",
            target="noise",
            raw_step=True,
            lr=lr,
            logits=magnitude,
            batch_size=8,
            budget_samples=32,
        ),
        masked=masked,
        objective=objective,
        validation=HeldOutSamples(objective, 8, dense),
        baseline=baseline_losses(copy.deepcopy(masked.model), objective, None),
    )
    logits = magnitude * initial.double()
    delta = 0.0
    for step in range(4):
        trainer.train(8)
        sampled = masked.mask.clone()
        batch = objective.batch(torch.arange(step * 8, step * 8 + 8))
        losses = []
        for mask in (sampled, initial):
            masked.set_mask(mask)
            with torch.no_grad():
                losses.append(objective.losses(objective.predict(masked.model, batch), batch).mean().item())
        residual = losses[0] - losses[1]
        delta = 0.99 * delta + 0.01 * residual
        leaf = logits.clone().requires_grad_(True)
        p = leaf.softmax(dim=1)
        a, b = (p[sampled].view(-1, 2)[:, i] for i in (0, 1))
        (gradient,) = torch.autograd.grad((a * b * (1 / (1 - a) + 1 / (1 - b))).log().sum(), leaf)
        update = lr * (residual - delta) * gradient
        assert update.abs().max() > 1e-4, "the step must be large enough to compare"
        logits = logits - update
        assert (trainer.logits - logits).abs().max() < 1e-9


@pytest.mark.parametrize("logits", [3.0, 50.0])
def test_a_step_of_sgd_moves_the_logits_by_lr_in_units_of_a_tenth_however_small_the_gradient(tiny, logits):
    """With logits of 50 the squares of the gradient, about 1e-27, are zero in float32."""
    trainer = make_trainer(tiny, optimizer="sgd", logits=logits, lr=2.0, lr_decay="constant")
    before = trainer.logits.clone()
    trainer.train(8)
    step = (trainer.logits - before).square().mean().sqrt().item()
    assert step == pytest.approx(0.2, rel=1e-3)


def test_scaling_a_gradient_rounds_no_more_than_a_division_by_its_root_mean_square(generator):
    gradient = 1e-6 * torch.randn(1_000, 4, generator=generator)
    expected = gradient / gradient.square().mean().sqrt()
    assert torch.equal(normalised(gradient.clone()), expected)
    assert torch.equal(normalised(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_policy_gradient_starts_at_rest_and_moves_by_lr_in_units_of_a_tenth(tiny):
    trainer = make_trainer(
        tiny, estimator="policy_gradient", target="noise", lr=1.0, lr_decay="constant", budget_samples=800
    )
    start = trainer.logits.clone()
    trainer.train(8)
    assert torch.equal(trainer.logits, start), "one residual has no spread to be measured by"
    trainer.train(400)
    before = trainer.logits.clone()
    trainer.train(8)
    step = (trainer.logits - before).abs().max().item()
    assert 0 < step < 0.6  # |advantage| of a few, |score| at most 2, times 0.1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_loss_that_is_not_finite_stops_the_run(tiny, estimator, monkeypatch):
    trainer = make_trainer(tiny, estimator=estimator, target=TARGET[estimator])
    trainer.train(16)
    original = DiffusionObjective.teacher_losses
    monkeypatch.setattr(DiffusionObjective, "teacher_losses", lambda *inputs: original(*inputs) * math.nan)
    with pytest.raises(NonFiniteLossError, match="training loss is not finite after 32 samples"):
        trainer.train(16)


def test_a_logit_that_is_not_finite_stops_the_run(tiny):
    """NaN logits have no order, so their mode would not be n:m."""
    trainer = make_trainer(tiny)
    trainer.logits[5, 2] = math.nan
    with pytest.raises(NonFiniteLossError, match="a logit is not finite after 64 samples"):
        trainer.train(64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0; allowed: a number above 0"),
        ({"lr": math.nan}, "lr is nan; allowed"),
        ({"logits": 0}, "logits is 0; allowed: a number above 0"),
        ({"logits": 1e39}, r"logits is 1e\+39; allowed: a number above 0, up to 1e\+06"),
        (
            {"final_temperature": 1e-40, "estimator": "relaxed_subset"},
            "final_temperature is 1e-40; allowed: a number of at least 1e-06",
        ),
        ({"batch_size": 0}, "batch_size is 0; allowed: a whole number"),
        ({"batch_size": 1.5}, "batch_size is 1.5; allowed: a whole number"),
        ({"batch_size": 64, "dataset_size": 32}, "batch_size is 64; allowed: at most dataset_size, 32"),
        (
            {"estimator": "magic"},
            "estimator is 'magic'; allowed: straight_through, relaxed_subset, gumbel_softmax, policy_gradient",
        ),
        ({"target": "student"}, "target is 'student'; allowed: teacher, noise"),
        ({"magnitude_prior": -1.0}, "magnitude_prior is -1.0; allowed: a number of at least 0"),
        ({"optimizer": "adamw"}, "optimizer is 'adamw'; allowed: auto, adam, sgd"),
        ({"masks_per_step": 2}, "masks_per_step is 2 with estimator straight_through; allowed: with policy_gradient only"),
        ({"masks_per_step": 0}, "masks_per_step is 0; allowed: a whole number of at least 1"),
        (
            {"estimator": "policy_gradient", "masks_per_step": 2, "raw_step": True},
            "masks_per_step is 2 with raw_step or refresh_reference; allowed: 1",
        ),
        (
            {"estimator": "policy_gradient", "masks_per_step": 11, "budget_samples": 100},
            "masks_per_step is 11; allowed: a divisor of budget_samples, 100",
        ),
        ({"annealing": "cosine", "estimator": "gumbel_softmax"}, "annealing is 'cosine'; allowed: geometric, linear"),
        ({"final_temperature": 0.0, "estimator": "relaxed_subset"}, "final_temperature is 0.0; allowed: a number above 0"),
        (
            {"final_temperature": 0.5},
            "final_temperature is 0.5 with estimator straight_through; allowed: with relax",
        ),
        ({"annealing": "linear"}, "annealing is linear with estimator straight_through; allowed: with relaxed_subset or "),
        ({"lr_decay": "steps"}, "lr_decay is 'steps'; allowed: linear, cosine, constant"),
        ({"raw_step": True}, "raw_step is True with estimator straight_through"),
        (
            {"estimator": "policy_gradient", "raw_step": True, "optimizer": "adam"},
            "raw_step is True with optimizer adam; allowed: sgd or auto",
        ),
    ],
)
def test_settings_that_are_not_allowed_are_refused(settings, message):
    with pytest.raises(MaskproError, match=message):
        TrainerConfig(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"estimator": "policy_gradient"}, {"gradient_accumulation_steps": 2}])
def test_where_memory_runs_out_smaller_forward_passes_give_the_same_result(tiny, monkeypatch, settings):
    """In float64, where an order of summation shows in the last tiny alone."""
    double = replace(tiny, model=copy.deepcopy(tiny.model).double())
    original = DiffusionObjective.predict
    memory = {}

    def predict(self, model, batch):
        if len(batch.images) > memory.get(id(model), math.inf):
            raise torch.OutOfMemoryError
        return original(self, model, batch._replace(images=batch.images.double()))

    monkeypatch.setattr(DiffusionObjective, "predict", predict)

    gradients = []

    def run(largest):
        trainer = make_trainer(double, **settings)
        memory[id(trainer.masked.model)] = largest
        # The policy gradient's first advantage is 0. Adam makes full steps of rounding where a gradient is nothing else.
        steps = 3 if settings.get("estimator") == "policy_gradient" else 1
        losses = trainer.train(steps * trainer.config.batch_size * trainer.config.gradient_accumulation_steps)
        gradients.append(trainer.logits.grad.clone())
        return trainer, losses

    whole, losses = run(math.inf)
    pieces, same_losses = run(3)
    assert (whole.micro_batch_size, pieces.micro_batch_size) == (8, 2)
    torch.testing.assert_close(losses, same_losses, rtol=1e-12, atol=0)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9 * gradients[0].abs().max().item())
    assert torch.equal(whole._gradient.generator.get_state(), pieces._gradient.generator.get_state()), (
        "the same masks were drawn"
    )
    _, counters = pieces.state_dict()
    assert counters["micro_batch_size"] == 2
    with pytest.raises(torch.OutOfMemoryError):
        run(0)


def test_what_trackers_show_of_a_mask_is_what_it_is(tiny):
    trainer = make_trainer(tiny, lr=10.0, budget_samples=96)
    start = trainer.statistics()
    run_to_end(trainer)
    end = trainer.statistics()
    assert start["changed_share"] == 0.0
    assert end["changed_share"] == trainer.changed_share() > 0
    assert start["sparsity"] == end["sparsity"] == 0.5
    assert {start[f"logits/q{share}"] for share in ("05", "50", "95")} <= {0.0, 1.5, 3.0}, "half 0, half 3"
    assert end["logits/min"] <= end["logits/q05"] <= end["logits/q50"] <= end["logits/q95"] <= end["logits/max"]
    assert 0 < end["entropy"] < math.log(6), "between decided and even over the six masks"
