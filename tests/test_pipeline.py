"""The steps of the original pipeline, as functions and as commands."""

import copy
import json
import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from safetensors.torch import load_file
from shared_fixtures import CPU, FEW_HELD_OUT, is_strictly_two_of_four
from typer.testing import CliRunner

from maskpro.cli import app
from maskpro.embedded import DIGITS_MODEL
from maskpro.errors import MaskproError
from maskpro.initial_masks import magnitude_masked_model
from maskpro.mask_file import load_mask_file, save_mask_file
from maskpro.masked_model import maskable_layers, model_hash
from maskpro.pattern import NMPattern
from maskpro.pipeline.learning import train as learn
from maskpro.pipeline.masks import magnitude_mask_file
from maskpro.trainer_config import TrainerConfig

pytestmark = pytest.mark.usefixtures("few_held_out")


def run(*arguments):
    """A command's output; errors are raised as the console script would see them."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("layout", ["channel", "flattened"])
def test_prune_then_extract_gives_the_masks_of_the_zeros(tmp_path, digits, layout):
    output = run("prune", "--output-dir", tmp_path / "pruned", "--layout", layout, "--ratio", 0.5)
    assert "50% of the maskable weights removed" in output
    pruned = DDPMPipeline.from_pretrained(tmp_path / "pruned", low_cpu_mem_usage=False).unet
    dense = digits.model.state_dict()
    for name, weight in maskable_layers(pruned).items():
        assert is_strictly_two_of_four(weight, layout)
        assert torch.equal(weight[weight != 0], dense[f"{name}.weight"][weight != 0])
    extract = ("extract", "--model-path", tmp_path / "pruned", "--layout", layout)
    run(*extract, "--output-dir", tmp_path / "masks", "--original-model", "digits")
    content = load_mask_file(tmp_path / "masks" / "masks.safetensors")
    assert content.base_hash == model_hash(digits.model)
    for name, weight in maskable_layers(pruned).items():
        assert torch.equal(content.masks[name], weight != 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "random"])
def test_prune_knows_the_one_shot_methods(tmp_path, method):
    run("prune", "--output-dir", tmp_path / "pruned", "--method", method, "--pattern", "1:4")
    with pytest.raises(MaskproError, match="initial_mask is 'obs'; allowed: magnitude, wanda, sparsegpt, random"):
        run("prune", "--output-dir", tmp_path / "other", "--method", "obs")
    run("extract", "--model-path", tmp_path / "pruned", "--output-dir", tmp_path / "masks", "--pattern", "1:4")
    assert "layers keep exactly n of every m" in run("verify", tmp_path / "masks" / "masks.safetensors")


def test_extract_takes_the_nearest_masks_when_asked(tmp_path):
    """A mask of the other layout is 50 % sparse but not 2:4 in this one, as an unstructured one would be."""
    run("prune", "--output-dir", tmp_path / "pruned", "--layout", "flattened")
    extract = ("extract", "--model-path", tmp_path / "pruned", "--output-dir", tmp_path / "masks")
    with pytest.raises(MaskproError, match=r"is not 2:4 .*; --nearest with --original-model takes the nearest 2:4 masks"):
        run(*extract, "--original-model", "digits")
    with pytest.raises(MaskproError, match="nearest is True without original_model"):
        run(*extract, "--nearest")
    output = run(*extract, "--original-model", "digits", "--nearest")
    content = load_mask_file(tmp_path / "masks" / "masks.safetensors")
    share = content.provenance["share_of_positions_that_differ_from_the_zeros"]
    assert 0 < share < 0.3
    assert f"{share:.2%} of the positions unlike the zeros" in output
    run("verify", tmp_path / "masks" / "masks.safetensors", "--workload", "digits")


@pytest.mark.slow
def test_training_starts_where_it_is_told_and_tells_each_layers_part(tmp_path):
    """`layers.csv` has a row per learned layer; those outside the targets keep their initial mask and have none."""
    start = ("--initial-mask", "wanda", "--targets", "mid_block", "--lr", 4, "--logits", 1)
    run("train", "--output-dir", tmp_path / "run", "--dataset-size", 64, "--epoch", 2, *start)
    table = pd.read_csv(tmp_path / "run" / "layers.csv").set_index("layer")
    learned = load_mask_file(tmp_path / "run" / "masks.safetensors").masks
    run("prune", "--output-dir", tmp_path / "pruned", "--method", "wanda")
    run("extract", "--model-path", tmp_path / "pruned", "--output-dir", tmp_path / "initial")
    initial = load_mask_file(tmp_path / "initial" / "masks.safetensors").masks
    for name, mask in learned.items():
        changed = int((initial[name] & ~mask).sum())
        if name.startswith("mid_block"):
            assert table.loc[name, "changed"] == changed
            assert table.loc[name, "weights"] == mask.numel()
            assert 0 < table.loc[name, "last_entropy"] <= np.log(6)
            assert (table.loc[name, "contribution"] == 0) == (changed == 0)
        else:
            assert changed == 0
            assert name not in table.index
    assert table["changed"].sum() > 0
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    assert summary["initial_mask"] == "wanda"


def test_verify_says_what_is_wrong_layer_by_layer(tmp_path, digits):
    masks = magnitude_mask_file(digits, pattern=NMPattern(2, 4), layout="channel")
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, masks)
    whole = path.read_bytes()
    assert run("verify", path, "--workload", "digits").count(": ok") == len(masks.masks)
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    result = CliRunner().invoke(app, ["verify", str(path)])
    assert isinstance(result.exception, MaskproError)
    assert result.output.count(": ok") == len(masks.masks) - 1
    assert result.output.count("does not match its checksum and is not 2:4") == 1
    first = next(iter(masks.masks))
    foreign = replace(masks, base_hash="", masks={first: masks.masks[first], "other.conv": masks.masks[first]})
    save_mask_file(path, foreign)
    run("verify", path)
    result = CliRunner().invoke(app, ["verify", str(path), "--workload", "digits"])
    assert "other.conv: is for another model, which has that layer" in result.output
    assert f"{first}: ok" in result.output
    save_mask_file(path, replace(masks, base_hash="0" * 64))
    with pytest.raises(MaskproError, match=r"is for another model \(hash 000000000000"):
        run("verify", path, "--workload", "digits")


def test_extract_refuses_a_mask_of_another_layout(tmp_path):
    run("prune", "--output-dir", tmp_path / "pruned", "--layout", "flattened")
    with pytest.raises(MaskproError, match="is not 2:4 in layout channel"):
        run("extract", "--model-path", tmp_path / "pruned", "--output-dir", tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


@pytest.mark.slow
def test_baseline_writes_a_loss_per_batch(tmp_path):
    run("baseline", "--output-dir", tmp_path / "a", "--dataset-size", 96, "--batch-size", 32)
    report = json.loads((tmp_path / "a" / "baseline.json").read_text())
    losses = np.load(tmp_path / "a" / "baseline_losses.npy")
    assert len(losses) == report["num_batches"] == 3
    assert report["mean_loss"] == pytest.approx(losses.mean())
    run("baseline", "--output-dir", tmp_path / "b", "--dataset-size", 96, "--batch-size", 32, "--max-batches", 2)
    assert np.array_equal(np.load(tmp_path / "b" / "baseline_losses.npy"), losses[:2])


@pytest.mark.slow
def test_train_then_evaluate_leaves_what_the_original_left(tmp_path, digits):
    budget = ("--epoch", 10, "--dataset-size", 64, "--max-step", 12, "--lr", 2, "--targets", "mid_block up_blocks.0")
    run("train", "--output-dir", tmp_path / "run", "--save", *budget)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint",
        "logits",
        "masks.safetensors",
        "loss_training.npy",
        "loss_improvements.npy",
        "training_summary.json",
        "training_curves.png",
        "layers.csv",
    }
    summary = json.loads((folder / "training_summary.json").read_text())
    assert summary["num_steps"] == 12
    assert summary["num_samples_seen"] == 384
    assert len(np.load(folder / "loss_training.npy")) == 12
    assert np.load(folder / "loss_improvements.npy").shape == (1,)
    assert load_file(folder / "logits" / "logits.safetensors")["logits"].shape[1] == 4
    learned = DDPMPipeline.from_pretrained(folder / "checkpoint", low_cpu_mem_usage=False).unet
    content = load_mask_file(folder / "masks.safetensors")
    for name, weight in maskable_layers(learned).items():
        assert is_strictly_two_of_four(weight, "channel")
        assert torch.equal(weight, maskable_layers(digits.model)[name] * content.masks[name])

    sizes = ("--test-samples", 640, "--num-samples", 16, "--sampling-steps", 5, "--save-images")
    run("evaluate", "--output-dir", tmp_path / "a", "--masks", folder / "masks.safetensors", "--compute-fid", *sizes)
    run("evaluate", "--output-dir", tmp_path / "b", "--checkpoint-path", folder / "checkpoint", *sizes)
    report, again = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert report["protocol"]["num_loss_samples"] == {"validation": FEW_HELD_OUT, "test": 640}
    assert report["models"].keys() == {"dense", "initial", "learned"}
    assert report["models"]["learned"]["sparsity"] == 0.5
    same = pytest.approx(again["models"]["learned"]["test_loss"], rel=1e-6)  # another memory layout, other rounding
    assert report["models"]["learned"]["test_loss"] == same
    assert report["models"]["learned"]["frechet_distance"] > 0
    assert again["models"]["learned"]["frechet_distance"] is None
    assert report["parameters"]["learned"]["nonzero"] < report["parameters"]["dense"]["nonzero"]
    assert len(list((tmp_path / "a" / "images" / "learned").iterdir())) == 16
    assert (tmp_path / "a" / "samples_initial.png").is_file()


@pytest.mark.slow
def test_evaluate_takes_a_sampler_and_its_steps_and_goes_on_from_its_cache(tmp_path):
    run("prune", "--output-dir", tmp_path / "pruned")
    learned = ("--checkpoint-path", tmp_path / "pruned", "--cache", tmp_path / "cache", "--num-samples", 4)
    learned = (*learned, "--test-samples", 64)
    for name in "ab":
        output = run("evaluate", "--output-dir", tmp_path / name, *learned, "--sampler", "ddpm", "--sampling-steps", 4)
        assert output.splitlines()[-1] == f"results: {tmp_path / name}"
        assert output.count("(from the cache)") == (1 if name == "a" else 3), "the learned mask is the initial one"
    first, again = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert again == first
    assert (first["protocol"]["sampler"], first["protocol"]["sampling_steps"]) == ("ddpm", 4)
    with pytest.raises(MaskproError, match="sampling_steps is 0; allowed: 1 to 1000"):
        run("evaluate", "--output-dir", tmp_path / "c", *learned, "--sampling-steps", 0)
    with pytest.raises(MaskproError, match="test_samples is 1; allowed: at least 2"):
        run("evaluate", "--output-dir", tmp_path / "c", *learned, "--test-samples", 1)
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_evaluate_takes_features_and_reference_statistics_of_files(tmp_path, digits):
    run("prune", "--output-dir", tmp_path / "pruned")
    run("reference-statistics", tmp_path / "digits.npz")
    with np.load(tmp_path / "digits.npz", allow_pickle=False) as archive:
        assert {name: archive[name].shape for name in archive.files} == {"mu": (64,), "sigma": (64, 64)}
    with pytest.raises(MaskproError, match=r"output file .*digits.npz exists already"):
        run("reference-statistics", tmp_path / "digits.npz")
    with pytest.raises(MaskproError, match=r"output is .*digits.txt; allowed: a name that ends in .npz"):
        run("reference-statistics", tmp_path / "digits.txt")
    learned = ("--checkpoint-path", tmp_path / "pruned", "--compute-fid", "--num-samples", 8, "--sampling-steps", 2)
    learned = (*learned, "--test-samples", 64)
    given = ("--features", "digits-classifier", "--reference-statistics", tmp_path / "digits.npz")
    output = run("evaluate", "--output-dir", tmp_path / "a", *learned, *given)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["models"]["learned"]["frechet_distance"] > 0
    assert report["models"]["learned"]["kernel_distance"] is None
    assert report["protocol"]["frechet_reference"] == "file digits.npz"
    assert "8 generated images are too few for 64 features" in report["warnings"][0]
    assert f"warning: {report['warnings'][0]}" in output
    assert "sampled in float32 (a CPU)" in output
    with pytest.raises(MaskproError, match="features is x without compute_fid; allowed: together with --compute-fid"):
        run("evaluate", "--output-dir", tmp_path / "b", *learned[:2], "--features", "x")
    with pytest.raises(MaskproError, match=r"features .*digits.npz is neither a TorchScript nor a torch.export file"):
        run("evaluate", "--output-dir", tmp_path / "b", *learned, "--features", tmp_path / "digits.npz")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_train_logs_each_validation_and_takes_the_originals_spelling_of_options(tmp_path, monkeypatch):
    logged = {}

    @contextmanager
    def keep(project, *, name, config):
        assert (project, name, config["batch_size"]) == ("DDPM-MaskPro", "first", 32)
        yield lambda values, seen: logged.update({seen: values})

    monkeypatch.setattr("maskpro.trackers.swanlab_log", keep)
    names = ("--project_name", "DDPM-MaskPro", "--experiment_name", "first")
    run("train", "--output_dir", tmp_path / "run", "--dataset_size", 64, "--batch_size", 32, "--epoch", 1, *names)
    assert list(logged) == [64]
    improvements = np.load(tmp_path / "run" / "loss_improvements.npy")
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    last = logged[64]
    assert last["loss_improvement"] == pytest.approx(improvements[-1] / summary["initial_val_loss"])
    assert last["logits/max"] == summary["last_logits"]["max"]
    assert last["changed_share"] == summary["last_logits"]["changed_share"]


@pytest.mark.slow
def test_what_a_run_records_is_of_the_mask_that_it_wrote(tmp_path, digits):
    """With steps so large that every mask is worse than the initial one, which is kept."""
    run("train", "--output-dir", tmp_path / "run", "--dataset-size", 64, "--epoch", 1, "--lr", 300, "--logits", 1)
    content = load_mask_file(tmp_path / "run" / "masks.safetensors")
    initial = magnitude_mask_file(digits, pattern=content.pattern, layout=content.layout).masks
    assert all(torch.equal(mask, initial[name]) for name, mask in content.masks.items())
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    assert summary["val_loss"] == summary["initial_val_loss"]
    assert summary["changed_share"] == summary["recovery"] == summary["loss_improvement"] == 0
    assert summary["last_logits"]["changed_share"] > 0.1
    assert content.provenance["val_loss"] == summary["val_loss"]
    assert content.provenance["recovery"] == 0


@pytest.mark.slow
def test_what_a_run_in_bfloat16_records_is_judged_in_float32(tmp_path, digits):
    small = replace(digits, budgets=replace(digits.budgets, validation_samples=64))
    summary = learn(
        small,
        tmp_path / "run",
        config=TrainerConfig(precision="bfloat16", batch_size=16, dataset_size=32, budget_samples=64),
        pattern=NMPattern(2, 4),
        layout="channel",
        device=CPU,
        statistics=False,
    )
    held_out = small.held_out_samples("validation", CPU)
    network = copy.deepcopy(digits.model)
    learned = DDPMPipeline.from_pretrained(tmp_path / "run" / "checkpoint").unet
    initial = magnitude_masked_model(network, pattern=NMPattern(2, 4), layout="channel").model
    # Far nearer than bfloat16 is; the order of the weights in memory changes the last bits.
    for name, expected in (
        ("dense_val_loss", held_out.judge(digits.model).means().loss),
        ("initial_val_error", held_out.judge(initial).means().error),
        ("val_error", held_out.judge(learned).means().error),
    ):
        assert summary[name] == pytest.approx(expected, rel=1e-6)
    rounded = small.held_out_samples("validation", CPU, "bfloat16").judge(initial).means().error
    assert rounded != pytest.approx(summary["initial_val_error"], rel=1e-4)


@pytest.mark.slow
def test_train_draws_timesteps_as_it_is_told(tmp_path):
    """Without a step's effect, the first loss is the initial mask's on the samples drawn; importance weighs them."""
    losses = {}
    for timesteps in ("uniform", "importance"):
        folder = tmp_path / timesteps
        options = ("--timesteps", timesteps, "--dataset-size", 64, "--batch-size", 64, "--max-step", 1, "--logits", 80)
        run("train", "--output-dir", folder, "--no-statistics", *options)
        assert json.loads((folder / "training_summary.json").read_text())["config"]["timesteps"] == timesteps
        losses[timesteps] = np.load(folder / "loss_training.npy")
    assert losses["uniform"] != losses["importance"]
    with pytest.raises(MaskproError, match="timesteps is 'often'; allowed: uniform, importance"):
        run("train", "--output-dir", tmp_path / "often", "--timesteps", "often")


@pytest.mark.slow
def test_max_step_bounds_the_steps_of_any_batch_size(tmp_path):
    """The samples to a report are no whole number of steps of 64; no smaller step may be added."""
    run("train", "--output-dir", tmp_path / "run", "--dataset-size", 64, "--batch-size", 64, "--max-step", 50)
    assert json.loads((tmp_path / "run" / "training_summary.json").read_text())["num_steps"] == 50


@pytest.mark.slow
def test_the_cifar10_workload_trains_and_evaluates_on_a_folder_of_images(tmp_path, model_folder, image_folder):
    workload = ("--workload", "cifar10", "--model", model_folder, "--data", image_folder)
    run("train", "--output-dir", tmp_path / "run", *workload, "--dataset-size", 32, "--epoch", 2, "--batch-size", 16)
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    assert summary["num_steps"] == 4
    assert summary["sparsity"] == 0.5
    masks = tmp_path / "run" / "masks.safetensors"
    run("evaluate", "--output-dir", tmp_path / "report", *workload, "--masks", masks, "--num-samples", 2)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["protocol"]["num_loss_samples"]["test"] == FEW_HELD_OUT
    assert report["models"]["learned"]["sparsity"] == 0.5


def test_a_checkpoint_of_another_architecture_or_without_zeros_is_refused(tmp_path, model_folder):
    with pytest.raises(MaskproError, match="is of another architecture than embedded digits DDPM"):
        run("evaluate", "--output-dir", tmp_path / "out", "--checkpoint-path", model_folder)
    with pytest.raises(MaskproError, match="model has no zeros"):
        run("evaluate", "--output-dir", tmp_path / "out", "--checkpoint-path", DIGITS_MODEL)


@pytest.mark.slow
def test_train_starts_from_a_given_mask_and_learns_just_its_layers(tmp_path):
    run("prune", "--output-dir", tmp_path / "pruned", "--method", "random")
    run("extract", "--model-path", tmp_path / "pruned", "--output-dir", tmp_path / "masks")
    start = load_mask_file(tmp_path / "masks" / "masks.safetensors")
    budget = ("--epoch", 1, "--dataset-size", 32, "--lr", 0.01)
    run("train", "--output-dir", tmp_path / "run", "--masks", tmp_path / "masks" / "masks.safetensors", *budget)
    end = load_mask_file(tmp_path / "run" / "masks.safetensors")
    assert all(torch.equal(end.masks[name], mask) for name, mask in start.masks.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "--ratio", 0.3), "ratio is 0.3; allowed with pattern 2:4: 0.5"),
        (("prune", "--method", "best"), "initial_mask is 'best'; allowed: magnitude, wanda, sparsegpt, random"),
        (("prune", "--pattern", "5:4"), "pattern is 5:4; allowed"),
        (("prune", "--model", "/nowhere"), "no model folder /nowhere"),
        (("baseline", "--batch-size", 600), "batch_size is 600; allowed: at most dataset_size, 512"),
        (("baseline", "--max-batches", 0), "max_batches is 0; allowed"),
        (("baseline", "--masks", "none.safetensors"), "no mask file none.safetensors"),
        (("train", "--lr", -1), "lr is -1.0; allowed: a number above 0"),
        (("train", "--initial-mask", "best"), "initial_mask is 'best'; allowed: magnitude, wanda, sparsegpt, random"),
        (("train", "--pattern", "0:4"), "pattern is 0:4; allowed: n:m with 0 < n < m"),
        (
            ("train", "--pattern", "2:5"),
            r"pattern is 2:5; its 5 does not divide the width of \d+ layers .* such as down_blocks",
        ),
        (("train", "--epoch", 0), "epoch is 0; allowed"),
        (("train", "--targets", "nothing"), "targets holds 'nothing', which matches no maskable layer"),
        (("train", "--device", "tpu9"), "device is 'tpu9'; allowed: auto, cpu, cuda"),
        (("evaluate",), "masks and checkpoint_path are both given or both missing"),
        (("evaluate", "--masks", "a", "--checkpoint-path", "b"), "masks and checkpoint_path are both given"),
        (("evaluate", "--masks", "a", "--sampler", "euler"), "sampler is 'euler'; allowed: ddim, ddpm"),
    ],
)
def test_mistakes_end_in_one_sentence_and_nothing_is_written(tmp_path, arguments, message):
    with pytest.raises(MaskproError, match=message):
        run(*arguments, "--output-dir", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_mask_for_another_model_is_refused(tmp_path, model_folder, image_folder):
    cifar10 = ("--workload", "cifar10", "--model", model_folder, "--data", image_folder)
    run("prune", "--output-dir", tmp_path / "pruned", *cifar10)
    extract = ("extract", "--model-path", tmp_path / "pruned", "--output-dir", tmp_path / "masks")
    run(*extract, "--original-model", model_folder)
    masks = tmp_path / "masks" / "masks.safetensors"
    with pytest.raises(MaskproError, match=r"mask file .* is for another model \(hash"):
        run("baseline", "--output-dir", tmp_path / "out", "--masks", masks)
    run("baseline", "--output-dir", tmp_path / "out", "--masks", masks, "--dataset-size", 32, *cifar10)


def test_a_mask_that_names_no_model_is_refused_for_a_network_without_its_layers(tmp_path, digits):
    masks = magnitude_mask_file(digits, pattern=NMPattern(2, 4), layout="channel")
    foreign = {f"other.{name}": mask for name, mask in masks.masks.items()}
    save_mask_file(tmp_path / "masks.safetensors", replace(masks, base_hash="", masks=foreign))
    with pytest.raises(MaskproError, match=r"mask of layer other\.\S+ is for another model, which has that layer"):
        run("train", "--output-dir", tmp_path / "out", "--masks", tmp_path / "masks.safetensors")


@pytest.mark.slow
def test_a_pattern_or_layout_beside_a_mask_file_must_be_the_files(tmp_path, digits):
    """It was passed over without a word."""
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, magnitude_mask_file(digits, pattern=NMPattern(1, 4), layout="channel"))
    for command in ("train", "baseline", "evaluate"):
        with pytest.raises(MaskproError, match=r"pattern is 2:4 with mask file .*, which has 1:4; allowed: without --p"):
            run(command, "--output-dir", tmp_path / "out", "--masks", path, "--pattern", "2:4")
        with pytest.raises(MaskproError, match=r"layout is flattened with mask file .*, which has channel; allowed"):
            run(command, "--output-dir", tmp_path / "out", "--masks", path, "--layout", "flattened")
    budget = ("--dataset-size", 32, "--pattern", "1:4")
    run("baseline", "--output-dir", tmp_path / "out", "--masks", path, *budget)
    assert json.loads((tmp_path / "out" / "baseline.json").read_text())["pattern"] == "1:4"


def test_an_initial_mask_that_removes_more_weights_is_refused(tmp_path, digits):
    """Any mask would look good beside it."""
    for name, pattern in (("learned", NMPattern(2, 4)), ("initial", NMPattern(1, 4))):
        save_mask_file(tmp_path / name, magnitude_mask_file(digits, pattern=pattern, layout="channel"))
    with pytest.raises(MaskproError, match="initial mask is 1:4, the learned one 2:4; allowed: one that removes as many"):
        run(
            *("evaluate", "--output-dir", tmp_path / "out", "--masks", tmp_path / "learned"),
            *("--initial-masks", tmp_path / "initial"),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["link", "file/below"])
def test_a_cache_that_can_not_be_written_is_refused_before_anything_runs(tmp_path, name):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(MaskproError, match=rf"cache {tmp_path / name} can't be written \(.*; allowed: a folder"):
        run("evaluate", "--output-dir", tmp_path / "out", "--masks", "none", "--cache", tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_a_link_to_nothing_is_no_output_folder(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MaskproError, match=r"output folder .*out exists already"):
        run("prune", "--output-dir", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_existing_folders_are_never_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(MaskproError, match=r"output folder .*out exists already and is not overwritten"):
        run("prune", "--output-dir", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("--lr", 0.001, "--logits", 10), "no position of the mask has changed, .*: raise lr, or lower logits"),
        (("--lr", 1000, "--logits", 1), "learning made the mask worse, so that the initial mask is kept, .*: halve lr"),
    ],
)
def test_a_run_that_came_to_nothing_says_why(tmp_path, settings, said):
    short = ("--dataset-size", 32, "--batch-size", 8, "--epoch", 1, "--no-statistics")
    output = run("train", "--output-dir", tmp_path / "run", *short, *settings)
    assert re.search(said, output), output
