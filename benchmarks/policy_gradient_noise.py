"""How near the policy gradient is to the true gradient: a bound for its budget of forward passes.

python -m benchmarks.policy_gradient_noise              # the figures of results/masks.md: 256 masks on 256 samples
python -m benchmarks.policy_gradient_noise --workload causal_lm --masks 48 --samples 16 --evaluations 4000
python -m benchmarks.policy_gradient_noise --masks 8 --samples 16 --evaluations 640    # does it run?

The tuned settings of `mask_quality` learn a small part of the network. Masks are drawn from their logits at
several places of a run, and all are judged on the same samples. The masks' losses vary in two ways (two-way analysis of
variance without replication). V is the variance of the masks' mean losses; a gradient can be learned from it. W is the
variance that single samples add. The share of signal in a loss on b samples is then V / (V + W / b).

The estimate from K masks sums K scores, each times its loss. Take coordinates in which the score has unit covariance. Each
of the d = G (M - 1) free logits then adds (V + W / b) / K of noise. The gradient's square is at most V, and less where the
loss is not linear in the mask. So the squared cosine between estimate and gradient is at most 1 / (1 + d / (K * signal)).
The table has this bound for all masks of the budget, as if the logits stood still, and for the masks of a step.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer

from benchmarks.mask_methods import learned_methods, targets_of
from benchmarks.report import hardware_line, print_table
from maskpro.commands.running import run_command
from maskpro.distribution import sample
from maskpro.objectives import predict_in
from maskpro.runs import MaskFormat, RunCache, build_trainer, table_name
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig
from maskpro.workloads import open_workload

_METHOD = "MaskPro (tuned)"
# Places in a run where masks are drawn, as shares of its budget.
_PLACES = (0.0, 0.25, 1.0)
_BATCH = 128


@torch.no_grad()
def losses_of_masks(
    trainer: MaskTrainer, objective: Any, teacher: Any, *, masks: int, samples: int, seed: int
) -> torch.Tensor:
    """Loss of each mask drawn from a trainer's logits on each sample, `[masks, samples]`, float64."""
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.arange(samples) + trainer.config.dataset_size).split(_BATCH)
    batches = [(objective.batch(part), teacher(part)) for part in parts]
    rows = []
    for _ in range(masks):
        trainer.masked.set_mask(sample(trainer.logits, trainer.masked.pattern.n, generator))
        predictions = [
            (predict_in("float32", objective, trainer.masked.model, batch), batch, dense) for batch, dense in batches
        ]
        rows.append(torch.cat([objective.teacher_losses(found, dense, batch) for found, batch, dense in predictions]))
    return torch.stack(rows).double()


def variances(losses: torch.Tensor) -> tuple[float, float]:
    """(V, W) of losses `[masks, samples]`: variances of masks, and of masks with single samples; unbiased, V at least 0."""
    num_masks, num_samples = losses.shape
    by_mask, by_sample = losses.mean(dim=1, keepdim=True), losses.mean(dim=0, keepdim=True)
    rest = losses - by_mask - by_sample + losses.mean()
    within = (rest.square().sum() / ((num_masks - 1) * (num_samples - 1))).item()
    return max(0.0, by_mask.var().item() - within / num_samples), within


def main(
    masks: Annotated[int, typer.Option(help="Masks drawn at each place.")] = 256,
    samples: Annotated[int, typer.Option(help="Samples that judge each mask.")] = 256,
    evaluations: Annotated[int, typer.Option(help="Forward passes of the run.")] = 64_000,
    seed: Annotated[int, typer.Option(help="Of the run.")] = 5,
    workload: Annotated[str, typer.Option(help="digits or causal_lm, embedded.")] = "digits",
) -> None:
    """Print the table of signal, noise and bound along a run."""
    torch.set_num_threads(1)
    cpu, opened = torch.device("cpu"), open_workload(workload)
    settings = learned_methods(workload)[_METHOD] | {"seed": seed}
    targets = targets_of(settings, opened.model)
    per_mask = settings["batch_size"]
    budget = evaluations // per_mask // settings["masks_per_step"] * per_mask * settings["masks_per_step"]
    config = TrainerConfig(
        **settings, dataset_size=max(per_mask, budget // settings["masks_per_step"]), budget_samples=budget
    )
    cache = RunCache()
    trainer = build_trainer(
        opened, config, MaskFormat("2:4", "channel"), seed=seed, device=cpu, targets=targets, cache=cache
    )
    objective, teacher = cache.objective_of(opened, config, cpu), cache.tables[table_name(config)]
    step = settings["masks_per_step"]
    free = trainer.logits.shape[0] * (trainer.logits.shape[1] - 1)
    rows = []
    for place in _PLACES:
        trainer.train((round(place * budget) - trainer.num_samples_seen) // step * step)
        found = losses_of_masks(trainer, objective, teacher, masks=masks, samples=samples, seed=seed)
        between, within = variances(found)
        signal = between / (between + within / per_mask)
        num_masks = budget // per_mask
        rows.append(
            {
                "share of the budget": f"{place:g}",
                "mean loss": f"{found.mean():.3g}",
                "V, of masks": f"{between:.2g}",
                "W, of masks with samples": f"{within:.2g}",
                f"signal in a loss on {per_mask} samples": f"{signal:.3f}",
                f"squared cosine at most, {step} masks": _cosine(free, step * signal),
                f"the budget's {num_masks:,}": _cosine(free, num_masks * signal),
            }
        )
        print(rows[-1], flush=True)
    print_table(f"{free:,} free logits, {masks} masks on {samples} samples; {hardware_line()}", rows)


def _cosine(free: int, observations: float) -> str:
    return f"{1 / (1 + free / observations):.4f}" if observations else "0"


if __name__ == "__main__":
    run_command(main)
