import pytest

from maskpro.schedule.history import METRIC, TrialRecord
from maskpro.schedule.ranking import best_trial, completed_by_error


def trial(number, value, *, done=True, failure=None, source="optuna"):
    report = {METRIC: value, "done": done} | ({"failure": failure} if failure else {})
    return TrialRecord(
        number=number,
        params={},
        source=source,
        seed=0,
        reports={100: report},
        samples=100,
        stopped=not done,
        checkpoint="here",
        checkpoint_samples=100,
    )


EARLY = trial(1, 0.1, done=False)
FULL = trial(2, 0.3)
BETTER = trial(3, 0.2)
AS_GOOD = trial(4, 0.2)
FAILED = trial(5, 0.05, failure="not finite")
CONFIRMATION = trial(6, 0.01, source="confirmation of trial 3")
SILENT = TrialRecord(number=7, params={}, source="optuna", seed=0)


@pytest.mark.parametrize(
    ("records", "best"),
    [
        ([EARLY, FULL, BETTER, AS_GOOD, FAILED, SILENT], BETTER),
        ([EARLY, FULL], FULL),
        ([SILENT, FAILED, EARLY], EARLY),
        ([FAILED, SILENT], None),
        ([CONFIRMATION, FULL], FULL),
        ([], None),
    ],
)
def test_the_best_trial_is_the_best_of_those_that_ran_to_their_budget_or_else_of_those_with_a_value(records, best):
    assert best_trial(iter(records)) is best


def test_of_completed_trials_the_best_comes_first_and_of_equal_ones_the_earliest():
    assert completed_by_error([EARLY, FULL, BETTER, AS_GOOD, FAILED]) == [BETTER, AS_GOOD, FULL]
