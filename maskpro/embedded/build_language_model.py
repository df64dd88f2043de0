"""Makes the embedded language model: `python -m maskpro.embedded.build_language_model` (about 20 minutes on one core).

Its text is the documentation of Python's standard library: the docstrings of all modules, classes and functions, each once,
in the order of the files' names. Another version of Python has other docstrings, so the text is packaged with the model.
The model learns from the text's training part alone; the parts for validation, selection and test are new to it.
"""

from __future__ import annotations

import ast
import gzip
import math
import sysconfig
import time
from pathlib import Path

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from maskpro.embedded import DOCSTRINGS, LANGUAGE_MODEL
from maskpro.text import read_text, split_text

# Folders of the library that hold no documentation of it.
_LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "lib2to3")
_LENGTH, _BATCH = 256, 16
_HELD_OUT_WINDOWS = 128


def docstrings(library: Path) -> str:
    """The docstrings of a folder of Python files, each once, with an empty line between them."""
    found: dict[str, None] = {}
    for path in sorted(library.rglob("*.py")):
        if set(path.relative_to(library).parts) & set(_LEFT_OUT):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # a sample of a mistake
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.setdefault(ast.get_docstring(node) or "")
    return "\n\n".join(text for text in found if text)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer whose token ids are the bytes of the text in UTF-8."""
    # The 256 characters by which byte-level tokenizers write bytes: printable ones stand for themselves.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={characters[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]


def small_llama(generator: torch.Generator) -> LlamaForCausalLM:
    """An untrained LLaMA of 1.1M parameters, weights from a normal distribution of standard deviation 0.02."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def _bytes_of(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.int64)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """Mean loss of a byte on windows of held-out text."""
    windows = tokens.unfold(0, _LENGTH, _LENGTH)[:_HELD_OUT_WINDOWS]
    return float(torch.stack([model(part, labels=part).loss for part in windows.split(_BATCH)]).mean())


def pretrain(model: LlamaForCausalLM, train: Tensor, held_out: Tensor, *, steps: int, generator: torch.Generator) -> None:
    """AdamW on windows at random places, with a short warm-up and half a cosine."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    windows, started = train.unfold(0, _LENGTH, 1), time.monotonic()
    for step in range(1, steps + 1):
        batch = windows[torch.randint(len(windows), (_BATCH,), generator=generator)]
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps:
            print(
                f"step {step} of {steps}, {time.monotonic() - started:.0f} s: training batch {loss.item():.4f}, "
                f"held-out {held_out_loss(model, held_out):.4f} nats a byte",
                flush=True,
            )


def main(steps: int = 1_200, seed: int = 0, collect: bool = False) -> None:
    """Train and write the embedded language model; with `collect`, first write the text of this Python's library."""
    if collect:
        text = docstrings(Path(sysconfig.get_paths()["stdlib"]))
        DOCSTRINGS.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    parts = split_text(read_text(DOCSTRINGS)[0])
    generator = torch.Generator().manual_seed(seed)
    model = small_llama(generator)
    pretrain(model, _bytes_of(parts.train), _bytes_of(parts.validation), steps=steps, generator=generator)
    model.half().save_pretrained(LANGUAGE_MODEL)  # type: ignore[no-untyped-call]
    byte_tokenizer().save_pretrained(LANGUAGE_MODEL)


if __name__ == "__main__":
    typer.run(main)
