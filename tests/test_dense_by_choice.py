"""Layers that stay dense because the user names them: untouched everywhere, and listed as those are that can't be n:m."""

import copy
import json

import pandas as pd
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from shared_fixtures import CPU, with_few_held_out
from typer.testing import CliRunner

from maskpro.cli import app
from maskpro.dense_layers import dense_rows
from maskpro.errors import MaskproError
from maskpro.initial_masks import magnitude_masked_model
from maskpro.mask_file import load_mask_file, save_mask_file
from maskpro.masked_model import MaskedModel, is_target, maskable_layers
from maskpro.pattern import NMPattern
from maskpro.pipeline.masks import magnitude_mask_file
from maskpro.runs import MaskFormat, build_trainer, initial_masked
from maskpro.trainer_config import TrainerConfig

pytestmark = pytest.mark.usefixtures("few_held_out")

TWO_OF_FOUR = NMPattern(2, 4)
# In the embedded network.
DENSE = ("mid_block", "up_blocks.1.resnets.0")
OPTION = ("--dense", " ".join(DENSE))


@pytest.fixture(scope="module")
def names(digits):
    """The layers that stay dense, and the others."""
    layers = list(maskable_layers(digits.model))
    chosen = [name for name in layers if is_target(name, DENSE)]
    return chosen, [name for name in layers if name not in chosen]


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def check_weights(network, dense, chosen):
    """Dense layers have their weights, and all others are 2:4."""
    original = maskable_layers(dense)
    for name, weight in maskable_layers(network).items():
        if name in chosen:
            assert torch.equal(weight, original[name])
        else:
            assert (weight == 0).float().mean() == 0.5


def test_a_mask_covers_the_other_layers_alone(digits, names):
    chosen, others = names
    masked = magnitude_masked_model(digits.model, pattern=TWO_OF_FOUR, layout="channel", dense=DENSE)
    assert masked.dense == dict.fromkeys(chosen, "is dense by choice")
    whole = magnitude_masked_model(digits.model, pattern=TWO_OF_FOUR, layout="channel").layer_masks()
    masks = masked.layer_masks()
    assert list(masks) == others
    assert all(torch.equal(mask, whole[name]) for name, mask in masks.items())
    check_weights(masked.model, digits.model, chosen)


def test_the_table_of_layers_has_those_that_a_mask_file_leaves_out(digits, names):
    chosen, others = names
    masked = magnitude_masked_model(digits.model, pattern=TWO_OF_FOUR, layout="channel", covered=others)
    assert {row["layer"]: row["why_dense"] for row in dense_rows(masked)} == dict.fromkeys(
        chosen, "is left out by the mask"
    )


@pytest.mark.parametrize("estimator", ["relaxed_subset", "policy_gradient"])
def test_learning_leaves_dense_layers_alone_and_its_initial_figures_are_of_the_others(digits, names, estimator):
    workload = with_few_held_out(digits)
    form = MaskFormat("2:4", "channel", dense=DENSE)
    config = TrainerConfig(estimator=estimator, batch_size=8, dataset_size=16, budget_samples=16, lr=30.0, logits=0.1)
    trainer = build_trainer(workload, config, form, seed=0, device=CPU, targets=("down_blocks", "up_blocks"))
    initial = magnitude_masked_model(digits.model, pattern=TWO_OF_FOUR, layout="channel", covered=names[1]).model
    assert trainer.initial.error == pytest.approx(
        workload.held_out_samples("validation", CPU).judge(initial).means().error, rel=1e-5
    )
    trainer.train(16)
    assert trainer.changed_share() > 0
    trainer.validate()
    check_weights(trainer.masked.model, digits.model, names[0])


@pytest.mark.parametrize("method", ["wanda", "random"])
def test_every_initial_mask_covers_the_other_layers_alone(digits, names, method):
    masked = initial_masked(
        digits, digits.model, MaskFormat("2:4", "flattened", method, DENSE), seed=0, targets=("up_blocks",)
    )
    assert sorted(masked.layer_masks()) == sorted(names[1])
    check_weights(masked.model, digits.model, names[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dense": ("mid_block", "tail")},
            "dense holds 'tail', which matches no maskable layer; allowed: whole parts of a layer",
        ),
        ({"dense": ("conv_in",)}, "dense holds 'conv_in', which matches no maskable layer"),
        ({"dense": ("all",)}, "dense leaves no layer to be masked; allowed: parts of the names of some layers, not of all"),
        (
            {"dense": ("mid_block",), "targets": ("mid_block",)},
            "targets holds 'mid_block', which matches only layers that stay dense: mid_block.* is dense by choice; allowed",
        ),
    ],
)
def test_names_that_match_nothing_or_everything_are_refused(digits, settings, message):
    with pytest.raises(MaskproError, match=message):
        MaskedModel(copy.deepcopy(digits.model), pattern=TWO_OF_FOUR, **settings)


def test_a_layer_that_could_not_be_masked_may_stay_dense():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4)))
    with pytest.raises(MaskproError, match="computes its weight"):
        MaskedModel(network, pattern=TWO_OF_FOUR)
    assert [layer.name for layer in MaskedModel(network, pattern=TWO_OF_FOUR, dense=("1",)).layers] == ["0"]


@pytest.mark.slow
def test_all_that_a_run_writes_says_what_stays_dense(tmp_path, digits, names):
    chosen, others = names
    budget = ("--dataset-size", 32, "--batch-size", 16, "--epoch", 1, "--lr", 10)
    output = run("train", "--output-dir", tmp_path / "run", *OPTION, *budget)
    line = f"{len(chosen)} layers stay dense, with "
    assert line in output
    assert "which is dense by choice" in output
    check_weights(DDPMPipeline.from_pretrained(tmp_path / "run" / "checkpoint").unet, digits.model, chosen)
    path = tmp_path / "run" / "masks.safetensors"
    assert list(load_mask_file(path).masks) == others
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    expected = dict.fromkeys(chosen, "is dense by choice")
    assert {row["layer"]: row["why"] for row in summary["dense_layers"]["layers"]} == expected
    table = pd.read_csv(tmp_path / "run" / "layers.csv", index_col="layer")
    assert table["why_dense"].dropna().to_dict() == expected
    for further in ((), ("--workload", "digits")):
        verified = run("verify", path, *further)
        assert verified.count("stays dense, is dense by choice") == len(chosen)
        assert f"{len(others)} layers keep exactly n of every m" in verified
    # The initial mask that it is compared with leaves the same layers dense.
    sizes = ("--num-samples", 2, "--sampling-steps", 2)
    assert line in run("evaluate", "--output-dir", tmp_path / "out", "--masks", path, *sizes)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["parameters"]["initial"] == report["parameters"]["learned"]
    assert [row["layer"] for row in report["dense_layers"]["layers"]] == chosen


@pytest.mark.slow
def test_prune_and_baseline_leave_them_dense(tmp_path, digits, names):
    chosen, others = names
    output = run("prune", "--output-dir", tmp_path / "pruned", *OPTION)
    sizes = {name: weight.numel() for name, weight in maskable_layers(digits.model).items()}
    removed = sum(sizes[name] for name in others) / sum(sizes.values()) / 2
    assert removed < 0.45
    assert f"({removed:.0%} of the maskable weights removed)" in output
    check_weights(DDPMPipeline.from_pretrained(tmp_path / "pruned").unet, digits.model, chosen)
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, magnitude_mask_file(digits, pattern=TWO_OF_FOUR, layout="channel", covered=others))
    reports = {}
    for name, options in (("dense", OPTION), ("file", ("--masks", path)), ("all", ())):
        run("baseline", "--output-dir", tmp_path / name, "--dataset-size", 16, "--batch-size", 16, *options)
        reports[name] = json.loads((tmp_path / name / "baseline.json").read_text())["mean_loss"]
    assert reports["dense"] == reports["file"] != reports["all"]


@pytest.mark.parametrize("command", ["train", "baseline"])
def test_a_mask_file_has_made_its_own_choice(tmp_path, command):
    masks = ("--masks", tmp_path / "masks.safetensors")
    with pytest.raises(MaskproError, match=r"dense is mid_block .*with mask file .*; allowed: without --dense or --masks"):
        run(command, "--output-dir", tmp_path / "run", *OPTION, *masks)
    with pytest.raises(MaskproError, match="dense is ' '; allowed: parts of layer names with spaces between them"):
        run(command, "--output-dir", tmp_path / "run", "--dense", " ")
