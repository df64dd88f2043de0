"""A search on a language model: the embedded one, or any that --model and --data name.

lr is in units of 0.1 of a logit a step. logits is the magnitude of the initial logits. magnitude_prior is the strength of
the weights' sizes in them. hidden_targets is the weight of the dense network's attention and feed-forward blocks as further
targets. A sample is a sequence of tokens; dataset_size is a number of them. The upper bound of lograndint is excluded. Seed
points are run first, exactly as written.
"""

from ray import tune

workload = "causal_lm"
pattern = "2:4"
layout = "channel"
num_trials = 12
max_samples = 2_000
searcher = "gp"  # a Gaussian process: it learns from few trials
num_reports = 4
reduction_factor = 4  # one rung, at 1/4 of the budget; of every four trials there the best one is promoted
promotion = "restart"  # the rung ends a run of its own: a run cut off in its annealing tells little
rung_lr_exponent = 0.3

param_space = {
    "estimator": "relaxed_subset",
    "target": "teacher",
    "lr_decay": "cosine",
    "final_temperature": 0.5,
    "lr": tune.loguniform(0.5, 8.0),
    "logits": tune.uniform(2.0, 8.0),
    "magnitude_prior": tune.uniform(0.0, 3.0),
    "hidden_targets": tune.uniform(0.0, 2.0),
    "batch_size": tune.choice([4, 8, 16]),
    "dataset_size": tune.lograndint(500, 2_001),
}

seed_points = [
    {
        "name": "tried by hand",
        "lr": 2.0,
        "logits": 3.0,
        "magnitude_prior": 1.4,
        "hidden_targets": 1.0,
        "batch_size": 8,
        "dataset_size": 2_000,
    },
]
