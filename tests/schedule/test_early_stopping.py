"""The stopping rules alone: which report stops a trial, and which stopped trial goes on."""

import itertools
import random

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from ray.tune.schedulers import FIFOScheduler

from maskpro.errors import MaskproError
from maskpro.schedule.early_stopping import SCHEDULERS, SuccessiveHalving, make_pruner
from maskpro.schedule.history import METRIC, TrialRecord


class Halving:
    """Trials under the rule; `report` says whether one stops, `promote` which one goes on."""

    def __init__(self, *, max_samples=900, reduction_factor=3, restarts=False):
        self.rule = SuccessiveHalving(
            first_rung=100, max_samples=max_samples, reduction_factor=reduction_factor, restarts=restarts
        )
        self.trials = {}
        self.waiting = set()

    def report(self, number, samples, loss, *, seed_point=False):
        source = f"seed point {number}" if seed_point else "optuna"
        record = self.trials.setdefault(number, TrialRecord(number=number, params={}, source=source, seed=0))
        record.samples, record.reports[samples] = samples, {METRIC: loss}
        record.stopped = stops = self.rule.stops(record, samples, loss)
        if stops:
            self.waiting.add(number)
        return stops

    def fail(self, number):
        self.trials[number].error = "the worker died"
        self.rule.forget(self.trials[number])
        self.waiting.discard(number)

    def promote(self):
        record = self.rule.promotable(self.trials, lambda record: record.number in self.waiting)
        if record is None:
            return None
        self.waiting.discard(record.number)
        self.rule.promote(record)
        record.stopped = False
        return record.number


@pytest.mark.parametrize(
    ("max_samples", "reduction_factor", "rungs"),
    [
        (900, 3, (100, 300)),
        (901, 3, (100, 300, 900)),
        (100, 3, ()),
        (101, 2, (100,)),
        (1600, 2, (100, 200, 400, 800)),
        (10_000, 10, (100, 1000)),
    ],
)
def test_rungs_are_powers_of_the_factor_times_the_first_and_below_the_budget(max_samples, reduction_factor, rungs):
    rule = SuccessiveHalving(first_rung=100, max_samples=max_samples, reduction_factor=reduction_factor)
    assert rule.rungs == rungs


def test_where_promoted_trials_restart_every_trial_stops_at_its_rung_and_the_next_rung_is_its_budget():
    halving = Halving(restarts=True)
    record = TrialRecord(number=1, params={}, source="seed point 1", seed=0)
    assert halving.rule.budget(record) == 100
    for number, loss in enumerate((0.3, 0.2, 0.1), 1):
        assert halving.report(number, 100, loss, seed_point=number == 1)
    assert halving.promote() == 3
    best = halving.trials[3]
    assert halving.rule.budget(best) == 300
    assert not halving.report(3, 200, 0.05), "between two rungs"
    assert halving.report(3, 300, 0.01)
    assert halving.rule.budget(best) == 300, "the checkpoint of its stop was lost"
    best.stopped = False
    assert halving.rule.budget(best) == 900, "promoted"


@pytest.mark.parametrize("reduction_factor", [2, 3, 4])
def test_a_rung_with_too_few_values_lets_nobody_on(reduction_factor):
    halving = Halving(reduction_factor=reduction_factor)
    for number in range(1, reduction_factor):
        assert halving.report(number, 100, 0.1 * number)
        assert halving.promote() is None
    assert halving.report(reduction_factor, 100, 0.1 * reduction_factor)
    assert halving.promote() == 1, "now there are enough to tell that it is the best"
    assert halving.promote() is None


def test_who_is_among_the_best_goes_on_without_a_stop():
    halving = Halving()
    assert halving.report(1, 100, 0.3)
    assert halving.report(2, 100, 0.2)
    assert not halving.report(3, 100, 0.1)


def test_a_stopped_trial_goes_on_once_worse_ones_have_filled_the_rung():
    halving = Halving()
    for number, loss in enumerate((0.2, 0.3, 0.1), 1):
        halving.report(number, 100, loss)
    for number in (4, 5):
        halving.report(number, 100, 0.9)
        assert halving.promote() is None
    halving.report(6, 100, 0.9)
    assert halving.promote() == 1, "two of six"


def test_the_time_of_a_rung_is_samples_and_not_the_count_of_reports():
    halving = Halving()
    assert not any(halving.report(number, 50, 0.1) for number in range(4)), "50 samples is no rung"
    assert [halving.report(number, 100, 0.9) for number in range(4)] == [True, True, True, True]
    assert not halving.report(0, 150, 0.9), "150 samples is none either"


def test_a_late_report_does_not_fill_a_lower_rung():
    halving = Halving()
    for number in (1, 2):
        assert not halving.report(number, 150, 0.01), "never at 100 samples"
    for number, loss in ((3, 0.3), (4, 0.4)):
        assert halving.report(number, 100, loss)
    assert halving.promote() is None, "two values, not four"


def test_seed_points_pass_the_first_rung_and_are_judged_at_the_next():
    halving = Halving()
    losses = {1: 0.4, 2: 0.2, 3: 0.3, 4: 0.9}
    assert not any(halving.report(number, 100, loss, seed_point=True) for number, loss in losses.items())
    assert halving.report(5, 100, 0.25), "others are judged against them"
    assert [halving.report(number, 300, loss, seed_point=True) for number, loss in losses.items()] == [True] * 4
    assert halving.promote() == 2


def test_of_equal_values_the_earlier_trial_goes_on():
    halving = Halving()
    assert [halving.report(number, 100, 0.5) for number in range(1, 7)] == [True] * 6
    assert [halving.promote() for _ in range(3)] == [1, 2, None]


def test_failed_trials_count_in_no_rung():
    halving = Halving()
    for number, loss in enumerate((0.1, 0.2, 0.3), 1):
        halving.report(number, 100, loss)
    halving.fail(1)
    assert halving.promote() is None, "two are left"
    halving.report(4, 100, 0.9)
    assert halving.promote() == 2


def test_a_failed_trial_neither_stops_another_nor_lets_one_on():
    halving = Halving()
    for number, loss in enumerate((0.1, 0.9), 1):
        halving.report(number, 100, loss)
    halving.fail(1)
    halving.report(3, 100, 0.8)
    assert not halving.report(4, 100, 0.7), "the best of the three that are left"
    halving = Halving()
    for number in (1, 2):
        halving.report(number, 100, 0.9)
        halving.fail(number)
    assert halving.report(3, 100, 0.1), "the only one that is left"


def test_higher_rungs_come_first_and_better_trials_within_a_rung():
    halving = Halving()
    for number in range(1, 10):
        halving.report(number, 100, 0.1 * number, seed_point=number < 4)
    for number in (1, 2, 3):
        halving.report(number, 300, 0.1 * number)
    assert [halving.promote() for _ in range(3)] == [1, None, None]
    halving = Halving()
    for number, loss in enumerate((0.2, 0.3, 0.1, 0.15, 0.4, 0.5, 0.6, 0.7, 0.8), 1):
        halving.report(number, 100, loss)
    assert [halving.promote() for _ in range(3)] == [4, 1, None], "3 went on at once"


@pytest.mark.parametrize("seed", range(6))
def test_decisions_equal_the_rule_written_out_on_random_searches(seed):
    """The paper's get_job on plain lists: of the highest rung with a trial in its best n // factor that is not promoted."""
    source = random.Random(seed)
    factor = source.choice([2, 3, 4])
    halving = Halving(max_samples=2000, reduction_factor=factor)
    rungs = [100 * factor**power for power in range(9) if 100 * factor**power < 2000]
    held = {rung: [] for rung in rungs}
    promoted = {rung: set() for rung in rungs}
    loss = {}

    def best(rung):
        return [number for _, number in sorted(held[rung])[: len(held[rung]) // factor]]

    decisions = 0
    for step in range(300):
        number = next((number for rung in reversed(rungs) for number in best(rung) if number not in promoted[rung]), None)
        assert halving.promote() == number
        if number is None:
            number = len(loss)
            loss[number] = source.choice([0.1, 0.2, 0.3, source.random()])
            goal = rungs[0]
        else:
            rung = max(rung for rung in rungs if number in [held_number for _, held_number in held[rung]])
            promoted[rung].add(number)
            goal = rung * factor
        while goal in rungs:
            loss[number] -= 0.01 * source.random()
            held[goal].append((loss[number], number))
            stops = number not in best(goal)
            assert halving.report(number, goal, loss[number]) == stops
            decisions += 1
            if stops:
                break
            promoted[goal].add(number)
            goal *= factor
        del step
    assert decisions > 300


def pruned_study(scheduler):
    study = optuna.create_study(direction="minimize", pruner=make_pruner(scheduler, 100, 3))
    trials = {}

    def report(name, samples, loss):
        if name not in trials:
            trials[name] = study.ask({"lr": FloatDistribution(0.0, 1.0)})
        trials[name].report(loss, samples)
        return trials[name].should_prune()

    return study, trials, report


def test_the_median_rule_waits_for_ended_trials_and_for_the_second_report():
    study, trials, report = pruned_study("median")
    for number, loss in enumerate((0.1, 0.2, 0.3)):
        for samples in (100, 200, 300):
            assert not report(number, samples, loss), "nobody has ended"
    assert not report("early", 100, 0.9)
    assert not report("early", 200, 0.9)
    for number in range(3):
        study.tell(trials[number], 0.1)
    assert not report("late", 100, 0.9), "the first report is not judged"
    assert report("late", 200, 0.25)
    assert not report("early", 300, 0.15)


@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_the_others_have_optuna_stop_nobody(scheduler):
    _, _, report = pruned_study(scheduler)
    losses = itertools.product(range(20), (100, 200, 300, 900))
    assert not any(report(number, samples, float(number)) for number, samples in losses)


def test_an_unknown_scheduler_is_named():
    with pytest.raises(MaskproError, match="scheduler is 'hyperband'; allowed: asha, median, none"):
        make_pruner("hyperband", 100, 3)
    assert list(SCHEDULERS) == ["asha", "median", "none"]
    for pruner in (SuccessiveHalvingPruner(), HyperbandPruner()):
        with pytest.raises(MaskproError, match=f"a {type(pruner).__name__}, whose rungs the history can't tell; allowed"):
            make_pruner(pruner, 100, 3)
    with pytest.raises(MaskproError, match="scheduler is a FIFOScheduler; allowed: asha, median, none, or in a"):
        make_pruner(FIFOScheduler(), 100, 3)
