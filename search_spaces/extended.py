"""The default search, extended by the mask's own choices: estimator, pattern, layout and learned layers.

Every choice here removes half of the weights, so losses can be compared. A 1:2 mask is also a 2:4 mask; the gain of 2:4
over it is the gain of larger groups. (4:8 would be the next step, but gumbel_softmax then has 70 logits a group instead of
6. 1:4 removes three quarters of the weights and could only lose: search it alone.) "channel" is the layout of sparse tensor
cores, "flattened" is the original's. Masked layers outside the targets keep their initial mask.

The first seed point is the reference; each of the others differs from it in one choice. --only-seed-points compares just
these six, each at its full budget. Units are as in default.py.
"""

from ray import tune

workload = "digits"
num_trials = 24
num_reports = 16
reduction_factor = 4  # the best quarter of those that have reached 1/16 and 1/4 of the budget is promoted
promotion = "restart"  # each rung ends a run of its own, as in default.py

param_space = {
    "target": "teacher",
    "timesteps": "importance",
    "estimator": tune.choice(["straight_through", "relaxed_subset", "policy_gradient"]),
    "pattern": tune.choice(["2:4", "1:2"]),
    "layout": tune.choice(["channel", "flattened"]),
    "targets": tune.choice(["all", "up_blocks", "down_blocks up_blocks"]),
    "lr": tune.loguniform(0.4, 4.0),
    "logits": tune.uniform(2.0, 10.0),
    "batch_size": tune.choice([16, 32, 64, 128]),
    "dataset_size": tune.lograndint(2_000, 50_001),
}

# lr, logits, batch size and dataset size are those of the configuration "aggressive".
_reference = {
    "estimator": "straight_through",
    "pattern": "2:4",
    "layout": "channel",
    "targets": "all",
    "lr": 2.0,
    "logits": 7.0,
    "batch_size": 32,
    "dataset_size": 50_000,
}

seed_points = [
    {"name": "reference", **_reference},
    {"name": "policy gradient", **_reference, "estimator": "policy_gradient"},
    {"name": "groups of two", **_reference, "pattern": "1:2"},
    {"name": "flattened", **_reference, "layout": "flattened"},
    {"name": "up blocks alone", **_reference, "targets": "up_blocks"},
    {"name": "all but the middle", **_reference, "targets": "down_blocks up_blocks"},
]
