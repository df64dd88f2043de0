from types import SimpleNamespace

import pytest

from maskpro.errors import MaskproError
from maskpro.tuning.experiment import tabulate_trials
from maskpro.tuning.promotion import best_trial

SEED_POINT = {"lr": 1.0}


def trial(name, lr, *, seen=100, done=True, val_loss=0.09, failure="", error=None):
    metrics = {"num_samples_seen": seen, "done": done, "val_loss": val_loss, "recovery": 0.5, "failure": failure}
    return SimpleNamespace(
        path=f"/x/trial_{name}",
        config={"lr": lr},
        metrics=metrics,
        error=error,
        checkpoint=SimpleNamespace(path=f"/x/{name}"),
    )


def tabulate(*results):
    space = SimpleNamespace(param_space={"lr": None}, seed_points=(SEED_POINT,))
    return tabulate_trials(SimpleNamespace(space=space, context=SimpleNamespace(max_samples=100)), results)


def test_the_status_of_a_trial_says_how_it_ended():
    trials = tabulate(
        trial("a", 1.0),
        trial("b", 1.0, seen=40),
        trial("c", 2.0, seen=40, val_loss=0.9, failure="training loss is not finite"),
        trial("d", 2.0, seen=40, error=RuntimeError("out of memory")),
        trial("e", 2.0, seen=40, done=False),
    )
    assert trials["status"].tolist() == ["completed", "stopped", "failed", "failed", "unfinished"]
    assert trials["seed_point"].isna().tolist() == [False, True, True, True, True], "a seed point is run once"
    assert trials["val_loss"].isna().tolist() == [False, False, True, True, False]
    assert trials["failure"].tolist()[2:4] == ["training loss is not finite", "out of memory"]
    assert trials["trial_id"].tolist() == list("abcde")


def test_only_trials_without_failure_are_promoted_and_full_ones_first():
    full, early = trial("a", 1.0, val_loss=0.09), trial("b", 2.0, seen=40, val_loss=0.08)
    failed = trial("c", 2.0, val_loss=0.01, failure="training loss is not finite")
    assert best_trial(tabulate(full, early, failed))["trial_id"] == "a"
    assert best_trial(tabulate(early, failed))["trial_id"] == "b"
    with pytest.raises(MaskproError, match="no trial ended without an error, so there is no mask to promote"):
        best_trial(tabulate(failed))
