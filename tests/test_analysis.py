import json

import pandas as pd
import pytest

from analysis.plots import main as write_figures
from analysis.trials import load_curves, load_evaluation, load_trials
from maskpro.errors import MaskproError
from maskpro.tuning.history import History


@pytest.fixture
def experiment(tmp_path):
    """Two trials, the first of which stopped after its first report and went on later."""
    pd.DataFrame(
        {
            "trial": [1, 2],
            "trial_id": ["trial_00001", "trial_00002"],
            "lr": [1.0, 2.0],
            "status": ["completed", "failed"],
            "num_samples_seen": [200, 100],
            "val_loss": [0.08, None],
            "recovery": [0.5, None],
            "seed_point": pd.array([1, None], dtype="Int64"),
            "failure": ["", "training loss is not finite"],
        }
    ).to_csv(tmp_path / "trials.csv", index=False)
    history = History(tmp_path / "history.jsonl")
    history.session(2, time="now")
    for lr in (1.0, 2.0):
        history.start({"lr": lr}, source="optuna", seed=0)
    history.report(1, {"num_samples_seen": 100, "recovery": 0.0, "val_loss": 0.09}, stopped=True)
    history.report(2, {"num_samples_seen": 100, "recovery": None, "val_loss": 0.9, "failure": "not finite"}, stopped=False)
    history.go_on(1, promoted=True)
    history.report(1, {"num_samples_seen": 200, "recovery": 0.2, "val_loss": 0.08}, stopped=False)
    models = {name: {"test_loss": loss} for name, loss in (("dense", 0.07), ("initial", 0.09), ("learned", 0.08))}
    report = {"models": models, "recovery": 0.5, "loss_improvement": 0.11}
    (tmp_path / "final_evaluation.json").write_text(json.dumps(report))
    return tmp_path


def test_an_experiments_folder_becomes_tidy_frames(experiment):
    trials = load_trials(experiment)
    assert trials["seed_point"].tolist() == [1, pd.NA]
    curves = load_curves(experiment)
    first, second = trials["trial_id"]
    assert curves[["trial_id", "num_samples_seen"]].values.tolist() == [[first, 100], [first, 200], [second, 100]]
    assert curves["recovery"].tolist()[:2] == [0.0, 0.2]
    assert pd.isna(curves["recovery"].tolist()[2])
    evaluation = load_evaluation(experiment).set_index("model")
    assert evaluation.loc["learned", "recovery"] == 0.5
    assert pd.isna(evaluation.loc["dense", "recovery"])


def test_figures_are_written(experiment):
    write_figures(experiment)
    for name in ("learning_curves", "best_so_far"):
        assert (experiment / "figures" / f"{name}.png").stat().st_size > 5000


def test_a_folder_that_is_no_experiment_gives_one_sentence(tmp_path):
    with pytest.raises(MaskproError, match=r"no trials.csv in .*; allowed"):
        load_trials(tmp_path)
    with pytest.raises(MaskproError, match="no reports of trials in"):
        load_curves(tmp_path)
    with pytest.raises(MaskproError, match=r"no file .*final_evaluation.json"):
        load_evaluation(tmp_path)
