"""How many samples a search is still to be trained on."""

import math

import pytest

from benchmarks.simulated_search import SimulatedSearch, learning_curve
from maskpro.schedule.history import History
from maskpro.schedule.rungs import Ladder, rung_lr, rungs
from maskpro.schedule.state import Plan

SEED_POINTS = tuple(
    Plan(params={"lr": lr, "logits": 4.0, "batch_size": 32}, source=f"seed point {number}", seed=0)
    for number, lr in enumerate((1.0, 0.5, 2.0), 1)
)


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.mark.parametrize(
    ("budget", "exponent", "scaled"), [(100, 1 / 3, 4.0), (100, 0.0, 2.0), (800, 1 / 3, 2.0), (200, 0.5, 4.0)]
)
def test_the_learning_rate_of_a_short_run_is_larger_by_a_power_of_the_budgets_ratio(budget, exponent, scaled):
    assert rung_lr(2.0, budget=budget, max_samples=800, exponent=exponent) == pytest.approx(scaled, rel=1e-12)


def ladder(**changed):
    settings = {"ends": (100, 400, 1600), "reduction_factor": 4, "restarts": True, "min_completed": 3, **changed}
    return Ladder(**settings)


@pytest.mark.parametrize(
    ("changed", "num_trials", "left"),
    [
        ({}, 24, 24 * 100 + 6 * 400 + 3 * 1600),
        ({"restarts": False}, 24, 24 * 100 + 6 * 300 + 3 * 1200),
        ({"min_completed": 1}, 24, 24 * 100 + 6 * 400 + 1600),
        ({}, 96, 96 * 100 + 24 * 400 + 6 * 1600),
        ({}, 2, 2 * (100 + 400 + 1600)),
        ({"ends": (1600,)}, 5, 5 * 1600),
    ],
)
def test_before_it_begins_each_rung_promotes_its_share_and_the_last_ones_are_enough(changed, num_trials, left):
    assert ladder(**changed).samples_left([], num_trials) == left


def test_what_has_been_trained_promoted_and_lost_is_counted():
    history = History()
    for number in (1, 2, 3):
        history.start({}, source="optuna", seed=0)
        history.report(number, {"num_samples_seen": 100, "val_error": 0.1, "done": False}, stopped=True)
        history.checkpoint(number, "somewhere", 100)
    # The last two climb alone, as two of four are to be complete.
    two = ladder(min_completed=2)
    assert two.samples_left(history.searched, 4) == 100 + 2 * (400 + 1600)
    history.go_on(1, promoted=True)
    history.checkpoint(1, "somewhere", 100)
    assert two.samples_left(history.searched, 4) == 100 + 300 + 400 + 2 * 1600
    history.error(1, "out of memory")
    assert two.samples_left(history.searched, 4) == 100 + 2 * (400 + 1600)
    history.error(2, "out of memory")
    history.error(3, "out of memory")
    assert two.samples_left(history.searched, 4) == 100 + 400 + 1600, "there is only one more"


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize(
    ("scheduler", "slots", "num_trials"), [("asha", 1, 16), ("asha", 3, 16), ("asha", 2, 2), ("none", 2, 4)]
)
def test_nothing_is_left_at_the_end_and_before_that_as_much_as_is_then_trained(
    tmp_path, restarts, scheduler, slots, num_trials
):
    restarts = restarts and scheduler == "asha"
    search = SimulatedSearch(
        curve=lambda params, samples, budget: learning_curve(
            params | {"lr": min(params["lr"], 3.0), "logits": 4.0}, samples
        ),
        planned=SEED_POINTS[:num_trials],
        searcher="random",
        scheduler=scheduler,
        num_trials=num_trials,
        slots=slots,
        min_completed=3,
        restarts=restarts,
    )
    found = rungs(first_rung=100, max_samples=900, reduction_factor=3) if scheduler == "asha" else ()
    climbed = Ladder(ends=(*found, 900), reduction_factor=3, restarts=restarts, min_completed=3)
    search.run(search.open(tmp_path))
    whole = History(tmp_path / "history.jsonl")
    assert climbed.samples_left(whole.searched, num_trials) == 0
    trained = sum(record.trained for record in whole.searched)
    lines = (tmp_path / "history.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines), 7):
        (tmp_path / "begun.jsonl").write_bytes(b"".join(lines[:count]))
        begun = History(tmp_path / "begun.jsonl").searched
        told = climbed.samples_left(begun, num_trials)
        # Early stopping that does not wait for a full rung promotes a few more.
        assert told == pytest.approx(trained - sum(record.trained for record in begun), abs=0.3 * trained)


@pytest.mark.parametrize(
    "changed",
    [{"first_rung": 0}, {"first_rung": -1}, {"reduction_factor": 1}, {"reduction_factor": -2}, {"max_samples": math.inf}],
)
def test_rungs_that_never_end_are_refused(changed):
    """A changed record asked the monitor for them, which took all memory."""
    with pytest.raises(ValueError, match="never end"):
        rungs(**({"first_rung": 100, "max_samples": 900, "reduction_factor": 3} | changed))


def test_the_record_of_a_search_tells_its_ladder():
    described = {
        "is_replay": False,
        "scheduler": "asha",
        "options": {"promote_top_k": 5},
        "trial": {"report_samples": 100, "max_samples": 1600},
        "space": {"reduction_factor": 4, "promotion": "restart"},
    }
    assert Ladder.of_record(described) == ladder(min_completed=5)
    del described["space"]["promotion"]  # an older one
    assert Ladder.of_record(described) == ladder(min_completed=5, restarts=False)
    described["options"]["promote_top_k"] = 1
    assert Ladder.of_record(described).min_completed == 3
    assert Ladder.of_record(described | {"min_completed": 4}).min_completed == 4
    assert Ladder.of_record(described | {"scheduler": "none"}).ends == (1600,)
    for changed in ({"scheduler": "median"}, {"is_replay": True}):
        assert Ladder.of_record(described | changed) is None
