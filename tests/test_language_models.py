"""Language models as a workload: loaded, masked, judged and saved by the same core as diffusion networks."""

import gc
import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import torch
from safetensors.torch import load_file
from shared_fixtures import CPU
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from maskpro.cli import app
from maskpro.embedded import DOCSTRINGS, LANGUAGE_MODEL
from maskpro.embedded.build_language_model import byte_tokenizer
from maskpro.errors import MaskproError
from maskpro.export import load_network, load_semi_structured
from maskpro.files import read_json
from maskpro.initial_masks import input_hessians, magnitude_masked_model, one_shot_mask
from maskpro.language_models import load_language_model, save_language_model
from maskpro.mask_file import load_mask_file
from maskpro.masked_model import MaskedModel, maskable_layers, model_hash
from maskpro.objectives import HeldOutSamples, SampleValues, teacher_outputs
from maskpro.pattern import NMPattern
from maskpro.runs import MaskFormat, build_trainer
from maskpro.text import read_text, split_text
from maskpro.trainer_config import TrainerConfig
from maskpro.workload import Budgets
from maskpro.workloads import open_workload

PATTERN = NMPattern(2, 4)


def tiny(kind="llama", **changes):
    """A small language model with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            settings = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
            return GPT2LMHeadModel(GPT2Config(vocab_size=256, **settings | changes)).eval()
        settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        settings |= {"num_key_value_heads": 1, "max_position_embeddings": 64, "vocab_size": 256}
        return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def saved(folder, model):
    folder.mkdir()
    save_language_model(folder, model, byte_tokenizer())
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model") / "llama", tiny())


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(gzip.decompress(DOCSTRINGS.read_bytes()).decode()[:20_000])
    return path


@pytest.fixture(scope="module")
def workload(model_folder, text_file):
    return opened(model_folder, text_file)


def opened(model, data, length=16):
    return open_workload("causal_lm", model=str(model), data=data, options={"sequence_length": length})


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# The text.


def test_the_parts_of_a_text_are_disjoint_blocks_and_make_up_the_whole(text_file):
    text = "".join(f"line {number} of a text\n" for number in range(3_000)) + "x" * 50_000
    parts = split_text(text)
    pieces = [parts.train, parts.validation, parts.selection, parts.test]
    assert sum(map(len, pieces)) == len(text)
    lines = [{line for line in piece.splitlines() if line.startswith("line")} for piece in pieces]
    assert sum(map(len, lines)) == len(set().union(*lines)) == 3_000
    assert 0.6 < len(parts.train) / len(text) < 0.8
    assert all(len(part) > 0.05 * len(text) for part in pieces)


def test_a_folder_of_text_is_read_in_order_and_other_files_are_named(tmp_path):
    for name, text in (("b.md", "second"), ("a.txt", "\ufefffirst"), ("picture.png", "no text")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    text, notes = read_text(tmp_path)
    assert text == "first\n\nsecond"
    assert notes == (f"1 files of {tmp_path} are passed over, as their names end in none of .txt .text .md .rst",)


def test_held_out_samples_have_no_token_in_common(workload):
    for split in ("validation", "selection", "test"):
        tokens = getattr(workload.tokens, split)
        count = len(tokens) // 16
        batch = workload.held_out_objective(split, CPU).batch(torch.arange(count))
        whole = tokens[: 16 * count].view(-1, 16).tolist()
        assert sorted(batch.tolist()) == sorted(whole)
        assert batch.tolist() != whole
    assert len(workload.without_test().tokens.test) == 0


# The model.


def test_a_saved_language_model_is_what_its_library_loads(tmp_path, model_folder):
    loaded = load_language_model(str(model_folder)).model
    masked = magnitude_masked_model(loaded, pattern=PATTERN, layout="channel")
    save_language_model(tmp_path, masked.model, AutoTokenizer.from_pretrained(model_folder))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(32).view(2, 16)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, masked.model(tokens).logits)
    for name, mask in masked.layer_masks().items():
        assert torch.equal(again.get_submodule(name).weight != 0, mask)
    text = "naïve — bytes\n"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == list(text.encode())


def test_conv1d_is_masked_along_its_inputs_and_saved_as_it_was(tmp_path, generator):
    dense = tiny("gpt2")
    for parameter in dense.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    folder = saved(tmp_path / "gpt2", dense)
    tokens = torch.arange(32).view(2, 16)
    loaded = load_language_model(str(folder)).model
    with torch.no_grad():
        assert torch.allclose(loaded(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-4)
    masked = magnitude_masked_model(loaded, pattern=PATTERN, layout="channel")
    assert len(masked.layers) == 4
    save_language_model(tmp_path, masked.model, None)
    weights = load_file(tmp_path / "model.safetensors")
    for name, mask in masked.layer_masks().items():
        stored = weights[f"{name}.weight"]  # [in, out]
        assert stored.shape == dense.get_submodule(name).weight.shape
        assert torch.equal(stored != 0, mask.t())
        assert ((stored != 0).t().reshape(-1, 4).sum(dim=1) == 2).all()
        kept = dense.get_submodule(name).weight.detach()
        assert torch.equal(stored[stored != 0], kept[stored != 0])


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_and_the_embedding_are_never_masked_whatever_their_names(tied):
    model = tiny(tie_word_embeddings=tied)
    model.set_output_embeddings(model.lm_head)
    names = maskable_layers(model)
    assert len(names) == 14
    assert not any("lm_head" in name or "embed" in name for name in names)

    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.embed_out = nn.Linear(4, 4), nn.Linear(4, 8)

        def get_output_embeddings(self):
            return self.embed_out

    assert list(maskable_layers(Renamed())) == ["body"]


def test_weights_in_bfloat16_stay_so_and_logits_are_float32(tmp_path, text_file):
    folder = saved(tmp_path / "bf16", tiny().to(torch.bfloat16))
    found = opened(folder, text_file)
    assert found.model.dtype == torch.bfloat16
    for estimator, target in (("relaxed_subset", "teacher"), ("policy_gradient", "data")):
        config = TrainerConfig(estimator=estimator, target=target, batch_size=4, dataset_size=16, budget_samples=16, lr=5.0)
        trainer = build_trainer(found, config, MaskFormat("2:4", "channel"), seed=0, device=CPU)
        start = trainer.logits.clone()
        losses = trainer.train(16)
        assert trainer.masked.base.dtype == torch.bfloat16
        assert trainer.logits.dtype == torch.float32
        assert losses.isfinite().all()
        assert not torch.equal(start, trainer.logits)


# Losses.


def test_the_target_data_is_the_target_noise_by_another_name(workload):
    logits = []
    for target in ("noise", "data"):
        config = TrainerConfig(target=target, batch_size=4, dataset_size=16, budget_samples=16)
        trainer = build_trainer(workload, config, MaskFormat("2:4", "channel"), seed=0, device=CPU)
        trainer.train(16)
        logits.append(trainer.logits)
    assert torch.equal(*logits)


def test_losses_are_the_same_with_and_without_a_gradient(workload):
    objective = workload.training_objective(seed=0, device=CPU)
    batch = objective.batch(torch.arange(3))
    prediction, other = (objective.predict(workload.model, part) for part in (batch, batch.flip(0)))
    found = [objective.losses(prediction, batch), objective.teacher_losses(prediction, other, batch)]
    with torch.no_grad():
        again = [objective.losses(prediction, batch), objective.teacher_losses(prediction, other, batch)]
    for one, two in zip(found, again, strict=True):
        assert one.shape == (3,)
        assert torch.allclose(one, two, rtol=1e-5)
    p, q = other.double().softmax(dim=-1), prediction.double().softmax(dim=-1)
    assert torch.allclose(found[1].double(), (p * (p / q).log()).sum(dim=-1).mean(dim=1), rtol=1e-3)


def test_outputs_that_are_not_kept_are_the_same(workload):
    objective = workload.training_objective(seed=0, device=CPU)
    kept, computed = (teacher_outputs(workload.model, objective, keep=keep) for keep in (True, False))
    indices = torch.tensor([3, 70, 5])
    assert torch.allclose(kept(indices), computed(indices), atol=1e-5)
    masked = magnitude_masked_model(workload.model, pattern=PATTERN, layout="channel").model
    held_out = workload.held_out_objective("test", CPU)
    judged = [HeldOutSamples(held_out, 70, workload.model, keep=keep).judge(masked) for keep in (True, False)]
    assert torch.equal(judged[0].errors, judged[1].errors)
    assert judged[0].errors.mean() > 0
    values = SampleValues(lambda indices: torch.zeros(len(indices)), keep=False)
    assert values(torch.arange(3)).shape == (3,)


def test_the_policy_gradient_builds_no_graph_for_a_backward_pass(workload):
    config = TrainerConfig(estimator="policy_gradient", batch_size=4, dataset_size=16, budget_samples=16)
    trainer = build_trainer(workload, config, MaskFormat("2:4", "channel"), seed=0, device=CPU)
    saved_tensors = []
    with torch.autograd.graph.saved_tensors_hooks(saved_tensors.append, lambda value: value), torch.enable_grad():
        trainer.train(8)
    assert saved_tensors == []
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in trainer.masked.model.parameters())
    # The same look at an estimator that has one.
    config = TrainerConfig(estimator="straight_through", batch_size=4, dataset_size=16, budget_samples=16)
    trainer = build_trainer(workload, config, MaskFormat("2:4", "channel"), seed=0, device=CPU)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved_tensors.append(0) or value, lambda value: value):
        trainer.train(8)
    assert saved_tensors


def test_blocks_of_a_language_model_are_computed_again_with_the_same_result(workload):
    logits = []
    for value in (False, True):
        config = TrainerConfig(
            batch_size=4, dataset_size=16, budget_samples=16, hidden_targets=1.0, gradient_checkpointing=value
        )
        trainer = build_trainer(workload, config, MaskFormat("2:4", "channel"), seed=0, device=CPU)
        trainer.train(16)
        logits.append(trainer.logits)
    assert torch.equal(*logits)


def held_bytes(of):
    """Bytes of the tensors that an object's attributes lead to; the garbage collector finds them, each memory once."""
    seen, storages, left = set(), {}, [of]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, type | ModuleType):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        left += gc.get_referents(value.__dict__ if isinstance(value, FunctionType) else value)
        left += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    return sum(storages.values())


@pytest.mark.parametrize("settings", [{}, {"target": "data"}, {"masks_per_step": 2}, {"refresh_reference": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_policy_gradient_holds_masked_weights_a_mask_and_logits_beyond_the_model(
    tmp_path, text_file, monkeypatch, dtype, settings
):
    """In bytes a weight, also after a step; packed masks are the rest. The dense outputs are not kept here."""
    monkeypatch.setattr("maskpro.workloads.causal_lm._KEPT_BYTES", 0)
    folder = saved(tmp_path / "model", tiny(hidden_size=128, intermediate_size=512, vocab_size=256).to(dtype))
    found = replace(opened(folder, text_file), budgets=Budgets(**dict.fromkeys(Budgets.__annotations__, 2)))
    before = held_bytes(found)
    config = TrainerConfig(estimator="policy_gradient", batch_size=2, dataset_size=2, budget_samples=4, **settings)
    trainer = build_trainer(found, config, MaskFormat("2:4", "channel"), seed=0, device=CPU)
    trainer.train(4)
    trainer.logits.grad = None
    weights = trainer.masked.base.numel()
    expected = dtype.itemsize + 1 + trainer.logits.dtype.itemsize
    assert expected <= (held_bytes([trainer, found]) - before) / weights < expected + 0.5


# One-shot masks.


def layer_inputs(model, name, batches):
    """Float64 inputs `[rows, K]` of a layer."""
    rows = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda module, inputs: rows.append(inputs[0].double().reshape(-1, inputs[0].shape[-1]))
    )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    hook.remove()
    return torch.cat(rows)


def keep_two_largest(scores):
    order = scores.view(-1, 4).argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores.view(-1, 4), dtype=torch.bool).scatter_(1, order[:, :2], True).view(scores.shape)


def published_sparsegpt(weight, inputs):
    """Algorithm 1 of arXiv 2301.00774 for 2:4 in float64, as the authors' code orders it; only the mask is returned."""
    weight, hessian = weight.double().clone(), 2 * inputs.t() @ inputs
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian)).t()
    mask = torch.ones_like(weight, dtype=torch.bool)
    for column in range(weight.shape[1]):
        if column % 4 == 0:
            block = slice(column, column + 4)
            mask[:, block] = keep_two_largest(weight[:, block] ** 2 / inverse.diagonal()[block] ** 2)
        error = torch.where(mask[:, column], 0.0, weight[:, column]) / inverse[column, column]
        weight[:, column:] -= error[:, None] * inverse[column, column:][None]
    return mask


def test_one_shot_masks_are_those_of_the_published_formulas(workload):
    masked = MaskedModel(load_language_model(workload.model_source).model, pattern=PATTERN, layout="channel")
    objective = workload.training_objective(seed=0, device=CPU)
    batches = [objective.batch(indices) for indices in torch.arange(128).split(32)]
    masks = {
        method: masked.layer_masks(one_shot_mask(masked, method, objective=objective, generator=torch.Generator()))
        for method in ("magnitude", "wanda", "sparsegpt")
    }
    weights = maskable_layers(masked.model)
    assert len(weights) == 14
    for name, weight in weights.items():
        inputs = layer_inputs(masked.model, name, batches)
        assert torch.equal(masks["magnitude"][name], keep_two_largest(weight.double().abs()))
        assert torch.equal(masks["wanda"][name], keep_two_largest(weight.double().abs() * inputs.norm(dim=0)))
        assert torch.equal(masks["sparsegpt"][name], published_sparsegpt(weight, inputs))
    assert any(not torch.equal(masks["wanda"][name], masks["magnitude"][name]) for name in weights)
    assert any(not torch.equal(masks["wanda"][name], masks["sparsegpt"][name]) for name in weights)
    assert input_hessians(masked, objective, 32).keys() == weights.keys()


# The commands.


def test_the_single_steps_of_a_language_model(tmp_path, model_folder, text_file):
    source = ("--workload", "causal_lm", "--model", model_folder, "--data", text_file, "--sequence-length", 16)
    settings = ("--dataset-size", 32, "--batch-size", 8, "--epoch", 2, "--lr", 3, "--device", "cpu")
    run("train", *source, *settings, "--hidden-targets", 0.5, "--output-dir", tmp_path / "run")
    masks = tmp_path / "run" / "masks.safetensors"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint")
    for name, mask in load_mask_file(masks).masks.items():
        assert torch.equal(again.get_submodule(name).weight != 0, mask)
    run("evaluate", *source, "--masks", masks, "--output-dir", tmp_path / "judged", "--device", "cpu")
    report = read_json(tmp_path / "judged" / "report.json")
    dense = report["models"]["dense"]
    assert dense["perplexity"] == pytest.approx(torch.tensor(dense["test_loss"]).exp().item())
    assert dense["perplexity_error"] == pytest.approx(dense["perplexity"] * dense["test_loss_error"])
    assert report["models"]["initial"]["fidelity"] == 0
    assert "image" not in json.dumps(report)
    checkpoint = ("--checkpoint-path", tmp_path / "run" / "checkpoint")
    run("evaluate", *source, *checkpoint, "--output-dir", tmp_path / "again", "--device", "cpu")
    assert read_json(tmp_path / "again" / "report.json")["models"] == report["models"]
    run("prune", *source, "--method", "wanda", "--output-dir", tmp_path / "pruned")
    extract = ("extract", "--workload", "causal_lm", "--model-path", tmp_path / "pruned", "--original-model", model_folder)
    assert "masks of 14 layers, 0.00%" in run(*extract, "--output-dir", tmp_path / "masks")
    found = run("verify", tmp_path / "masks" / "masks.safetensors", *source, "--target", "torch-sparse")
    assert "14 layers keep exactly n of every m" in found
    run("baseline", *source, "--dataset-size", 16, "--batch-size", 8, "--output-dir", tmp_path / "baseline")
    shown = run("doctor", model_folder, text_file, "--workload", "causal_lm", "--sequence-length", 16)
    assert "network: LlamaForCausalLM, 2 blocks, width 16, vocabulary of 256 tokens" in shown
    assert "image" not in shown


def test_the_embedded_language_model_opens_without_a_network_and_is_small():
    assert sum(path.stat().st_size for path in LANGUAGE_MODEL.iterdir()) < 5_000_000
    assert DOCSTRINGS.stat().st_size < 500_000
    found = open_workload("causal_lm")
    assert found.tokens.test.tolist() == list(split_text(read_text(DOCSTRINGS)[0]).test.encode())
    assert found.notes == ()
    batch = found.held_out_objective("test", CPU).batch(torch.arange(16))
    objective = found.held_out_objective("test", CPU)
    with torch.no_grad():
        loss = objective.losses(objective.predict(found.model, batch), batch).mean()
    assert loss < 2  # nats a byte; a guess at random has 5.5


def test_help_takes_neither_torch_nor_transformers():
    code = (
        "import sys; from typer.testing import CliRunner; from maskpro.cli import app\n"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_transformers_is_imported_only_where_a_language_model_is_opened():
    """What diffusers imports of it is its own affair."""
    code = (
        "import sys, maskpro.language_models, maskpro.objectives.causal_lm, maskpro.option_groups, maskpro.text\n"
        "assert 'torch' in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_exports_hold_the_masked_language_model(tmp_path, kind, text_file):
    folder = saved(tmp_path / kind, tiny(kind))
    source = ("--workload", "causal_lm", "--model", folder)
    run("prune", *source, "--data", text_file, "--sequence-length", 16, "--output-dir", tmp_path / "pruned")
    extract = ("extract", "--workload", "causal_lm", "--model-path", tmp_path / "pruned", "--original-model", folder)
    run(*extract, "--output-dir", tmp_path / "masks")
    masks = tmp_path / "masks" / "masks.safetensors"
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").state_dict()
    said = run("export", masks, *source, "--to", "transformers", "--output", tmp_path / "whole")
    assert "transformers folder in float32, for AutoModelForCausalLM.from_pretrained" in said
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert AutoTokenizer.from_pretrained(tmp_path / "whole")("a")["input_ids"] == [97]
    # Compressed, and back.
    small = tmp_path / "small.safetensors"
    assert "run on torch's 2:4 kernels" in run("export", masks, *source, "--to", "torch-sparse", "--output", small)
    run("export", small, "--to", "transformers", "--dtype", "float16", "--output", tmp_path / "again")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(found[name], value.half()) for name, value in expected.items())
    network = load_semi_structured(small, device="cpu", compress=lambda weight: weight)
    tokens = torch.arange(32).view(2, 16)
    with torch.no_grad():
        logits = network(tokens).logits.float()
        assert torch.allclose(logits, AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")(tokens).logits, atol=0.02)
    for to in ("onnx", "diffusers"):
        with pytest.raises(MaskproError, match=f"^to is {to} with a network of transformers; allowed: transformers, safet"):
            run("export", masks, *source, "--to", to, "--output", tmp_path / "no")
    with pytest.raises(MaskproError, match=r"holds a network of transformers; allowed: a diffusion network's file$"):
        run("bench-export", small)


def test_an_export_of_masks_that_name_no_model_names_it(tmp_path):
    source = ("--workload", "causal_lm")
    run("prune", *source, "--output-dir", tmp_path / "pruned")
    run("extract", *source, "--model-path", tmp_path / "pruned", "--output-dir", tmp_path / "masks")
    masks = tmp_path / "masks" / "masks.safetensors"
    said = run("export", masks, *source, "--to", "safetensors", "--output", tmp_path / "small.safetensors")
    assert "names no model; its layers' names and shapes are those of embedded docstrings LLaMA\n" in said
    embedded = load_language_model(str(LANGUAGE_MODEL)).model
    assert load_network(tmp_path / "small.safetensors").masks.base_hash == model_hash(embedded)


def test_a_diffusion_network_is_no_transformers_folder(tmp_path):
    run("prune", "--output-dir", tmp_path / "pruned")
    run("extract", "--model-path", tmp_path / "pruned", "--original-model", "digits", "--output-dir", tmp_path / "masks")
    masks = tmp_path / "masks" / "masks.safetensors"
    with pytest.raises(MaskproError, match=r"^to is transformers with a network of diffusers; allowed: diffusers, safet"):
        run("export", masks, "--to", "transformers", "--output", tmp_path / "no")


# Mistakes.


def test_text_that_is_none_or_too_little_is_refused(tmp_path, model_folder):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(MaskproError, match=r"^data is .*empty.txt, which holds no text; allowed: text of some thousand"):
        opened(model_folder, tmp_path / "empty.txt")
    (tmp_path / "short.txt").write_text("A short text.")
    with pytest.raises(
        MaskproError,
        match=r"short.txt has 10 tokens in its part for train; allowed: at least 16 with sequence_length 16",
    ):
        opened(model_folder, tmp_path / "short.txt")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(MaskproError, match=r"^data file .*latin.txt is not in UTF-8"):
        opened(model_folder, tmp_path / "latin.txt")
    with pytest.raises(
        MaskproError, match=r"^data is none, which is no file and no folder here; allowed: a text file, or "
    ):
        read_text(Path("none"))
    (tmp_path / "none").mkdir()
    with pytest.raises(MaskproError, match=r"none, which holds no text in files that end in \.txt \.text \.md \.rst"):
        opened(model_folder, tmp_path / "none")


def test_a_sequence_longer_than_the_positions_is_refused(model_folder, text_file):
    with pytest.raises(MaskproError, match=r"^sequence_length is 65; allowed: 2 to 64, the positions of model "):
        opened(model_folder, text_file, 65)
    with pytest.raises(MaskproError, match=r"^sequence_length is 1; allowed: a whole number of at least 2$"):
        opened(model_folder, text_file, 1)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(tmp_path, text_file):
    folder = saved(tmp_path / "few", tiny(vocab_size=100))
    with pytest.raises(MaskproError, match=r"makes token \d+; allowed: below 100, the rows of the model's embedding"):
        opened(folder, text_file)


def changed_config(folder, model_folder, **changes):
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = read_json(folder / "config.json") | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_with_code_of_its_own_is_refused_and_never_run(tmp_path, model_folder, text_file):
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    folder = changed_config(tmp_path / "own", model_folder, model_type="own", **own)
    (folder / "modeling_own.py").write_text("raise SystemExit('code of the model was run')")
    with pytest.raises(MaskproError, match=r"needs code of its own \(auto_map in its config.json\), which is never run"):
        opened(folder, text_file)
    folder = changed_config(tmp_path / "known", model_folder, **own)
    assert opened(folder, text_file).notes == ("code that the model names (auto_map) is not run",)
    with pytest.raises(MaskproError, match=r"has model_type 'other' in its config.json, which transformers does not know"):
        opened(changed_config(tmp_path / "other", model_folder, model_type="other"), text_file)


class RunsCode:
    def __reduce__(self):
        return sys.exit, ("code in a file of weights was run",)


def test_weights_that_are_missing_or_unreadable_are_refused(tmp_path, model_folder, text_file):
    with pytest.raises(MaskproError, match=r"lacks \d+ of the network's weights, such as model\.layers\.2\."):
        opened(changed_config(tmp_path / "deep", model_folder, num_hidden_layers=3), text_file)
    folder = changed_config(tmp_path / "damaged", model_folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(MaskproError, match=r"^model .*damaged can't be loaded \("):
        opened(folder, text_file)
    folder = changed_config(tmp_path / "pickled", model_folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": RunsCode()}, folder / "pytorch_model.bin")
    with pytest.raises(MaskproError, match=r"^model .*pickled can't be loaded \("):
        opened(folder, text_file)
    folder = changed_config(tmp_path / "wordless", model_folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(MaskproError, match=r"^tokenizer of model .*wordless can't be loaded \("):
        opened(folder, text_file)


def test_kinds_of_models_are_not_mixed_up(tmp_path, model_folder, text_file):
    from maskpro.embedded import DIGITS_MODEL

    for folder in (DIGITS_MODEL, DIGITS_MODEL / "unet"):
        with pytest.raises(MaskproError, match=r"is a diffusers model; allowed with workload causal_lm: a language model"):
            opened(folder, text_file)
    with pytest.raises(MaskproError, match=r"is not a diffusers pipeline: it has no model_index.json; name another"):
        open_workload("cifar10", model=str(model_folder))
    with pytest.raises(
        MaskproError, match=r"^resize is box with workload causal_lm; allowed: sequence_length, text_column$"
    ):
        run("train", "--workload", "causal_lm", "--resize", "box", "--output-dir", tmp_path / "run")
    with pytest.raises(MaskproError, match=r"^sequence_length is 64 with workload digits; allowed: resize, "):
        run("train", "--sequence-length", 64, "--output-dir", tmp_path / "run")
    with pytest.raises(MaskproError, match=r"^ema is True with a language model; allowed: without ema$"):
        run("extract", "--workload", "causal_lm", "--model-path", model_folder, "--original-model", model_folder, "--ema",
            "--output-dir", tmp_path / "masks")  # fmt: skip


def test_commands_that_need_images_refuse_a_text(tmp_path, model_folder, text_file):
    source = ("--workload", "causal_lm", "--model", model_folder, "--data", text_file, "--sequence-length", 16)
    with pytest.raises(MaskproError, match=r"^workload is causal_lm, which has no images; allowed: digits or cifar10$"):
        run("reference-statistics", tmp_path / "statistics.npz", *source)
    with pytest.raises(
        MaskproError, match=r"^frechet is True with workload causal_lm; allowed: sequence_length, text_column$"
    ):
        run("evaluate", *source, "--masks", "m", "--compute-fid", "--output-dir", tmp_path / "judged")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        MaskproError, match=r"^workload is causal_lm, for which package transformers is missing; allowed: after pip install"
    ):
        open_workload("causal_lm")


def test_a_model_without_linear_layers_is_refused(tmp_path, text_file):
    folder = saved(tmp_path / "bare", tiny(num_hidden_layers=0))
    with pytest.raises(MaskproError, match=r"^model has no maskable layer; allowed: a model with unprotected"):
        run("doctor", folder, text_file, "--workload", "causal_lm", "--sequence-length", 16)


def test_more_samples_than_the_text_has_are_refused(tmp_path, model_folder, text_file):
    source = ("--workload", "causal_lm", "--model", model_folder, "--data", text_file, "--sequence-length", 16)
    run("prune", *source, "--output-dir", tmp_path / "pruned")
    judged = ("evaluate", *source, "--checkpoint-path", tmp_path / "pruned", "--output-dir", tmp_path / "judged")
    with pytest.raises(MaskproError, match=r"^test_samples is 9999; allowed: at most \d+, the sequences of 16 tokens in"):
        run(*judged, "--test-samples", 9999)
