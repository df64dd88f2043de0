"""Files that somebody else has made: no code of theirs is run, and no text of theirs is taken for a path or for HTML.

Others of the kind: models with code in them and indexes that name other folders (tests/test_models_as_found.py), programs
of features (tests/evaluation/test_features.py), layer names of a mask file (tests/test_mask_file.py), image bombs and
pickled data sets (tests/images).
"""

from __future__ import annotations

import json
import pickle
from contextlib import suppress

import pytest

from analysis.experiment import OpenedExperiment
from analysis.report import gather, render_html, render_markdown
from benchmarks.made_up_experiment import make_experiment
from maskpro.errors import MaskproError
from maskpro.mask_file import inspect_mask_file, load_mask_file
from maskpro.schedule.checkpoints import COUNTERS_FILE, part_file, read_counters, read_part
from maskpro.schedule.history import PARTS, History
from maskpro.schedule.lock import is_held
from maskpro.schedule.remnants import is_remnant
from maskpro.tuning.command import read_experiment


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


@pytest.fixture
def harmful(tmp_path, monkeypatch):
    """A pickle that leaves a file where it is loaded."""
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(Harmful())
    pickle.loads(content).close()
    assert (tmp_path / "harm").exists()
    (tmp_path / "harm").unlink()
    yield content
    assert not (tmp_path / "harm").exists()


def test_pickles_in_place_of_masks_and_checkpoints_are_not_loaded(harmful, tmp_path):
    for name in (*map(part_file, PARTS), COUNTERS_FILE, "masks.safetensors"):
        (tmp_path / name).write_bytes(harmful)
    for part in PARTS:
        with pytest.raises(MaskproError, match=r"checkpoint .* is damaged: .* is no safetensors file"):
            read_part(tmp_path, part)
    for read in (load_mask_file, inspect_mask_file):
        with pytest.raises(MaskproError, match="is damaged or not safetensors"):
            read(tmp_path / "masks.safetensors")
    with pytest.raises(MaskproError, match="is not JSON"):
        read_counters(tmp_path)


def test_pickles_in_place_of_an_experiments_files_are_not_loaded(harmful, tmp_path):
    whole = make_experiment(tmp_path / "made_up", trials=4, num_dense=True)
    for path in [path for path in whole.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.write_bytes(harmful)
        with suppress(MaskproError):
            render_markdown(gather(OpenedExperiment(whole)))
        with suppress(MaskproError):
            read_experiment(whole, "resume")
        _ = is_remnant(whole), is_held(whole)
        path.write_bytes(content)


@pytest.mark.parametrize("path", ["", "..", "../elsewhere", "/etc", "trial_00001/../..", "a/b/c", "trial_00001/", "a\nb"])
def test_a_checkpoint_that_would_lie_elsewhere_is_damage(tmp_path, path):
    history = History(tmp_path / "history.jsonl")
    history.start({"lr": 1.0}, source="optuna", seed=0)
    history.checkpoint(1, path, 100)
    with pytest.raises(MaskproError, match=r"is broken in line 2 \(TypeError: path is"):
        History(tmp_path / "history.jsonl")


SCRIPT = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_no_text_of_an_experiment_is_html_in_its_report(tmp_path):
    folder = make_experiment(tmp_path / SCRIPT.replace("/", "_"), trials=6, num_dense=True)
    evaluated = json.loads((folder / "final_evaluation.json").read_text())
    for name in ("picked_by", "warnings", "pictures"):
        evaluated[name] = {"warnings": [SCRIPT], "pictures": {"a.png": SCRIPT}}.get(name, SCRIPT)
    evaluated["protocol"] |= {SCRIPT: SCRIPT, "frechet_features": SCRIPT, "num_generated": 2, "frechet_reference": SCRIPT}
    evaluated["candidates"] = [{SCRIPT: SCRIPT}, {"trial": SCRIPT}]
    evaluated["models"][SCRIPT] = {SCRIPT: SCRIPT}
    (folder / "final_evaluation.json").write_text(json.dumps(evaluated))
    described = json.loads((folder / "experiment.json").read_text())
    described["space"]["source"] = SCRIPT
    (folder / "experiment.json").write_text(json.dumps(described | {SCRIPT: SCRIPT}))
    (folder / "best" / "config.json").write_text(json.dumps({SCRIPT: {"layer": SCRIPT}}))
    history = (folder / "history.jsonl").read_text().replace('"source": "optuna"', f'"source": {json.dumps(SCRIPT)}')
    error = json.dumps({"event": "error", "trial": 6, "text": SCRIPT})
    (folder / "history.jsonl").write_text(f"{history}{error}\n")
    report = gather(OpenedExperiment(folder))
    page = render_html(report, {}, {SCRIPT: "data:,"})
    assert page.count("&lt;script&gt;alert(1)") > 10
    assert SCRIPT in report.failures[-1]
    assert "<script" not in page
    assert "<img src=x" not in page
