"""Another kind of network than a diffusion network, of one file: trained, searched, promoted, resumed and reported."""

import datetime

import optuna
import pandas as pd
import pytest
import ray
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from shared_fixtures import RAY_IN_PROCESS, with_two_nodes
from typer.testing import CliRunner

import analysis
from analysis.report import write_report
from benchmarks.toy_workload import TOY, WEIGHTS_FILE, load_toy, perceptron
from maskpro.cli import app
from maskpro.errors import MaskproError
from maskpro.files import read_json
from maskpro.mask_file import load_mask_file
from maskpro.masked_model import model_hash
from maskpro.search_options import JobOptions, SearchOptions
from maskpro.tuning.command import parse_command
from maskpro.tuning.main_job import run_main_job
from maskpro.tuning.search import prepare_search
from maskpro.workloads import WORKLOADS

SPACE = """
from ray import tune
workload = "toy"
num_trials = 2
num_reports = 2
scheduler = "none"
param_space = {"lr": tune.loguniform(2.0, 8.0), "logits": 1.0, "batch_size": 8, "dataset_size": 64}
seed_points = [{"lr": 5.0}]
"""


pytestmark = RAY_IN_PROCESS


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "toy", TOY)


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_the_single_steps_know_no_kind_of_network(tmp_path):
    settings = ("--dataset-size", 64, "--batch-size", 8, "--epoch", 8, "--lr", 5, "--logits", 1, "--device", "cpu")
    assert "held-out fidelity 0." in run("train", "--workload", "toy", "--output-dir", tmp_path / "run", *settings)
    masks = tmp_path / "run" / "masks.safetensors"
    content = load_mask_file(masks)
    assert content.base_hash == model_hash(perceptron())
    learned = load_toy(str(tmp_path / "run" / "checkpoint")).model.state_dict()
    for name, mask in content.masks.items():
        assert torch.equal(learned[f"{name}.weight"] != 0, mask)
        assert (mask.view(-1, 4).sum(dim=1) == 2).all()
    evaluated = ("evaluate", "--workload", "toy", "--device", "cpu")
    run(*evaluated, "--masks", masks, "--output-dir", tmp_path / "judged")
    report = read_json(tmp_path / "judged" / "report.json")
    figures = report["models"]
    assert figures["dense"]["test_error"] == 0 < figures["learned"]["test_error"] < figures["initial"]["test_error"]
    assert 0 < report["fidelity"] < 1
    assert sorted(path.name for path in (tmp_path / "judged").glob("*.png")) == sorted(report["pictures"])
    # A pruned network, and its masks read back.
    run("prune", "--workload", "toy", "--output-dir", tmp_path / "pruned")
    assert (tmp_path / "pruned" / WEIGHTS_FILE).is_file()
    again = ("--checkpoint-path", tmp_path / "run" / "checkpoint", "--output-dir", tmp_path / "again")
    run(*evaluated, *again)
    assert read_json(tmp_path / "again" / "report.json")["models"] == figures
    shown = run("doctor", "--workload", "toy")
    assert "network: Sequential" in shown
    assert "sampler" not in shown


def test_an_option_of_another_kind_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(MaskproError, match=r"^resize is box with workload toy; allowed: noise, num_vectors$"):
        run("train", "--workload", "toy", "--resize", "box", "--output-dir", tmp_path / "run")
    with pytest.raises(MaskproError, match=r"^sampler is ddpm with workload toy; allowed: noise, num_vectors$"):
        run("evaluate", "--workload", "toy", "--sampler", "ddpm", "--masks", "m", "--output-dir", tmp_path / "judged")
    with pytest.raises(MaskproError, match=r"^timesteps is importance with workload toy, which has none; allowed: uniform"):
        run("train", "--workload", "toy", "--timesteps", "importance", "--output-dir", tmp_path / "run")


def test_a_space_with_timesteps_by_importance_is_refused_before_the_search(tmp_path):
    for timesteps in ('"importance"', 'tune.choice(["uniform", "importance"])'):
        params = f'param_space = {{"lr": tune.uniform(0.1, 1), "timesteps": {timesteps}}}'
        (tmp_path / "space.py").write_text(f"from ray import tune\n{params}\nseed_points = []\n")
        options = SearchOptions(
            space=tmp_path / "space.py", experiment="x", results_dir=tmp_path / "results", workload="toy"
        )
        with pytest.raises(MaskproError, match=r"^timesteps is importance with workload toy, which has none; allowed"):
            prepare_search(options)
    assert not (tmp_path / "results").exists()


def searched(place, space, cluster):
    """The folder of an experiment that has run to its end."""
    (place / "space.py").write_text(space)
    address = with_two_nodes(cluster).address
    options = {"experiment": "x", "results_dir": place / "results", "gpus_per_trial": 0.0, "address": address}
    given = {"space": place / "space.py", **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORKLOADS, "toy", TOY)
        search = parse_command(given, JobOptions(), now=datetime.datetime.now())
        try:
            assert run_main_job(search, write_report, resume=False) == 0
        finally:
            ray.shutdown()
    return place / "results" / "x"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, started_cluster):
    """An experiment of two trials."""
    return searched(tmp_path_factory.mktemp("toy"), SPACE, started_cluster)


@pytest.mark.slow
def test_a_search_promotes_judges_and_reports_it(folder):
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["status"].tolist() == ["completed", "completed"]
    evaluated = read_json(folder / "final_evaluation.json")
    assert 0 < evaluated["fidelity"] < 1
    assert set(evaluated["models"]) == {"dense", "initial", "learned"}
    assert evaluated["models"]["learned"]["largest_error"] < evaluated["models"]["initial"]["largest_error"]
    network = load_toy(str(folder / "best" / "checkpoint")).model.state_dict()
    assert all(
        torch.equal(network[f"{name}.weight"] != 0, mask)
        for name, mask in load_mask_file(folder / "best" / "masks.safetensors").masks.items()
    )
    page = write_report(folder).read_text()
    assert "timestep losses" not in page, "it has none, and lacks none"
    for text in ("largest error", "outputs against targets: learned"):
        assert text in page
    assert (folder / "report.md").is_file()


@pytest.mark.slow
def test_its_experiment_is_resumed(folder):
    described = read_json(folder / "experiment.json")
    assert described["workload"]["name"] == "toy"
    again = parse_command({}, JobOptions(resume=folder), now=datetime.datetime.now())
    assert again.describe()["workload"] == described["workload"]
    assert again.evaluation.options.num_vectors == 32
    with pytest.raises(MaskproError, match=r"^sampler is ddpm with workload toy; allowed: noise, num_vectors$"):
        parse_command({"sampler": "ddpm"}, JobOptions(resume=folder), now=datetime.datetime.now())


@pytest.mark.slow
def test_a_search_of_dense_layers_promotes_the_best_that_leaves_enough_sparse_and_shows_its_front(
    tmp_path, capfd, started_cluster
):
    space = SPACE.replace('"logits": 1.0', '"logits": 1.0, "num_dense": tune.choice([0, 1, 2])').replace(
        "trials = 2", "trials = 4"
    )
    points = ", ".join(f'{{"lr": 5.0, "num_dense": {count}}}' for count in (0, 1, 2))
    folder = searched(tmp_path, space.replace('{"lr": 5.0}', points) + "min_sparse_share = 0.5", started_cluster)
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["status"].tolist() == ["completed"] * 4
    assert trials["sparse_multiply_adds_share"].tolist() == pytest.approx([1 - count / 3 for count in trials["num_dense"]])
    assert trials["common_fidelity"][0] == trials["fidelity"][0]
    initial = trials["val_error"][0] / (1 - trials["fidelity"][0])
    assert trials["common_fidelity"].tolist() == pytest.approx((1 - trials["val_error"] / initial).tolist())
    enough = trials[trials["sparse_multiply_adds_share"] >= 0.5]
    assert enough["val_error"].min() > trials["val_error"].min()
    config = read_json(folder / "best" / "config.json")
    assert config["trial"] in enough["trial"].tolist()
    order = list(read_json(folder / "experiment.json")["dense_order"])
    masks = load_mask_file(folder / "best" / "masks.safetensors").masks
    assert sorted(masks) == sorted(order[config["num_dense"] :])
    assert config["sparse_multiply_adds_share"] == pytest.approx(len(masks) / 3)
    front = analysis.open(folder).pareto_front
    said = capfd.readouterr().out
    assert f"Pareto front: {len(front)} trials" in said
    assert (
        f"promoted: {config['trial_id']}, num_dense {config['num_dense']}, {len(masks) / 3:.1%} of the multiply-adds"
        in said
    )
    study = optuna.load_study(
        study_name="maskpro", storage=JournalStorage(JournalFileBackend(str(folder / "optuna_journal.log")))
    )
    assert sorted(trial.user_attrs["trial"] for trial in study.best_trials) == sorted(front["trial"])
    page = (folder / "report.html").read_text()
    assert 'id="pareto_front"' in page
    assert 'id="front"' in page
