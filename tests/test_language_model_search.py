"""A search of a language model: its figures in trials.csv, in the final evaluation and in the report."""

import datetime
import gzip
import json
import math

import pandas as pd
import pytest
import ray
import torch
from shared_fixtures import RAY_IN_PROCESS, with_two_nodes
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from analysis.report import write_report
from maskpro.embedded import DOCSTRINGS
from maskpro.embedded.build_language_model import byte_tokenizer
from maskpro.errors import MaskproError
from maskpro.files import read_json
from maskpro.language_models import save_language_model
from maskpro.mask_file import load_mask_file
from maskpro.search_options import JobOptions
from maskpro.tuning.command import parse_command
from maskpro.tuning.main_job import run_main_job

SPACE = """
from ray import tune
workload = "causal_lm"
num_trials = 2
num_reports = 2
max_samples = 64
scheduler = "none"
param_space = {"estimator": "relaxed_subset", "lr": tune.loguniform(2.0, 8.0), "batch_size": 8, "dataset_size": 64}
seed_points = [{"lr": 5.0}]
"""

pytestmark = RAY_IN_PROCESS


@pytest.mark.slow
def test_a_search_of_a_language_model_reports_perplexity_and_no_image(tmp_path, started_cluster):
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    (tmp_path / "model").mkdir()
    save_language_model(tmp_path / "model", model, byte_tokenizer())
    (tmp_path / "text.txt").write_text(gzip.decompress(DOCSTRINGS.read_bytes()).decode()[:20_000])
    (tmp_path / "space.py").write_text(SPACE)
    given = {
        "space": tmp_path / "space.py",
        "model": str(tmp_path / "model"),
        "data": tmp_path / "text.txt",
        "sequence_length": 16,
        "experiment": "x",
        "results_dir": tmp_path / "results",
        "gpus_per_trial": 0.0,
        "address": with_two_nodes(started_cluster).address,
    }
    search = parse_command(given, JobOptions(), now=datetime.datetime.now())
    try:
        assert run_main_job(search, write_report, resume=False) == 0
    finally:
        ray.shutdown()
    folder = tmp_path / "results" / "x"
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["val_perplexity"].tolist() == pytest.approx([math.exp(loss) for loss in trials["val_loss"]])
    evaluated = read_json(folder / "final_evaluation.json")
    for figures in evaluated["models"].values():
        assert figures["perplexity"] == pytest.approx(math.exp(figures["test_loss"]))
        assert 0 < figures["perplexity_error"] < figures["perplexity"]
    described = read_json(folder / "experiment.json")["workload"]
    assert described["sequence_length"] == 16
    assert described["tokens"]["test"] == len(search.workload.tokens.test)
    assert "image" not in json.dumps([evaluated, described, search.understood()])
    assert "image" not in (folder / "report.md").read_text()
    best = AutoModelForCausalLM.from_pretrained(folder / "best" / "checkpoint")
    for name, mask in load_mask_file(folder / "best" / "masks.safetensors").masks.items():
        assert torch.equal(best.get_submodule(name).weight != 0, mask)
    # Another text than the one that it began with.
    (tmp_path / "text.txt").write_text("another text\n" * 2_000)
    with pytest.raises(MaskproError, match=r"^tokens of the experiment is .*; allowed: the same data and space.py$"):
        parse_command({}, JobOptions(resume=folder), now=datetime.datetime.now())
