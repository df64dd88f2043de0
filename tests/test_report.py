"""The report of an experiment: what is on the page, in a browser, and what it says of experiments that lack something."""

import json
import math
import re
import shutil

import pytest

from analysis.experiment import OpenedExperiment
from analysis.figures.learning import pareto_front as draw_front
from analysis.figures.theme import LIGHT
from analysis.plots import all_figures, comparable
from analysis.report import CAPTIONS, gather, write_report
from benchmarks.made_up_experiment import make_experiment
from maskpro.errors import MaskproError
from maskpro.schedule.history import History


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(make_experiment(tmp_path_factory.mktemp("results") / "whole <&>", num_dense=True))


def _chromium():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(_chromium() is None, reason="needs Chromium (CI installs it)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_figures_and_tables_and_asks_no_network(report, scheme, width, tmp_path):
    from playwright.sync_api import sync_playwright

    said, asked = [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        for name in CAPTIONS:
            image = page.locator(f"figure#{name} img")
            image.scroll_into_view_if_needed()
            shown = image.evaluate("image => [image.currentSrc, image.naturalWidth, image.getBoundingClientRect().width]")
            assert shown[1] > 500, name
            assert 200 < shown[2] <= width
        assert page.locator("table#trials tbody tr").count() == 12
        assert page.locator("table#evaluation tbody tr").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "only tables scroll sideways"
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 29)"}[scheme]
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_light_and_dark_figures_differ_and_names_are_escaped(report):
    text = report.read_text()
    assert text.count('media="(prefers-color-scheme: dark)"') >= len(CAPTIONS)
    assert "<title>whole &lt;&amp;&gt; - maskpro</title>" in text
    markdown = report.with_name("report.md").read_text()
    assert "Fidelity of the learned mask 0.9100 ± 0.0020; recovery 0.937" in markdown
    assert "Frechet distance +0.60 ± 0.20 beside the dense network's" in markdown
    assert "| dense | 1 | 0.002 | 0.076 | 0.076 |" in markdown
    assert "_by_" not in markdown


def test_the_front_of_a_search_of_two_objectives_is_listed(report):
    opened = OpenedExperiment(report.parent)
    front, promoted = opened.pareto_front, opened.promoted
    assert {"trial", "num_dense", "sparse_multiply_adds_share", "val_error", "common_fidelity"} < set(front.columns)
    assert opened.trials["sparse_multiply_adds_share"].tolist() == [1 - count / 10 for count in opened.trials["num_dense"]]
    facts = dict(gather(opened).facts)
    assert facts["evaluated trial"] == str(promoted.number)
    assert facts["its num_dense"] == str(promoted.params["num_dense"])
    assert facts["its multiply-adds that stay sparse"] == f"{promoted.last['sparse_multiply_adds_share']:.1%}"
    assert facts["trials of the Pareto front"] == str(len(front))
    text, markdown = report.read_text(), report.with_name("report.md").read_text()
    assert text.count("<tr", text.index('id="front"'), text.index("</table>", text.index('id="front"'))) == len(front) + 1
    assert "## Pareto front\n\n| trial | num_dense |" in markdown
    figure = draw_front(opened.trials, front, promoted=promoted, theme=LIGHT)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["Pareto front"].get_drawstyle() == "steps-post", "what a share has come to holds for all smaller ones"
    assert lines["Pareto front"].get_ydata().tolist() == front["val_error"].tolist()
    assert list(lines[f"promoted: trial {promoted.number}"].get_ydata()) == [promoted.last["val_error"]]
    assert len(lines["ran to its budget"].get_ydata()) == 12


def test_figures_of_a_search_of_two_objectives_compare_fidelities_of_one_initial_mask(report):
    opened = OpenedExperiment(report.parent)
    common = {
        (trial.name, samples): one["common_fidelity"]
        for trial in opened.history.searched
        for samples, one in trial.reports.items()
    }
    curves = comparable(opened.curves)
    assert (
        dict(zip(zip(curves["trial_id"], curves["num_samples_seen"], strict=True), curves["fidelity"], strict=True))
        == common
    )
    assert comparable(opened.trials)["fidelity"].tolist() == opened.trials["common_fidelity"].tolist()
    assert opened.trials["fidelity"].tolist() != opened.trials["common_fidelity"].tolist()
    unknown = opened.trials.assign(common_fidelity=math.nan)
    assert comparable(unknown)["fidelity"].tolist() == opened.trials["fidelity"].tolist(), "num_dense 0 is not searched"


def test_where_only_a_failed_trial_leaves_enough_sparse_there_is_no_best_so_far(tmp_path):
    history = History(tmp_path / "history.jsonl")
    history.session(2, time="2026-01-01T00:00:00+00:00", min_sparse_share=0.8)
    for share, outcome in ((0.5, {"fidelity": 0.5}), (0.9, {"failure": "not finite"})):
        number = history.start({"num_dense": 0}, source="optuna", seed=0).number
        figures = {"num_samples_seen": 100, "val_error": 0.1, "sparse_multiply_adds_share": share, "done": True}
        history.report(number, figures | outcome, stopped=False)
        history.checkpoint(number, "somewhere", 100)
    (figures,), missing = all_figures(OpenedExperiment(tmp_path), LIGHT)
    assert "best_so_far" not in figures
    assert missing["best_so_far"] == "no trial has left min_sparse_share of the multiply-adds sparse"


@pytest.mark.slow
def test_a_search_for_the_error_alone_has_no_front_and_does_not_miss_it(tmp_path):
    text = write_report(make_experiment(tmp_path / "one")).read_text()
    assert "areto" not in text


@pytest.mark.slow
def test_the_title_of_a_name_with_a_line_break_is_one_line(tmp_path):
    report = write_report(make_experiment(tmp_path / "ü[4]%20#?\nz", finished=False))
    assert report.with_name("report.md").read_text().splitlines()[0] == "# ü[4]%20#?\\nz"
    assert "<title>ü[4]%20#?\\nz - maskpro</title>" in report.read_text()


@pytest.mark.slow
def test_a_search_that_runs_or_was_killed_has_a_report_of_what_is_there(tmp_path):
    folder = make_experiment(tmp_path / "killed", finished=False)
    path = folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-40])  # the last line is torn
    text = write_report(folder).read_text()
    assert "Not evaluated yet. The best trial so far has a fidelity of" in text
    assert 'id="missing"' in text
    assert "the final evaluation (the search has not come to its end)" in text
    assert 'id="learning_curves"' in text
    assert 'id="timestep_losses"' not in text


@pytest.mark.slow
def test_warnings_and_features_stand_beside_the_distances(tmp_path):
    folder = make_experiment(tmp_path / "few")
    path = folder / "final_evaluation.json"
    evaluated = json.loads(path.read_text())
    evaluated["warnings"] = ["2 generated images are too few for <64> features"]
    evaluated["protocol"] |= {
        "frechet_features": "mine.pt (TorchScript)",
        "frechet_reference": "file real.npz",
        "num_generated": 1024,
    }
    path.write_text(json.dumps(evaluated))
    html, markdown = write_report(folder).read_text(), (folder / "report.md").read_text()
    assert "Warning: 2 generated images are too few for &lt;64&gt; features." in html
    assert "**Warning:** 2 generated images are too few for <64> features." in markdown
    for text in (html, markdown):
        assert "Frechet distance: 1,024 images of each network against file real.npz, in the features mine.pt (" in text
        assert "FID" not in re.sub(r"data:image[^\"]*", "", text)


@pytest.mark.slow
def test_the_evaluated_trial_and_all_that_it_was_picked_from_are_shown(tmp_path):
    folder = make_experiment(tmp_path / "top")
    path = folder / "final_evaluation.json"
    evaluated = json.loads(path.read_text())
    rows = [{"trial": number, "source": "<optuna>", "frechet_distance": 20.0 - number} for number in (4, 7)]
    evaluated |= {"picked_by": "Frechet distance", "candidates": rows}
    evaluated["protocol"]["trial_id"] = "trial_00007"
    path.write_text(json.dumps(evaluated))
    assert gather(OpenedExperiment(folder)).facts[2] == ("evaluated trial", "7")
    html, markdown = write_report(folder).read_text(), (folder / "report.md").read_text()
    assert "<h2>Candidates, picked by Frechet distance</h2>" in html
    assert "<td>&lt;optuna&gt;</td>" in html
    assert "## Candidates, picked by Frechet distance\n\n| trial | source | frechet_distance |" in markdown
    assert "| 7 | <optuna> | 13 |" in markdown
    path.write_text(json.dumps(evaluated | {"candidates": rows[:1]}))
    assert gather(OpenedExperiment(folder)).candidates.empty, "of one there was no choice"


def test_an_evaluation_from_before_the_search_was_extended_is_said_to_be(tmp_path):
    folder = make_experiment(tmp_path / "extended")
    text = "the one that is shown is an earlier session's"
    assert not any(text in what for what in gather(OpenedExperiment(folder)).missing)
    History(folder / "history.jsonl").session(20, time="later")
    assert any(text in what for what in gather(OpenedExperiment(folder)).missing)


@pytest.mark.slow
def test_texts_of_any_length_are_whole_and_escaped(tmp_path):
    folder = make_experiment(tmp_path / "long")
    described = json.loads((folder / "experiment.json").read_text())
    described["space"]["source"] = "lr = 1\n\nif lr < 2:\n    lr = 2  # </pre>\n"
    (folder / "experiment.json").write_text(json.dumps(described | {"note": "<b>" + "long " * 100 + "end", "empty": {}}))
    text = write_report(folder).read_text()
    assert '<pre class="wide">lr = 1\n\nif lr &lt; 2:\n    lr = 2  # &lt;/pre&gt;\n</pre>' in text
    assert text.count("if lr") == 1
    assert "&lt;b&gt;" + "long " * 100 + "end</td>" in text
    assert "<b>long" not in text


def write_history(folder, *events):
    folder.mkdir()
    lines = [{"event": "session", "num_trials": 3, "time": "2026-01-01"}, *events]
    (folder / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    return folder


def trial(number):
    return {"event": "trial", "trial": number, "params": {"lr": 1.0}, "source": "optuna", "seed": 0}


def report_of(number, **metrics):
    metrics = {"num_samples_seen": 100, "val_error": 0.01, "fidelity": 0.5, "seconds": 1.0, "done": False, **metrics}
    return {"event": "report", "trial": number, "metrics": metrics, "stopped": False}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], "No trial has reported yet."),
        ([trial(1), trial(2)], "No trial has reported yet."),
        ([trial(1), report_of(1)], "The best trial so far has a fidelity of 0.500"),
        ([trial(1), report_of(1, fidelity=None, val_error=0.1)], "Not evaluated yet."),
        ([trial(1), report_of(1, failure="loss <is> not finite")], "trial 1: loss &lt;is&gt; not finite"),
        ([trial(1), {"event": "error", "trial": 1, "text": "it died"}], "trial 1: it died"),
        ([trial(1), {"event": "error", "trial": 1, "text": "it died"}], "All 1 trials that were started have failed."),
    ],
)
def test_hardly_begun_experiments_of_any_version_have_a_report(tmp_path, events, expected):
    """Without experiment.json, which says what was searched: of that the report says that it is missing."""
    text = write_report(write_history(tmp_path / "young", *events)).read_text()
    assert expected in text
    assert "the description of the search (experiment.json)" in text


def test_what_is_no_experiment_or_broken_gives_one_sentence(tmp_path):
    with pytest.raises(MaskproError, match=r"no history.jsonl in .*; allowed: the folder of a search"):
        write_report(tmp_path)
    folder = make_experiment(tmp_path / "broken", finished=False)
    path = folder / "history.jsonl"
    path.write_text(path.read_text().replace('"event"', "event", 1))
    with pytest.raises(MaskproError, match=r"history.jsonl is broken in line 1"):
        write_report(folder)
    assert not (folder / "report.html").exists()
