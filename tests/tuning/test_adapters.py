"""What Tune is left to remember of trials."""

from types import SimpleNamespace

from maskpro.tuning.adapters import SmallRecords


class Metadata:
    """As Tune's, which has everything that a trial has reported."""

    reports = ()


def trial(*, ended):
    metadata = Metadata()
    metadata.reports = (1, 2, 3)
    return SimpleNamespace(is_finished=lambda: ended, run_metadata=metadata)


def test_tune_keeps_no_figures_and_no_ended_trials_but_one():
    report = {"num_samples_seen": 100, "training_iteration": 1, "done": False, "val_error": 0.5, "config": {"lr": 1.0}}
    SmallRecords().on_trial_result(1, [], None, report)
    assert report == {"num_samples_seen": 100, "training_iteration": 1, "done": False}
    ended, running = [trial(ended=True) for _ in range(3)], trial(ended=False)
    trials = [ended[0], running, *ended[1:]]
    SmallRecords().on_step_end(1, trials)
    assert trials == [running]
    assert [other.run_metadata.reports for other in ended] == [()] * 3
    assert running.run_metadata.reports == (1, 2, 3)
    last = [trial(ended=True), trial(ended=True)]
    left = list(last)
    SmallRecords().on_step_end(1, left)
    assert left == last[-1:], "Tune reads the experiment's files anew where there is none"
