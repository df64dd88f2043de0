"""The space of a rehearsal: two trials with few reports, the first of them a seed point."""

from ray import tune

workload = "cifar10"
num_trials = 2
num_reports = 9
scheduler = "none"

param_space = {
    "estimator": "straight_through",
    "target": "teacher",
    "lr": tune.loguniform(0.4, 4.0),
    "batch_size": tune.choice([8, 16]),
    "dataset_size": tune.choice([540]),
}

seed_points = [{"name": "only", "lr": 2.0, "batch_size": 8, "dataset_size": 540}]
