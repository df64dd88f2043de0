"""A search with MaskPro's own policy gradient (forward passes only) instead of straight-through.

lr is in units of 0.1 of a logit a step. logits is the magnitude of the initial logits. dataset_size is a number of
calibration samples. masks_per_step is the number of masks that a step compares on the same samples, which count once for
each mask. targets are the learned layers. The upper bound of lograndint is excluded. Seed points are run first, exactly as
written: the original's five configurations, and the best settings known.
"""

from ray import tune

workload = "digits"
pattern = "2:4"
layout = "channel"
num_trials = 20
max_samples = 61_440  # forward passes only: a sample costs less than with a backward pass
searcher = "gp"  # a Gaussian process: it learns from few trials
num_reports = 8
reduction_factor = 8  # one rung, at 1/8 of the budget; of every eight trials there the best one is promoted
promotion = "restart"  # lr may decay over a trial's budget: a run cut off before that tells little

# Most of the loss comes from the shortcut convolutions, above all from those of the last up block.
_LAST_SHORTCUTS = "up_blocks.1.resnets.0.conv_shortcut up_blocks.1.resnets.1.conv_shortcut"

param_space = {
    "estimator": "policy_gradient",
    "target": "teacher",
    "timesteps": "importance",
    "lr": tune.loguniform(0.4, 40.0),
    "logits": tune.uniform(2.0, 10.0),
    "batch_size": tune.choice([2, 4, 8, 16, 32, 64, 128]),
    "dataset_size": tune.lograndint(2_000, 50_001),
    "masks_per_step": tune.choice([1, 4, 16, 32]),
    "targets": tune.choice(["all", "conv_shortcut", _LAST_SHORTCUTS]),
    "lr_decay": tune.choice(["linear", "constant"]),
}

_EVERYTHING = {"masks_per_step": 1, "targets": "all", "lr_decay": "linear"}

seed_points = [
    {"name": "conservative", "dataset_size": 5_000, "batch_size": 16, "lr": 0.5, "logits": 3.0, **_EVERYTHING},
    {"name": "standard", "dataset_size": 20_000, "batch_size": 64, "lr": 1.0, "logits": 5.0, **_EVERYTHING},
    {"name": "aggressive", "dataset_size": 50_000, "batch_size": 32, "lr": 2.0, "logits": 7.0, **_EVERYTHING},
    {"name": "efficient", "dataset_size": 25_000, "batch_size": 128, "lr": 1.5, "logits": 6.0, **_EVERYTHING},
    {"name": "finetuning", "dataset_size": 30_000, "batch_size": 32, "lr": 0.8, "logits": 10.0, **_EVERYTHING},
    {
        "name": "best known",
        "dataset_size": 50_000,
        "batch_size": 2,
        "lr": 24.0,
        "logits": 4.0,
        "masks_per_step": 32,
        "targets": _LAST_SHORTCUTS,
        "lr_decay": "constant",
    },
]
