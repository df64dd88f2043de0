"""The default search: the settings of the relaxed_subset estimator on the embedded workload.

lr is in units of 0.1 of a logit a step. logits is the magnitude of the initial logits. magnitude_prior is the strength of
the weights' sizes in them. hidden_targets is the weight of the dense network's blocks as further targets. dataset_size is a
number of calibration samples. The upper bound of lograndint is excluded. Seed points are run first, exactly as written: the
original's five configurations, and the best settings known.
"""

from ray import tune

workload = "digits"
pattern = "2:4"
layout = "channel"
num_trials = 24
searcher = "gp"  # a Gaussian process: it learns from few trials
num_reports = 8
reduction_factor = 8  # one rung, at 1/8 of the budget; of every eight trials there the best one is promoted
promotion = "restart"  # the rung ends a run of its own: a run cut off in its annealing tells little
rung_lr_exponent = 0.3  # and takes steps 1.9 times as large: the shorter a run, the larger its best lr

param_space = {
    "estimator": "relaxed_subset",
    "target": "teacher",
    "timesteps": "importance",
    "lr_decay": "cosine",
    "final_temperature": 0.5,
    "lr": tune.loguniform(0.3, 3.0),
    "logits": tune.uniform(2.0, 10.0),
    "magnitude_prior": tune.uniform(0.0, 4.0),
    "hidden_targets": tune.uniform(0.0, 2.0),
    "batch_size": tune.choice([8, 16, 32, 64, 128]),
    "dataset_size": tune.lograndint(2_000, 50_001),
}

# The original has neither priors nor hidden targets.
_PLAIN = {"magnitude_prior": 0.0, "hidden_targets": 0.0}

seed_points = [
    {"name": "conservative", "dataset_size": 5_000, "batch_size": 16, "lr": 0.5, "logits": 3.0, **_PLAIN},
    {"name": "standard", "dataset_size": 20_000, "batch_size": 64, "lr": 1.0, "logits": 5.0, **_PLAIN},
    {"name": "aggressive", "dataset_size": 50_000, "batch_size": 32, "lr": 2.0, "logits": 7.0, **_PLAIN},
    {"name": "efficient", "dataset_size": 25_000, "batch_size": 128, "lr": 1.5, "logits": 6.0, **_PLAIN},
    {"name": "finetuning", "dataset_size": 30_000, "batch_size": 32, "lr": 0.8, "logits": 10.0, **_PLAIN},
    {
        "name": "best known",
        "dataset_size": 50_000,
        "batch_size": 8,
        "lr": 1.0,
        "logits": 3.0,
        "magnitude_prior": 1.4,
        "hidden_targets": 1.0,
    },
]
