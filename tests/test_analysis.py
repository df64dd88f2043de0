import json
import math

import pandas as pd
import pytest
from matplotlib.text import Text

import analysis
from analysis.compare import compare, differences, samples_to_reach
from analysis.compare import main as write_comparison
from analysis.figures.learning import best_so_far, fidelity_against_cost, learning_curves
from analysis.figures.masks import numbered_points
from analysis.figures.parameters import importances, parallel_coordinates, slices
from analysis.figures.theme import LIGHT
from analysis.plots import main as write_figures
from analysis.report import main as write_report
from analysis.trials import main as print_trials
from benchmarks.made_up_experiment import make_experiment
from maskpro.errors import MaskproError
from maskpro.schedule.early_stopping import SuccessiveHalving
from maskpro.schedule.history import History


@pytest.fixture
def experiment(tmp_path):
    """Two trials, the first of which stopped after its first report and went on later."""
    history = History(tmp_path / "history.jsonl")
    history.session(2, time="now")
    for lr, source in ((1.0, "seed point 1"), (2.0, "optuna")):
        history.start({"lr": lr}, source=source, seed=0)
    history.report(1, {"num_samples_seen": 100, "fidelity": 0.0, "val_error": 0.02}, stopped=True)
    history.report(2, {"num_samples_seen": 100, "fidelity": None, "val_error": 0.2, "failure": "not finite"}, stopped=False)
    history.go_on(1, promoted=True)
    history.report(1, {"num_samples_seen": 200, "fidelity": 0.2, "val_error": 0.016}, stopped=False)
    models = {name: {"test_loss": loss} for name, loss in (("dense", 0.07), ("initial", 0.09), ("learned", 0.08))}
    report = {"models": models, "recovery": 0.5, "loss_improvement": 0.11}
    (tmp_path / "final_evaluation.json").write_text(json.dumps(report))
    return tmp_path


def test_an_experiments_folder_becomes_tidy_frames(experiment):
    opened = analysis.open(experiment)
    trials = opened.trials
    assert trials["seed_point"].tolist() == [1, pd.NA]
    assert trials["lr"].tolist() == [1.0, 2.0]
    assert trials["status"].tolist() == ["unfinished", "failed"]
    assert trials["experiment"].unique().tolist() == [experiment.name]
    assert trials["experiment"].unique().tolist() == opened.curves["experiment"].unique().tolist() == [opened.name]
    curves = opened.curves
    first, second = trials["trial_id"]
    assert curves[["trial_id", "num_samples_seen"]].values.tolist() == [[first, 100], [first, 200], [second, 100]]
    assert curves["fidelity"].tolist()[:2] == [0.0, 0.2]
    assert pd.isna(curves["fidelity"].tolist()[2])
    evaluation = opened.evaluation.set_index("model")
    assert evaluation.loc["learned", "recovery"] == 0.5
    assert pd.isna(evaluation.loc["dense", "recovery"])


def test_figures_are_written(experiment):
    write_figures(experiment)
    for name in ("learning_curves", "best_so_far"):
        assert (experiment / "figures" / f"{name}.png").stat().st_size > 5000


def test_a_folder_that_is_no_experiment_gives_one_sentence(tmp_path):
    with pytest.raises(MaskproError, match=r"no history.jsonl in .*; allowed: the folder of a search"):
        analysis.open(tmp_path)


def test_an_experiment_is_read_once(experiment):
    opened = analysis.open(str(experiment))
    frames = opened.trials, opened.curves, opened.evaluation
    for name in ("history.jsonl", "final_evaluation.json"):
        (experiment / name).unlink()
    assert all(
        frame is again for frame, again in zip(frames, (opened.trials, opened.curves, opened.evaluation), strict=True)
    )
    assert opened.final_evaluation["recovery"] == 0.5


def test_what_an_experiment_has_not_got_is_none_or_an_empty_frame(tmp_path):
    History(tmp_path / "history.jsonl").session(2, time="now")
    opened = analysis.open(tmp_path)
    assert (opened.description, opened.final_evaluation, opened.best_config, opened.best_trial) == (None,) * 4
    assert (opened.searched_parameters, opened.rungs) == ({}, [])
    for frame in (opened.trials, opened.curves, opened.evaluation, opened.timesteps, opened.layers):
        assert len(frame) == 0
        assert frame.columns[0] == "experiment"


def test_rungs_are_where_the_search_stops_trials(tmp_path):
    folder = make_experiment(tmp_path / "a")
    opened = analysis.open(folder)
    trial = opened.description["trial"]
    factor = opened.description["space"]["reduction_factor"]
    halving = SuccessiveHalving(
        first_rung=trial["report_samples"], max_samples=trial["max_samples"], reduction_factor=factor
    )
    assert opened.rungs == list(halving.rungs) != []


@pytest.mark.slow
def test_a_configuration_that_is_none_is_missing_in_the_report_and_one_sentence_in_a_comparison(tmp_path):
    folder = make_experiment(tmp_path / "a")
    for content in ("[1]", "{"):
        (folder / "best" / "config.json").write_text(content)
        write_report(folder)
        assert "- not here: a promoted mask (best/)" in (folder / "report.md").read_text()
        with pytest.raises(MaskproError, match=r"config.json (is not JSON|holds no configuration; allowed: the file)"):
            write_comparison([folder, folder])


def test_experiments_are_compared_by_what_they_found_and_how_they_differ(tmp_path, capsys):
    first = make_experiment(tmp_path / "a", trials=8, seed=1)
    second = make_experiment(tmp_path / "b", trials=12, seed=2, finished=False)
    opened = [analysis.open(folder) for folder in (first, second)]
    table = compare(opened, fidelity=0.5).set_index("experiment")
    assert table["trials"].tolist() == ["8 of 8", "12 of 12"]
    assert table.loc["a", "test recovery"] == 0.937
    assert pd.isna(table.loc["b", "test recovery"])
    different = differences(opened)
    assert different.loc["num_trials"].tolist() == [8, 12]
    assert "searcher" not in different.index
    write_comparison([first, second], fidelity=0.5)
    assert "samples to fidelity 0.5" in capsys.readouterr().out
    with pytest.raises(MaskproError, match="experiments holds 1 folder; allowed: two or more"):
        write_comparison([first])


def test_evaluations_that_cannot_be_compared_are_said_to_differ(tmp_path):
    folders = [make_experiment(tmp_path / name / "same", trials=4, seed=1) for name in "ab"]
    for folder, images, promotion in zip(folders, (1000, 50_000), ("resume", "restart"), strict=True):
        protocol = {"num_generated": images, "sampler": "ddim", "trial_id": f"trial_0000{images // 1000}"}
        for name, path, change in (
            ("final_evaluation.json", "protocol", protocol),
            ("experiment.json", "space", {"promotion": promotion}),
        ):
            content = json.loads((folder / name).read_text())
            content[path] |= change
            (folder / name).write_text(json.dumps(content))
    opened = [analysis.open(folder) for folder in folders]
    found = differences(opened)
    assert found.loc["evaluation: num_generated"].tolist() == [1000, 50_000]
    assert found.index.tolist() == ["space.promotion", "evaluation: num_generated"]
    assert compare(opened, fidelity=0.5)["evaluated trial"].tolist()[0] == 1


def test_experiments_that_do_not_differ_are_said_to(tmp_path, capsys):
    first, second = (make_experiment(tmp_path / name / "same", trials=4, seed=1) for name in "ab")
    write_comparison([first, second])
    said = capsys.readouterr().out
    assert said.endswith("\n\nno difference of their searches and best masks\n")
    assert said.splitlines()[0].strip() == "1: same 2: same", "folders of one name differ in their columns"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"models": []}'])
def test_a_final_evaluation_that_is_none_gives_one_sentence_by_every_command(tmp_path, content):
    folder = make_experiment(tmp_path / "a")
    (folder / "final_evaluation.json").write_text(content)
    for show in (print_trials, lambda folders: write_comparison([*folders, *folders])):
        with pytest.raises(
            MaskproError, match=r"final_evaluation.json (is not JSON|compares no networks; allowed: the file)"
        ):
            show([folder])
    for show in (write_figures, write_report):
        with pytest.raises(
            MaskproError, match=r"final_evaluation.json (is not JSON|compares no networks; allowed: the file)"
        ):
            show(folder)


@pytest.mark.parametrize("record", ["[]", '{"space": null}', '{"trial": 5}', '{"space": {"param_space": "lr"}}'])
def test_a_description_that_somebody_has_changed_gives_one_sentence(tmp_path, record):
    folder = make_experiment(tmp_path / "a")
    (folder / "experiment.json").write_text(record)
    with pytest.raises(
        MaskproError, match=r"experiment.json holds no description of a search; allowed: the file as it was"
    ):
        _ = analysis.open(folder).trials


@pytest.mark.parametrize("name", ["layers.csv", "dense_curve.csv"])
def test_an_empty_table_of_the_best_mask_gives_one_sentence(tmp_path, name):
    folder = make_experiment(tmp_path / "a")
    (folder / "best").mkdir(exist_ok=True)
    (folder / "best" / name).write_text("")
    with pytest.raises(MaskproError, match=rf"{name} is no table \(No columns to parse from file\); allowed: the file as"):
        write_figures(folder)


def add_report(history, number, samples, fidelity, *, trained=None, stopped=False):
    metrics = {"num_samples_seen": samples, "fidelity": fidelity, "val_error": 0.02 * (1 - fidelity)}
    history.report(number, metrics | ({} if trained is None else {"num_samples_trained": trained}), stopped=stopped)


@pytest.fixture
def promoted(tmp_path):
    """Three trials that stop after 100 samples; then the first is trained anew, to 300, and becomes the best."""
    history = History(tmp_path / "history.jsonl")
    history.session(3, time="now")
    for number, reached in ((1, 0.3), (2, 0.2), (3, 0.1)):
        history.start({"lr": 1.0}, source="optuna", seed=0)
        add_report(history, number, 100, reached, stopped=True)
    history.go_on(1, promoted=True)
    add_report(history, 1, 200, 0.25, trained=300)
    history.start({"lr": 1.0}, source="confirmation of trial 1", seed=1)
    add_report(history, 4, 100, 0.99)
    add_report(history, 1, 300, 0.8, trained=400)
    return analysis.open(tmp_path)


def test_the_cost_of_a_fidelity_is_what_all_trials_had_spent_when_one_reached_it(promoted):
    assert promoted.curves["num_samples_spent"].tolist() == [100, 500, 600, 200, 300]
    assert samples_to_reach(promoted.curves, 0.3) == 100
    assert samples_to_reach(promoted.curves, 0.5) == 600
    assert math.isnan(samples_to_reach(promoted.curves, 0.9))


def test_a_trial_that_failed_has_reached_nothing(promoted):
    assert compare([promoted], fidelity=0.3)["samples to fidelity 0.3"].tolist() == [100]
    History(promoted.folder / "history.jsonl").error(1, "it died")
    failed = analysis.open(promoted.folder)
    assert compare([failed], fidelity=0.2)["samples to fidelity 0.2"].tolist() == [200]
    assert math.isnan(compare([failed], fidelity=0.3)["samples to fidelity 0.3"].iloc[0])


def test_the_best_so_far_rises_when_a_report_was_made_and_not_where_its_trial_began(promoted):
    drawn = best_so_far(promoted.trials, promoted.curves, theme=LIGHT)
    line = next(line for line in drawn.axes[0].lines if line.get_label() == "best so far")
    assert line.get_xydata().tolist() == [[100, 0.3], [200, 0.3], [300, 0.3], [500, 0.3], [600, 0.8]]
    ends = next(line for line in drawn.axes[0].lines if line.get_label() == "suggested by the searcher")
    assert ends.get_xydata().tolist() == [[600, 0.8], [200, 0.2], [300, 0.1]]


@pytest.mark.parametrize("fidelities", [[-0.5, -0.3, -0.9], [-4.0, -3.0, -2.0]])
def test_trials_that_are_all_worse_than_their_initial_masks_are_drawn_upright(fidelities):
    trials = pd.DataFrame({"lr": [1.0, 2.0, 3.0], "fidelity": fidelities, "val_error": [1 - value for value in fidelities]})
    trials = trials.assign(trial_id=["x", "y", "z"], status="completed", seed_point=pd.NA, seconds=1.0)
    trials = trials.assign(num_samples_seen=100, num_samples_spent=[100, 200, 300])
    parameters = {"lr": {"attributes": {"low": 0.5, "high": 4.0}}}
    for drawn in (best_so_far(trials, trials, theme=LIGHT), learning_curves(trials, trials, theme=LIGHT)):
        bottom, top = drawn.axes[0].get_ylim()
        assert bottom < min(fidelities) < max(fidelities) < top
    assert fidelity_against_cost(trials, theme=LIGHT).axes[0].get_ylim()[0] < min(fidelities)
    assert parallel_coordinates(trials, parameters, theme=LIGHT).axes[1].get_ylim() == pytest.approx(
        (min(fidelities), max(fidelities))
    )


@pytest.mark.parametrize("draw", [slices, parallel_coordinates])
def test_names_of_whole_layers_are_drawn_short(draw):
    layer = "up_blocks.1.resnets.0.conv_shortcut"
    trials = pd.DataFrame(
        {"targets": ["all", layer], "fidelity": [0.1, 0.5], "val_error": [0.9, 0.5], "status": "completed"}
    )
    parameters = {"targets": {"attributes": {"choices": ["all", layer, "conv_shortcut"]}}}
    texts = {text.get_text() for text in draw(trials, parameters, theme=LIGHT).findobj(Text)}
    assert {"all", "conv_shortcut", "up_blo…hortcut"} <= texts
    assert layer not in texts


def test_large_numbers_are_drawn_as_numbers():
    trials = pd.DataFrame({"dataset_size": [2000, 50_000], "fidelity": [0.1, 0.5], "val_error": [0.9, 0.5]})
    parameters = {"dataset_size": {"attributes": {"low": 2000, "high": 50_000, "log": True}}}
    drawn = parallel_coordinates(trials.assign(status="completed"), parameters, theme=LIGHT)
    assert {"2,000", "10,000", "50,000"} <= {text.get_text() for text in drawn.findobj(Text)}


@pytest.fixture
def two_formats():
    """Trials whose initial masks differ: the rougher one leaves a fidelity more room, and ends with the larger error."""
    errors = [0.30, 0.28, 0.36, 0.34, 0.27, 0.38]
    patterns = ["2:4", "2:4", "1:4", "1:4", "2:4", "1:4"]
    initial = {"2:4": 0.4, "1:4": 1.2}
    return pd.DataFrame(
        {
            "trial_id": [f"trial_{number}" for number in range(6)],
            "pattern": patterns,
            "lr": [1.0, 2.0, 1.0, 2.0, 3.0, 3.0],
            "val_error": errors,
            "fidelity": [1 - error / initial[pattern] for error, pattern in zip(errors, patterns, strict=True)],
            "num_samples_spent": range(100, 700, 100),
            "status": "completed",
            "seed_point": pd.NA,
        }
    )


def test_the_best_so_far_is_the_best_by_validation_error(two_formats):
    line = next(
        line
        for line in best_so_far(two_formats, two_formats, theme=LIGHT).axes[0].lines
        if line.get_label() == "best so far"
    )
    expected = two_formats["fidelity"].to_numpy()[[0, 1, 1, 1, 4, 4]]
    assert line.get_ydata().tolist() == expected.tolist()
    assert two_formats["fidelity"].idxmax() != 4


def test_importances_are_of_the_validation_error(two_formats):
    lr = {"name": "FloatDistribution", "attributes": {"low": 0.5, "high": 4.0, "step": None, "log": False}}
    pattern = {"name": "CategoricalDistribution", "attributes": {"choices": ["2:4", "1:4"]}}
    parameters = {"lr": lr, "pattern": pattern}
    found = importances(two_formats, parameters)["fANOVA"]
    shifted = two_formats.assign(fidelity=[0.1, 0.5, 0.2, 0.9, 0.3, 0.7])
    assert importances(shifted, parameters)["fANOVA"] == found
    with pytest.raises(MaskproError, match="6 trials have a val_error; different values: 1; allowed: at least 4 trials"):
        importances(two_formats.assign(val_error=0.3), parameters)


@pytest.mark.parametrize("state", ["no trial", "no report", "all failed", "all died", "nothing but a warm start"])
def test_an_experiment_that_came_to_nothing_is_shown_by_every_command(tmp_path, capsys, state):
    history = History(tmp_path / "history.jsonl")
    if state == "nothing but a warm start":
        history.add_warm_start({"lr": 1.0}, 0.1, "x")
    else:
        history.session(2, time="2026-01-01T00:00:00+00:00")
    failed = {"num_samples_seen": 100, "val_loss": 0.9, "recovery": None, "done": True, "failure": "not finite"}
    for number in (1, 2) if state in ("no report", "all failed", "all died") else ():
        history.start({"lr": float(number)}, source="optuna", seed=0)
        if state == "all failed":
            history.report(number, failed, stopped=False)
        elif state == "all died":
            history.error(number, "no memory")
    print_trials([tmp_path])
    shown = capsys.readouterr().out
    assert "no final evaluation yet" in shown
    write_figures(tmp_path)
    write_report(tmp_path)
    assert (tmp_path / "report.html").is_file()
    write_comparison([tmp_path, tmp_path])
    compared = capsys.readouterr().out
    assert "trials" in compared
    assert not any(nothing in shown + compared for nothing in ("NaN", "nan", "None", "<NA>"))


def test_points_that_lie_together_have_one_number():
    """Of shares in per cent and fidelities; the first of each cluster keeps its number."""
    assert numbered_points([99.0, 60.0, 58.0, 55.0, 20.0, 19.0], [0.0, 0.5, 0.51, 0.52, 0.9, 0.97]) == [0, 1, 3, 4, 5]
