"""Channel permutation before pruning (Pool and Yu 2021, as in NVIDIA's ASP): what it is worth once masks are learned.

python -m benchmarks.channel_permutation FOLDER       # FOLDER keeps the permuted network, an equivalent one

The order of a layer's input channels decides which weights share a group. It can change without changing the network where
the layer that makes these channels changes with it. In a diffusers UNet that holds for two kinds of layers:

- the second convolution of a residual block, whose inputs are conv1 and the time embedding after norm2. Only channels of
  the same group of norm2 may change places;
- the output projection of an attention, whose inputs are to_v. Only channels of the same head may change places.

All other layers read the residual stream, which several layers write to. Channels are ordered so that a magnitude mask
keeps most: of every two groups of four, the best of their 35 splits is taken until no split is better.
"""

from __future__ import annotations

import copy
from itertools import combinations
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from benchmarks.layout import cells
from benchmarks.mask_methods import EVALUATIONS, LEARNED, OURS, Job, Setting
from benchmarks.mask_quality import Runner
from benchmarks.report import hardware_line, print_table
from benchmarks.resumable import Rows
from maskpro.commands.running import run_command
from maskpro.workloads.opening import open_images

# All splits of eight channels into two fours, `[35, 8]`: channel 0 is always in the first one.
_SPLITS = torch.tensor(
    [[0, *rest, *sorted(set(range(1, 8)) - set(rest))] for rest in combinations(range(1, 8), 3)], dtype=torch.long
)


def _kept(rows: Tensor) -> Tensor:
    """What 2:4 magnitude masks keep of `[..., channels]`, summed over rows; `[...]` without the first dimension."""
    return rows.unflatten(-1, (-1, 4)).topk(2, dim=-1).values.sum(dim=(0, -2, -1))


def best_order(weight: Tensor, block: int) -> Tensor:
    """The order of input channels under which a 2:4 mask keeps most; channels stay within their block.

    Args:
        weight: `[O, C]` or `[O, C, kh, kw]`.
        block: channels that may change places with each other are this many in a row; it divides C.
    """
    rows = weight.detach().abs().movedim(1, -1).reshape(-1, weight.shape[1])
    order = torch.arange(weight.shape[1])
    if block % 4:
        return order
    for start in range(0, len(order), block):
        found = True
        while found:
            found = False
            for first, second in combinations(range(start, start + block, 4), 2):
                places = torch.tensor([*range(first, first + 4), *range(second, second + 4)])
                kept = _kept(rows[:, order[places]][:, _SPLITS])
                best = int(kept.argmax())
                if kept[best] > kept[0] * (1 + 1e-6):  # split 0 is the present one
                    order[places], found = order[places][_SPLITS[best]], True
    return order


def _reorder(module: nn.Module, order: Tensor, dim: int = 0) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            if dim == 0 or name == "weight":
                parameter.copy_(parameter.index_select(dim, order))


def permute_channels(model: nn.Module) -> float:
    """Reorder a UNet's channels in place, and leave its outputs as they are; returns the share of weights that moved.

    Blocks whose time embedding scales (`resnet_time_scale_shift` other than "default") keep their order.
    """
    moved = 0
    for module in model.modules():
        if isinstance(module, ResnetBlock2D) and module.time_embedding_norm == "default":
            norm, reader = module.norm2, module.conv2
            order = best_order(reader.weight, norm.num_channels // norm.num_groups)
            writers = [module.conv1, norm] + ([] if module.time_emb_proj is None else [module.time_emb_proj])
        elif isinstance(module, Attention):
            reader, writers = module.to_out[0], [module.to_v]
            order = best_order(reader.weight, module.inner_dim // module.heads)
        else:
            continue
        for writer in writers:
            _reorder(writer, order)
        _reorder(reader, order, dim=1)
        moved += int((order != torch.arange(len(order))).sum()) * reader.weight[:, 0].numel()
    return moved / sum(parameter.numel() for parameter in model.parameters())


def main(
    folder: Annotated[Path, typer.Argument(help="Where the permuted network is written, as a diffusers folder.")],
    model: Annotated[str | None, typer.Option(help="Folder of a digits network other than the embedded one.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds of calibration samples and masks.")] = 3,
    first_seed: Annotated[int, typer.Option(help="First seed; the settings were found on seeds 0 to 4.")] = 5,
    evaluations: Annotated[int, typer.Option(help="Sample evaluations of each learned mask.")] = EVALUATIONS,
    processes: Annotated[int, typer.Option(help="Concurrent masks.")] = 2,
    held_out: Annotated[int | None, typer.Option(help="Validation and test samples; default: the workload's.")] = None,
    num_generated: Annotated[int | None, typer.Option(help="Images judged; default: the workload's.")] = None,
    rows: Annotated[Path | None, typer.Option(help="File with finished masks, to resume from.")] = None,
) -> None:
    """Print error, loss and Frechet distance of magnitude and learned masks, with and without the permutation."""
    workload = open_images("digits", model=model, data=None)
    permuted = copy.deepcopy(workload.model)
    share = permute_channels(permuted)
    workload.save(folder, permuted)
    lines = []
    for name, source in (("as it is", model), ("permuted", str(folder))):
        setting = Setting(workload="digits", model=source, held_out=held_out, num_generated=num_generated)
        jobs = [Job(method="magnitude", pattern="2:4", seed=0)] + [
            Job(method=OURS, pattern="2:4", seed=seed, evaluations=evaluations, settings=LEARNED[OURS])
            for seed in range(first_seed, first_seed + seeds)
        ]
        with Runner(setting, processes=processes, rows=None if rows is None else Rows(rows)) as runner:
            made = runner.run(jobs)
        lines += [{"method": method, "channels": name} | cells(part) for method, part in made.groupby("method", sort=False)]
    print_table(f"{share:.1%} of the weights in another order, {seeds} seeds; {hardware_line()}", lines)


if __name__ == "__main__":
    run_command(main)
