"""Resident memory of learning a language model's mask on a CPU, in bytes a masked weight, and the time of a step.

python -m benchmarks.language_model_memory policy_gradient --dtype bfloat16      # Linux; an estimator a process

The model is a LLaMA of random weights, with --batch-size sequences of 128 tokens a step. The dense
model is included. Seconds are the process's own, on one thread.

The last columns reckon the same step of LLaMA-2-7B from that: the same bytes and seconds a masked weight, and its embedding
and head once. Its activations would take fewer bytes a weight, as they grow with the width and weights with its square. Its
vocabulary of 32,000 is not in it: the outputs of one pass of two sequences are 33 MB.
"""

from __future__ import annotations

import ctypes
import gc
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.report import hardware_line, print_table
from maskpro.commands.running import run_command
from maskpro.names import EstimatorName, Target
from maskpro.runs import MaskFormat, build_trainer
from maskpro.trainer_config import TrainerConfig
from maskpro.workloads import causal_lm, open_workload
from maskpro.workloads.causal_lm import CausalLMWorkload, TokenSplits

_LENGTH = 128
# LLaMA-2-7B (Touvron et al., arXiv 2307.09288): 32 blocks, each with attention and a feed-forward part; embedding and head.
_MASKED_7B = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
_OTHER_7B = 2 * 32_000 * 4096


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def main(
    estimator: Annotated[EstimatorName, typer.Argument(help="Estimator.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: float32 or bfloat16.")] = "float32",
    width: Annotated[int, typer.Option(help="Width of the model.")] = 1024,
    blocks: Annotated[int, typer.Option(help="Blocks of the model.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Sequences of 128 tokens in a step.")] = 2,
    masks_per_step: Annotated[int, typer.Option(help="Masks of a step (policy_gradient).")] = 1,
    target: Annotated[Target, typer.Option(help="teacher: the dense model runs again in each step.")] = "data",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Compute blocks again in the backward pass.")] = False,
) -> None:
    """Print the memory of the dense model, of the trainer before its first step and at the peak, and the time of a step."""
    torch.set_num_threads(1)
    # Freed memory goes back to the system from 1 MiB on (M_MMAP_THRESHOLD), as that of large layers does in any case.
    ctypes.CDLL(None).mallopt(-3, 2**20)
    causal_lm._KEPT_BYTES = 0  # as with a large vocabulary
    embedded = open_workload("causal_lm")
    assert isinstance(embedded, CausalLMWorkload)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=256,
        max_position_embeddings=_LENGTH,
    )
    gc.collect()
    before = _status("VmRSS")
    torch.set_default_dtype(getattr(torch, dtype))
    model: nn.Module = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.eval().requires_grad_(False)
    tokens = torch.randint(256, (32 * _LENGTH,), generator=torch.Generator().manual_seed(0))
    budgets = replace(embedded.budgets, validation_samples=8, selection_samples=8, test_samples=8)
    splits = TokenSplits(tokens, tokens, tokens, tokens)
    workload = replace(embedded, model=model, tokens=splits, sequence_length=_LENGTH, budgets=budgets)
    gc.collect()
    dense = _status("VmRSS") - before
    settings = TrainerConfig(
        estimator=estimator,
        target=target,
        batch_size=batch_size,
        dataset_size=2 * batch_size,
        budget_samples=4 * batch_size * masks_per_step,
        masks_per_step=masks_per_step,
        gradient_checkpointing=gradient_checkpointing,
    )
    trainer = build_trainer(workload, settings, MaskFormat("2:4", "channel"), seed=0, device=torch.device("cpu"))
    gc.collect()
    built, weights = _status("VmRSS") - before, trainer.masked.base.numel()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    trainer.train(batch_size * masks_per_step)
    began = time.process_time()
    trainer.train(batch_size * masks_per_step)
    seconds, peak = time.process_time() - began, _status("VmHWM") - before
    further = [f"{masks_per_step} masks a step"] * (masks_per_step > 1) + ["checkpointing"] * gradient_checkpointing
    row = {"estimator": estimator, "target": target, "with": ", ".join(further), "weights": dtype} | {
        name: f"{size / weights:.1f}"
        for name, size in (("dense model alone", dense), ("before the first step", built), ("peak of a step", peak))
    }
    row["seconds of a step"] = f"{seconds:.1f}"
    for name, size in (("7B: GB before the first step", built), ("7B: GB at the peak", peak)):
        row[name] = f"{(size / weights * _MASKED_7B + _OTHER_7B * trainer.masked.base.itemsize) / 1e9:.0f}"
    row["7B: seconds of a step"] = f"{seconds * _MASKED_7B / weights:.0f}"
    print_table(f"{weights:,} masked weights, bytes a weight; {hardware_line()}", [row])


if __name__ == "__main__":
    run_command(main)
