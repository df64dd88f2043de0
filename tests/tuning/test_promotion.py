"""Which trials are promoted, which one is picked, and that a failed evaluation never loses the masks."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from shared_fixtures import CPU

from maskpro.errors import MaskproError
from maskpro.initial_masks import magnitude_masked_model, random_mask
from maskpro.machine.interruption import Interruption
from maskpro.mask_file import load_mask_file
from maskpro.masked_model import is_target, maskable_layers
from maskpro.pattern import NMPattern
from maskpro.schedule.history import TrialRecord
from maskpro.schedule.state import PlannedTrials
from maskpro.search_options import SearchOptions
from maskpro.tuning import main_job, promotion
from maskpro.tuning.experiment import open_experiment
from maskpro.tuning.promotion import best_trials, confirmation_plans, promote, selected_trials, write_best
from maskpro.tuning.search import prepare_search
from maskpro.tuning.shared import SharedValues
from maskpro.tuning.trainable import MaskTrainable
from maskpro.workloads.judging import PICKING_SEED

# All of them need the trials that `trained` runs.
pytestmark = pytest.mark.slow

DENSE = ("mid_block", "up_blocks.0")
SPACE = """
from ray import tune
param_space = {"lr": tune.uniform(0.5, 4.0), "logits": 1.0, "batch_size": 16, "dataset_size": 512}
seed_points = [{"lr": 2.0}, {"lr": 3.0}, {"lr": 1.0}]
num_trials = 3
num_reports = 2
"""


def record(number, *, val_error, done=True, failure="", checkpoint=100):
    metrics = {"num_samples_seen": 100, "val_error": val_error, "recovery": 0.5, "done": done, "failure": failure}
    trial = TrialRecord(number=number, params={}, source="optuna", seed=0, checkpoint_samples=checkpoint)
    trial.samples, trial.reports, trial.stopped = 100, {100: metrics}, not done
    return trial


def test_only_trials_that_ran_to_their_budget_without_failure_are_promoted():
    full, better, early = record(1, val_error=0.09), record(2, val_error=0.08), record(3, val_error=0.01, done=False)
    failed = record(4, val_error=0.01, failure="training loss is not finite")
    assert best_trials([full, better, early, failed], 1) == [better]
    assert best_trials([full, better, early, failed], 5) == [better, full]
    with pytest.raises(MaskproError, match="no trial ran to its full budget without an error, so there is no mask"):
        best_trials([early, failed], 1)


@pytest.fixture(scope="module")
def trained(few_held_out, tmp_path_factory):
    """Two of the best three seed points promoted, one fresh seed each; all trained here, without Ray."""
    tmp_path = tmp_path_factory.mktemp("promotion")
    (tmp_path / "space.py").write_text(SPACE)
    options = SearchOptions(
        space=tmp_path / "space.py",
        experiment="x",
        results_dir=tmp_path,
        max_samples=256,
        selection_samples=64,
        test_samples=64,
        num_generated=16,
        sampling_steps=2,
        scheduler="none",
        promote_top_k=2,
        confirm_seeds=1,
        dense=DENSE,
    )
    search = prepare_search(options)
    validation = search.workload.held_out_samples("validation", CPU)
    form = search.context.formats[0]
    initial = promotion.initial_masked(search.context, search.workload.model, form)
    shared = SharedValues(
        dense_val_loss=validation.judge(search.workload.model).means().loss,
        initial={form: validation.judge(initial.model).means()},
    )

    class Started(MaskTrainable):
        def setup(self, config):
            super().setup(config, context=search.context, shared=shared)

    with open_experiment(search, resume=False) as opened, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("ray.get_gpu_ids", list)
        monkeypatch.setattr("torch.set_num_threads", lambda count: None)
        history = opened.history
        state = opened.search_state()

        def run(source):
            while (trial := source.next_trial()) is not None:
                own = {"trial": trial.number, "seed": trial.seed, "checkpoint": "", "promoted": False, "budget": None}
                actor = Started({**search.space.fixed, **trial.params, **own, "folder": trial.folder})
                while not actor.train()["done"]:
                    pass
                source.report(trial.number, actor._metrics(actor._trainer, 0.0, actor._trainer.lowest))
                folder = opened.folder / "trials" / trial.name / "checkpoint_000000"
                folder.mkdir(parents=True)
                actor.save_checkpoint(str(folder))
                history.checkpoint(trial.number, f"{trial.name}/checkpoint_000000", trial.samples)
                source.finish(trial.number)

        run(state)
        opened.remove_unneeded(state)  # the final evaluation needs no more than what is left then
        run(PlannedTrials(history, confirmation_plans(opened)))
        opened.remove_unneeded(state)
        yield opened


@pytest.fixture
def experiment(trained):
    """The trained one, as nothing has been promoted yet."""
    for name in ("evaluation", "best"):
        shutil.rmtree(trained.folder / name, ignore_errors=True)
    (trained.folder / "final_evaluation.json").unlink(missing_ok=True)
    return trained


def test_the_luckiest_of_the_best_trials_is_told_from_the_best(experiment, monkeypatch):
    """Selection samples decide; what they have judged is kept, and the test images have no part in it."""
    contenders = best_trials(experiment.history.searched, 3)
    held_out = experiment.search.workload.held_out_samples("selection", CPU)
    errors = {
        record.name: held_out.judge(promotion.load_masks(experiment, record).model).means().error for record in contenders
    }
    expected = sorted(contenders, key=lambda record: errors[record.name])[:2]
    assert selected_trials(experiment) == expected
    path = experiment.folder / "evaluation" / "selection.json"
    assert json.loads(path.read_text()) == {"num_samples": 64, "errors": errors}
    worst = max(errors, key=errors.get)
    path.write_text(json.dumps({"num_samples": 64, "errors": errors | {worst: 0.0}}))
    assert selected_trials(experiment)[0].name == worst, "nothing is judged twice"
    assert promote(experiment)["candidates"][0]["trial"] == selected_trials(experiment)[0].number


def test_another_number_of_selection_samples_judges_anew(experiment):
    """Errors on other samples can't be compared with these: a session that names another number starts again."""
    selected_trials(experiment)
    path = experiment.folder / "evaluation" / "selection.json"
    before = json.loads(path.read_text())
    budgets = replace(experiment.search.workload.budgets, selection_samples=32)
    workload = replace(experiment.search.workload, budgets=budgets)
    expected = {
        trial.name: workload.held_out_samples("selection", CPU).judge(promotion.load_masks(experiment, trial).model).means()
        for trial in best_trials(experiment.history.searched, 3)
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(experiment, "search", replace(experiment.search, workload=workload))
        selected_trials(experiment)
    after = json.loads(path.read_text())
    assert after == {"num_samples": 32, "errors": {name: means.error for name, means in expected.items()}}
    assert set(after["errors"].values()).isdisjoint(before["errors"].values())


def test_the_best_are_confirmed_with_fresh_seeds_and_the_lowest_distance_is_picked(experiment):
    history = experiment.history
    best = selected_trials(experiment)
    confirmations = [trial for trial in history.trials.values() if trial.is_confirmation]
    assert [trial.source for trial in confirmations] == [f"confirmation of trial {trial.number}" for trial in best]
    assert [trial.params for trial in confirmations] == [trial.params for trial in best]
    assert all(trial.seed == 1 for trial in confirmations)
    assert not experiment.is_left(confirmation_plans(experiment)), "they are run once"
    report = promote(experiment)
    rows = {row["trial"]: row for row in report["candidates"]}
    assert rows.keys() == {trial.number for trial in (*best, *confirmations)}
    means = {
        trial.number: (rows[trial.number]["frechet_distance"] + rows[fresh.number]["frechet_distance"]) / 2
        for trial, fresh in zip(best, confirmations, strict=True)
    }
    group = min(means, key=means.get)
    pair = {group, next(trial.number for trial in confirmations if trial.source.endswith(f" {group}"))}
    picked = min(pair, key=lambda number: rows[number]["frechet_distance"])
    config = json.loads((experiment.folder / "best" / "config.json").read_text())
    assert config["trial"] == picked
    assert config["config"]["seed"] == rows[picked]["seed"]
    assert report["models"]["learned"]["frechet_distance"] != rows[picked]["frechet_distance"], "other images are reported"
    assert report["models"]["learned"]["test_loss"] == rows[picked]["test_loss"]
    assert report["protocol"]["seeds"]["generation"] != PICKING_SEED
    assert report["picked_by"] == "Frechet distance"
    assert report["prediction"]["num_candidates"] == 4
    assert -1 <= report["prediction"]["spearman_of_val_error_and_frechet_distance"] <= 1
    assert json.loads((experiment.folder / "final_evaluation.json").read_text()) == report
    for name in ("dense", "initial", "learned"):
        assert (experiment.folder / "best" / f"samples_{name}.png").is_file()
    protocol = report["protocol"]
    assert protocol["num_loss_samples"]["test"] == 64
    assert (protocol["sampler"], protocol["sampling_steps"], protocol["num_generated"]) == ("ddim", 2, 16)
    assert protocol["trial_seed"] == rows[picked]["seed"]


def test_a_failed_evaluation_keeps_the_masks_and_goes_on_from_what_it_has_done(experiment, monkeypatch):
    spoken = []
    original = promotion.say

    def fail(text):
        spoken.append(text)
        if text.startswith("evaluated dense"):
            raise MemoryError
        original(text)

    monkeypatch.setattr(promotion, "say", fail)
    with pytest.raises(MemoryError):
        promote(experiment)
    masks = load_mask_file(experiment.folder / "best" / "masks.safetensors")
    assert not (experiment.folder / "final_evaluation.json").exists()
    spoken.clear()
    monkeypatch.setattr(promotion, "say", spoken.append)
    report = promote(experiment)
    assert masks.provenance["trial_id"] == report["protocol"]["trial_id"], "what picks was over when it failed"
    evaluated = {text.split(":")[0]: "from the cache" in text for text in spoken if text.startswith("evaluated ")}
    candidates = {f"evaluated trial_{row['trial']:05d}": True for row in report["candidates"]}
    others = {"evaluated dense": True, "evaluated initial": False, "evaluated learned": False}
    assert evaluated == candidates | others
    spoken.clear()
    promote(experiment)
    assert sum("from the cache" in text for text in spoken) == len(evaluated) == 7


def test_the_promoted_mask_is_the_best_validated_one(experiment):
    (best,) = best_trials(experiment.history.searched, 1)
    masked = promotion.load_masks(experiment, best)
    validation = experiment.search.workload.held_out_samples("validation", CPU)
    kept = validation.judge(masked.model).means()
    assert kept == (best.last["best_val_loss"], best.last["best_val_error"])
    assert kept.error < best.last["initial_val_error"]
    masked.set_mask(random_mask(masked, generator=torch.Generator().manual_seed(0)))
    assert validation.judge(masked.model).means().error > kept.error


def test_a_record_of_a_mask_has_the_figures_of_that_mask_alone(experiment, monkeypatch):
    """Of the mask that was kept, where a trial's lowest loss was another mask's."""
    (best,) = best_trials(experiment.history.searched, 1)
    last = best.last
    kept, initial = last["best_val_loss"], last["initial_val_loss"]
    dense = initial - (initial - last["val_loss"]) / last["recovery"]
    lower = kept - 0.3 * (initial - kept)
    luckier = {"val_loss": lower, "recovery": (initial - lower) / (initial - dense)}
    monkeypatch.setitem(best.reports, best.samples, last | luckier)
    assert best.last["val_loss"] == lower
    write_best(experiment, best)
    config = json.loads((experiment.folder / "best" / "config.json").read_text())
    provenance = load_mask_file(experiment.folder / "best" / "masks.safetensors").provenance
    rows = {row["trial"]: row for row in promote(experiment)["candidates"]}
    expected = pytest.approx((initial - kept) / (initial - dense))
    assert config["val_loss"] == provenance["val_loss"] == rows[best.number]["val_loss"] == kept
    assert config["recovery"] == provenance["recovery"] == rows[best.number]["val_recovery"] == expected


def test_layers_that_stay_dense_by_choice_do_so_in_all_that_is_promoted(experiment):
    report = promote(experiment)
    network = experiment.search.workload.model
    chosen = [name for name in maskable_layers(network) if is_target(name, DENSE)]
    best = experiment.folder / "best"
    content = load_mask_file(best / "masks.safetensors")
    assert content.masks.keys() == maskable_layers(network).keys() - set(chosen)
    saved = maskable_layers(DDPMPipeline.from_pretrained(best / "checkpoint").unet)
    for name, weight in maskable_layers(network).items():
        assert torch.equal(saved[name], weight) if name in chosen else (saved[name] == 0).float().mean() == 0.5
    reasons = dict.fromkeys(chosen, "is dense by choice")
    for record in (report, content.provenance, experiment.search.describe()["workload"]):
        assert {row["layer"]: row["why"] for row in record["dense_layers"]["layers"]} == reasons
    assert pd.read_csv(best / "layers.csv", index_col="layer")["why_dense"].dropna().to_dict() == reasons
    held_out = experiment.search.workload.held_out_samples("test", CPU)
    initial = magnitude_masked_model(network, pattern=NMPattern(2, 4), layout="channel", covered=content.masks).model
    assert report["models"]["initial"]["test_loss"] == pytest.approx(held_out.judge(initial).means().loss, rel=1e-5)


def test_a_search_that_ends_early_names_the_fidelity_of_the_masks_that_it_writes(experiment, monkeypatch, capsys):
    (best,) = best_trials(experiment.history.searched, 1)
    monkeypatch.setitem(best.reports, best.samples, best.last | {"fidelity": -0.321})
    interruption = Interruption()
    interruption.reason = "Ctrl-C"
    assert main_job._leave(experiment, interruption) == 130
    kept = json.loads((experiment.folder / "best" / "config.json").read_text())["fidelity"]
    assert kept == 1 - best.last["best_val_error"] / best.last["initial_val_error"] > 0
    said = capsys.readouterr().out
    assert f"best so far: trial {best.number}, fidelity {kept:.3f}; its masks are in best/, not evaluated\n" in said


def test_an_evaluation_is_of_the_mask_in_best_or_there_is_none(experiment):
    """An extended search that is stopped early writes another mask, which has not been evaluated."""
    (experiment.folder / "final_evaluation.json").write_text("{}")
    promotion.write_best(experiment, best_trials(experiment.history.searched, 2)[1])
    assert not (experiment.folder / "final_evaluation.json").exists()


def test_a_broken_checkpoint_leaves_the_earlier_best_folder(experiment):
    first, second = best_trials(experiment.history.searched, 2)
    write_best(experiment, first)
    tensors = experiment.folder / "trials" / second.name / "checkpoint_000000" / "mask.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(b"torn")
    with pytest.raises(Exception, match="header"):
        write_best(experiment, second)
    tensors.write_bytes(whole)
    assert load_mask_file(experiment.folder / "best" / "masks.safetensors").provenance["trial_id"] == first.name


def test_without_distances_the_selection_samples_decide(experiment):
    """Over the seeds of each trial's parameters; the validation error, which the search took the lowest of, does not."""
    options = experiment.search.options
    object.__setattr__(options, "frechet", False)
    try:
        report = promote(experiment)
    finally:
        object.__setattr__(options, "frechet", True)
    errors = json.loads((experiment.folder / "evaluation" / "selection.json").read_text())["errors"]
    names = {row["trial"]: f"trial_{row['trial']:05d}" for row in report["candidates"]}
    assert set(names.values()) <= set(errors)
    picked = json.loads((experiment.folder / "best" / "config.json").read_text())["trial_id"]
    groups = {}
    for row in report["candidates"]:
        key = row["trial"] if "confirmation" not in row["source"] else int(row["source"].split()[-1])
        groups.setdefault(key, []).append(errors[names[row["trial"]]])
    lowest = min(groups.values(), key=lambda group: sum(group) / len(group))
    assert errors[picked] == min(lowest)
    assert report["picked_by"] == "selection error"
    assert report["prediction"] is None
    assert report["distance_to_dense"] == {"frechet_distance": None, "kernel_distance": None}
