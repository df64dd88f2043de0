"""The original's five configurations alone, each at its full budget: nothing is suggested or stopped early.

    python tune_main.py --space search_spaces/five_configurations.py                                        # all five
    python tune_main.py --space search_spaces/five_configurations.py --config 2                             # one of them
    python tune_main.py --space search_spaces/five_configurations.py --seed-points 1,3 --only-seed-points   # some of them

lr is in units of 0.1 of a logit a step. logits is the magnitude of the initial logits. dataset_size is a number of
calibration samples. The ranges only matter if --num-trials is above five. The original's own estimator and target are
"policy_gradient" and "noise".
"""

from ray import tune

workload = "digits"
pattern = "2:4"
layout = "channel"
num_trials = 5
scheduler = "none"

param_space = {
    "estimator": "straight_through",
    "target": "teacher",
    "lr": tune.loguniform(0.4, 4.0),
    "logits": tune.uniform(2.0, 10.0),
    "batch_size": tune.choice([16, 32, 64, 128]),
    "dataset_size": tune.lograndint(2_000, 50_001),
}

seed_points = [
    {"name": "conservative", "dataset_size": 5_000, "batch_size": 16, "lr": 0.5, "logits": 3.0},
    {"name": "standard", "dataset_size": 20_000, "batch_size": 64, "lr": 1.0, "logits": 5.0},
    {"name": "aggressive", "dataset_size": 50_000, "batch_size": 32, "lr": 2.0, "logits": 7.0},
    {"name": "efficient", "dataset_size": 25_000, "batch_size": 128, "lr": 1.5, "logits": 6.0},
    {"name": "finetuning", "dataset_size": 30_000, "batch_size": 32, "lr": 0.8, "logits": 10.0},
]
