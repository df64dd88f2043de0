import json

import pandas as pd
import pytest

from analysis.plots import main as write_figures
from analysis.trials import load_curves, load_evaluation, load_trials
from maskpro.errors import MaskproError


@pytest.fixture
def experiment(tmp_path):
    """Two trials, the first of which went on after a crash and reported 200 samples twice."""
    pd.DataFrame(
        {
            "trial": [1, 2],
            "trial_id": ["aa", "bb"],
            "lr": [1.0, 2.0],
            "status": ["completed", "failed"],
            "num_samples_seen": [200, 100],
            "val_loss": [0.08, None],
            "recovery": [0.5, None],
            "seed_point": pd.array([1, None], dtype="Int64"),
            "failure": ["", "training loss is not finite"],
        }
    ).to_csv(tmp_path / "trials.csv", index=False)
    for name, seen in (("aa", [100, 200, 200]), ("bb", [100])):
        folder = tmp_path / "trials" / f"trial_{name}"
        folder.mkdir(parents=True)
        rows = [{"num_samples_seen": count, "recovery": number / 10, "val_loss": 0.09} for number, count in enumerate(seen)]
        (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = {name: {"test_loss": loss} for name, loss in (("dense", 0.07), ("initial", 0.09), ("learned", 0.08))}
    report = {"models": models, "recovery": 0.5, "loss_improvement": 0.11}
    (tmp_path / "final_evaluation.json").write_text(json.dumps(report))
    return tmp_path


def test_an_experiments_folder_becomes_tidy_frames(experiment):
    trials = load_trials(experiment)
    assert trials["seed_point"].tolist() == [1, pd.NA]
    curves = load_curves(experiment)
    assert curves[["trial_id", "num_samples_seen"]].values.tolist() == [["aa", 100], ["aa", 200], ["bb", 100]]
    assert curves["recovery"].tolist() == [0.0, 0.2, 0.0], "the later of two reports counts"
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
    with pytest.raises(MaskproError, match="no reports of trials below"):
        load_curves(tmp_path)
    with pytest.raises(MaskproError, match=r"no file .*final_evaluation.json"):
        load_evaluation(tmp_path)
