"""The main job from the command line to the files it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from shared_fixtures import RAY_IN_PROCESS, is_strictly_two_of_four

from maskpro.errors import MaskproError
from maskpro.machine.limits import usable_cores
from maskpro.machine.process import one_line
from maskpro.mask_file import load_mask_file
from maskpro.masked_model import is_protected, maskable_layers
from maskpro.pretrained import save_pipeline

sys.path.insert(0, str(Path(__file__).parents[1]))
import tune_main

ROOT = Path(__file__).parents[1]
SPACE = """
from ray import tune
param_space = {"lr": tune.uniform(0.5, 1e40), "batch_size": 32, "dataset_size": 512}
seed_points = [{"lr": 2.0}, {"lr": 1e39}]
num_trials = 3
num_reports = 3
"""
NOTHING_ELSE = {"space": None, "results_dir": None, "experiment": None}
# Held-out samples in whole tenths of the schedule, into which test samples are told apart.
HELD_OUT = ("--selection-samples", "240", "--test-samples", "480")
OPTIONS = ("--max-samples", "288", *HELD_OUT, "--num-generated", "32", "--sampling-steps", "10")


# Where nothing listens, as on a machine whose way out is closed.
DEAD_PROXY = "http://127.0.0.1:9"
PROXIES = {
    name: DEAD_PROXY for prefix in ("http", "https", "all") for name in (f"{prefix}_proxy", f"{prefix}_proxy".upper())
}


def job(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "tune_main.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
    )


def in_process(test):
    """A test in whose process Ray runs."""
    for mark in RAY_IN_PROCESS:
        test = mark(test)
    return test


def job_here(**options):
    """The job in this process, which has imported torch: for what is not about the process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        tune_main.main(max_concurrent=1, **options)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One short search, run as a user runs it: a good seed point, one whose step overflows, and a trial of Optuna's.

    Proxies are named in the environment, as companies' machines have them: nothing of a local search goes through one.
    The folder has a name with all that a URI, a shell, a pattern or a table could take for something else.
    """
    folder = tmp_path_factory.mktemp("job") / "wäird b[c]%20#?&;\n'x\""
    folder.mkdir()
    (folder / "space.py").write_text(SPACE)
    options = ("--results-dir", folder, "--experiment", "short", *OPTIONS)
    run = job("--space", folder / "space.py", *options, "--max-concurrent", 1, **PROXIES)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "short", run.stdout


@pytest.mark.slow
def test_the_job_leaves_the_named_files(finished):
    folder, output = finished
    for name in (
        "experiment.json",
        "trials.csv",
        "final_evaluation.json",
        "best/masks.safetensors",
        "best/config.json",
        "best/checkpoint/model_index.json",
        "best/samples_dense.png",
        "best/samples_initial.png",
        "best/samples_learned.png",
        "best/layers.csv",
        "report.html",
        "report.md",
    ):
        assert (folder / name).is_file(), name
    assert "Traceback" not in output
    assert f"results: {one_line(str(folder))}\n" in output
    described = json.loads((folder / "experiment.json").read_text())
    assert described["options"]["max_samples"] == 288
    assert described["versions"]["torch"]
    assert described["planned"][0]["params"] == {"lr": 2.0}
    assert described["hardware"]["cpus"]


@pytest.mark.slow
def test_trials_csv_has_a_row_per_trial_and_a_failed_one_does_not_stop_the_search(finished):
    trials = pd.read_csv(finished[0] / "trials.csv")
    assert trials["trial"].tolist() == [1, 2, 3]
    assert trials["lr"].tolist()[:2] == [2.0, 1e39]
    assert trials["seed_point"].tolist()[:2] == [1, 2]
    assert trials["seed_point"].isna().tolist() == [False, False, True]
    assert trials.loc[0, "status"] == "completed"
    assert trials.loc[0, "num_samples_seen"] == 288
    assert trials.loc[1, "status"] == "failed"
    assert trials["val_loss"].isna().tolist()[1]
    assert {"recovery", "loss_improvement", "seconds"} <= set(trials.columns)


@pytest.mark.slow
def test_the_promoted_masks_are_strictly_two_of_four_and_the_checkpoint_is_the_dense_one_masked(finished, digits):
    best = finished[0] / "best"
    masks = load_mask_file(best / "masks.safetensors").masks
    learned = DDPMPipeline.from_pretrained(best / "checkpoint", low_cpu_mem_usage=False).unet
    dense = digits.model.state_dict()
    maskable = {f"{name}.weight" for name in maskable_layers(digits.model)}
    for name, weight in learned.state_dict().items():
        if name in maskable:
            layer = name.removesuffix(".weight")
            assert not is_protected(layer)
            assert is_strictly_two_of_four(weight, "channel")
            assert is_strictly_two_of_four(masks[layer].float(), "channel")
            assert torch.equal(weight, dense[name] * masks[layer])
        else:
            assert torch.equal(weight, dense[name])


@pytest.mark.slow
def test_the_final_evaluation_compares_the_three_models_on_test_images(finished):
    report = json.loads((finished[0] / "final_evaluation.json").read_text())
    assert report["models"].keys() == {"dense", "initial", "learned"}
    for figures in report["models"].values():
        frechet = {f"frechet_distance{part}" for part in ("", "_extrapolated", "_by_set")}
        kernel = {f"kernel_distance{part}" for part in ("", "_error", "_by_part")}
        judged = {f"{split}_{name}" for split in ("val", "test") for name in ("error", "loss")}
        by_timestep = {"test_error_by_timestep", "test_loss_by_timestep"}
        relative = {f"{name}_error" for name in ("fidelity", "recovery", "loss_improvement", "test_loss")}
        expected = {"fidelity", "precision", "recall", "sparsity"}
        assert figures.keys() == expected | relative | judged | by_timestep | frechet | kernel
        tenths = figures["test_loss_by_timestep"]
        assert len(tenths) == 10
        # Test samples are stratified over the schedule: as many in each tenth.
        assert sum(tenths) / 10 == pytest.approx(figures["test_loss"])
        assert tenths[0] > tenths[9], "noise is harder to tell where there is little of it"
    errors = {name: figures["test_error"] for name, figures in report["models"].items()}
    assert 0 == errors["dense"] < errors["initial"]
    assert report["fidelity"] == pytest.approx(1 - errors["learned"] / errors["initial"])
    assert [report["models"][name]["fidelity"] for name in errors] == [1, 0, report["fidelity"]]
    losses = {name: figures["test_loss"] for name, figures in report["models"].items()}
    assert losses["dense"] < losses["initial"]
    expected = (losses["initial"] - losses["learned"]) / (losses["initial"] - losses["dense"])
    assert report["recovery"] == pytest.approx(expected)
    assert report["loss_improvement"] == pytest.approx((losses["initial"] - losses["learned"]) / losses["initial"])
    assert [report["models"][name]["sparsity"] for name in losses] == [0.0, 0.5, 0.5]
    assert report["protocol"]["num_images"]["test"] == 300
    assert report["protocol"]["num_loss_samples"] == {"validation": 1200, "test": 480}
    assert "32 generated images are too few for 64 features" in report["warnings"][0]
    for text in ((finished[0] / "report.md").read_text(), " ".join(finished[1].split())):
        assert report["warnings"][0] in text


def compared(folder):
    """The table of trials without what no run repeats."""
    return pd.read_csv(folder / "trials.csv").drop(columns=["seconds"])


@in_process
@pytest.mark.slow
def test_experiment_json_alone_is_enough_to_get_the_same_trials_again(finished, ray_cluster, tmp_path):
    """On another Ray, of several nodes."""
    folder, _ = finished
    (tmp_path / "experiment.json").write_bytes((folder / "experiment.json").read_bytes())
    place = {"results_dir": tmp_path, "experiment": "again", "address": ray_cluster.address}
    job_here(replay=tmp_path / "experiment.json", **place)
    pd.testing.assert_frame_equal(compared(folder), compared(tmp_path / "again"), check_exact=True)
    reports = [json.loads((path / "final_evaluation.json").read_text()) for path in (folder, tmp_path / "again")]
    assert reports[0]["models"] == reports[1]["models"]


def interrupt(number, folder, *arguments):
    """Start the job and send it a signal once its history tells of one more report; its exit status and its output."""
    history = folder / "history.jsonl"

    def num_reports():
        return history.read_text().count('"event": "report"') if history.is_file() else 0

    before = num_reports()
    command = [sys.executable, str(ROOT / "tune_main.py"), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while num_reports() == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


@in_process
@pytest.mark.slow
def test_a_search_that_is_stopped_and_killed_ends_as_the_uninterrupted_one(finished, ray_cluster, tmp_path):
    """SIGTERM, then kill -9 of a driver with a Ray of its own, then on to the end, then two trials more."""
    folder, _ = finished
    address = ("--address", ray_cluster.address)
    new = ("--space", folder.parent / "space.py", "--results-dir", tmp_path, "--experiment", "short", *OPTIONS)
    status, output = interrupt(signal.SIGTERM, tmp_path / "short", *new, "--max-concurrent", 1, *address)
    assert status == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM with 0 of 3 trials ended; resume with --resume" in output
    assert "Traceback" not in output
    status, _ = interrupt(signal.SIGKILL, tmp_path / "short", "--resume", tmp_path / "short", "--max-concurrent", 1)
    assert status == -signal.SIGKILL
    job_here(resume=tmp_path / "short", address=ray_cluster.address)
    pd.testing.assert_frame_equal(compared(tmp_path / "short"), compared(folder), check_exact=True)
    job_here(resume=tmp_path / "short", extend=2, frechet=False, address=ray_cluster.address)
    extended = compared(tmp_path / "short")
    assert len(extended) == 5
    pd.testing.assert_frame_equal(extended[:2], compared(folder)[:2], check_exact=True)


@pytest.mark.slow
def test_a_finished_search_is_promoted_again_without_running_anything(finished, capsys):
    """Killed after the search: the trials are kept as they are, and the evaluation gives the same figures."""
    folder, _ = finished
    trials = pd.read_csv(folder / "trials.csv")
    report = json.loads((folder / "final_evaluation.json").read_text())
    for name in ("trials.csv", "final_evaluation.json"):
        (folder / name).unlink()
    job_here(resume=folder)
    assert "Ray dashboard" not in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_csv(folder / "trials.csv"), trials)
    assert json.loads((folder / "final_evaluation.json").read_text()) == report


@pytest.mark.slow
def test_a_mistake_ends_in_one_sentence_without_a_traceback(tmp_path):
    """One that is seen while Ray starts."""
    (tmp_path / "space.py").write_text("seed_points = []")
    run = job("--space", tmp_path / "space.py", "--results-dir", tmp_path / "results")
    assert run.returncode == 2
    assert run.stderr.startswith("error: space file ")
    assert run.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "space.py"]


def refused(tmp_path, **options):
    space = tmp_path / "space.py"
    space.write_text(SPACE)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MaskproError) as caught:
        tune_main.main(**{"space": space, "results_dir": tmp_path, "experiment": "x", **options})
    assert sorted(tmp_path.rglob("*")) == before, "nothing may be written or lost"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": None}, "space is missing; allowed"),
        ({"num_trials": 0}, "num_trials is 0; allowed"),
        ({"max_samples": -5}, "max_samples is -5; allowed"),
        ({"num_generated": 1}, "num_generated is 1; allowed"),
        ({"seed": -1}, "seed is -1; allowed"),
        ({"gpus_per_trial": -0.5}, "gpus_per_trial is -0.5; allowed"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial is 1.5; allowed: 0, a fraction such as 0.25, or 1"),
        ({"searcher": "grid"}, "searcher is 'grid'; allowed: optuna, tpe, gp, qmc, random"),
        ({"scheduler": "pbt"}, "scheduler is 'pbt'; allowed: asha, median, none"),
        ({"sampler": "euler"}, "sampler is 'euler'; allowed: ddim, ddpm"),
        ({"time_budget": "soon"}, "time_budget is 'soon'; allowed: a duration"),
        ({"num_trials": 1}, "num_trials is 1; allowed: at least the 2 seed points"),
        ({"config": 7}, "seed_points holds 7; allowed: each of the numbers 1 to 2 once"),
        ({"seed_points": "1,1"}, "seed_points holds 1; allowed: each of the numbers 1 to 2 once"),
        ({"warm_start": Path("/nowhere")}, "warm_start is /nowhere; no experiment there"),
        ({"extend": 2}, "extend is 2; allowed: a whole number of at least 1, together with --resume"),
        ({"replay": Path("/nowhere")}, "space is "),
        ({"replay": Path("/nowhere"), **NOTHING_ELSE}, "replay is /nowhere; no experiment there"),
        ({"address": "ray://127.0.0.1:10001"}, "address is 'ray://127.0.0.1:10001'; allowed: none (a local Ray), auto or"),
        ({"cpus_per_trial": 0.0}, "cpus_per_trial is 0.0; allowed"),
        ({"experiment": "../up"}, "experiment is '../up'; allowed: a plain folder name"),
        ({"experiment": "ü" * 101}, "experiment is a name of 202 bytes; allowed: at most 200"),
        ({"results_dir": Path("/dev/null")}, "results_dir is /dev/null, which can't be written (Not a directory); allowed"),
        ({"results_dir": Path("/dev/null/x")}, "results_dir is /dev/null/x, which can't be written (Not a directory); "),
        ({"results_dir": Path("/proc/x"), "dry_run": True}, "results_dir is /proc/x, which can't be written ("),
        ({"storage_path": "/dev/null"}, "storage_path is /dev/null, which can't be written (Not a directory); allowed"),
        ({"workload": "mnist"}, "workload is 'mnist'; allowed: digits, cifar10"),
        ({"model": "/nowhere"}, "no model folder /nowhere"),
        ({"address": "127.0.0.1:1"}, "address is '127.0.0.1:1'; nothing answers there"),
        ({"resume": Path("/nowhere")}, "space is "),
        ({"resume": Path("/nowhere"), **NOTHING_ELSE}, "resume is /nowhere; no experiment there"),
    ],
)
def test_options_that_are_not_allowed_are_refused(tmp_path, options, message):
    assert message in refused(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_trials": 0}, "num_trials is 0; allowed"),
        ({"space": Path("/nowhere/space.py")}, "space is /nowhere/space.py; no such file"),
        ({}, "space is missing; allowed"),
    ],
)
def test_a_mistake_that_is_plain_to_see_is_told_of_before_anything_is_imported_or_started(monkeypatch, options, message):
    monkeypatch.setattr("maskpro.tuning.launch.check_installation", lambda: pytest.fail("this takes seconds"))
    with pytest.raises(MaskproError, match=message):
        tune_main.main(**options)


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("maskpro.trackers.find_spec", lambda name: None)
    assert "swanlab is 'project'; allowed: with the extra installed" in refused(tmp_path, swanlab="project")


def test_targets_that_match_nothing_and_folders_that_are_not_diffusers_are_refused(tmp_path):
    (tmp_path / "targets.py").write_text(SPACE + "targets = ['nothing']")
    assert "targets holds 'nothing', which matches no maskable layer" in refused(tmp_path, space=tmp_path / "targets.py")
    (tmp_path / "model").mkdir()
    assert "is not a diffusers pipeline" in refused(tmp_path, model=str(tmp_path / "model"))


def test_an_existing_experiment_is_never_overwritten(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "precious.txt").write_text("kept")
    assert refused(tmp_path).endswith("x exists already and is not overwritten; name another one or remove it")
    (tmp_path / "x" / "experiment.json").write_text("{}")
    assert f"name another one or remove it, or resume it with --resume {tmp_path / 'x'}" in refused(tmp_path)


def test_a_model_with_nan_weights_is_refused(tmp_path, digits):
    state = {name: value.clone() for name, value in digits.model.state_dict().items()}
    state["conv_in.weight"][0, 0, 0, 0] = float("nan")
    broken = type(digits.model).from_config(digits.model.config)
    broken.load_state_dict(state)
    (tmp_path / "broken").mkdir()
    save_pipeline(tmp_path / "broken", broken, digits.scheduler)
    message = refused(tmp_path, model=str(tmp_path / "broken"))
    assert "holds values that are not finite in conv_in.weight; name another (--model)" in message


def test_dry_run_checks_and_prints_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "space.py").write_text(SPACE)
    tune_main.main(space=tmp_path / "space.py", results_dir=tmp_path, experiment="x", dry_run=True)
    described = json.loads(capsys.readouterr().out)
    assert described["num_trials"] == 3
    assert described["planned"][1]["params"] == {"lr": 1e39}
    understood = described["understood"]
    assert understood["layers with a mask"].startswith("39, 2:4 in layout channel")
    budget = described["trial"]["max_samples"]
    expected = rf"about \d+ (s|min) for {budget:,} samples, \d+ MiB of memory \(measured here on (cpu, 1 thread|cuda)\)"
    assert re.fullmatch(expected, understood["a full trial"])
    assert [path.name for path in tmp_path.iterdir()] == ["space.py"]
