"""How many of the most sensitive layers to keep dense: two objectives, the error and the share that stays sparse.

num_dense is searched beside small ranges around the best settings known of default.py. The layers are ordered by what each
costs in error per multiply-add when it alone is masked; num_dense 4 leaves the first four without a mask. The error falls
with each of them, so that a search for the error alone would keep as many as it may. The report shows the Pareto front.
Of its trials with at least min_sparse_share the one with the lowest error is promoted. Units are as in default.py.
"""

from ray import tune

workload = "digits"
num_trials = 12
num_reports = 8
scheduler = "none"  # early stopping can't judge two objectives
min_sparse_share = 0.85

param_space = {
    "estimator": "relaxed_subset",
    "target": "teacher",
    "timesteps": "importance",
    "lr_decay": "cosine",
    "final_temperature": 0.5,
    "num_dense": tune.choice([0, 2, 4, 8]),
    "lr": tune.loguniform(0.7, 1.5),
    "logits": tune.uniform(2.0, 4.0),
    "magnitude_prior": tune.uniform(1.0, 2.0),
    "hidden_targets": tune.uniform(0.5, 1.5),
    "batch_size": 8,
    "dataset_size": 50_000,
}

_best_known = {"lr": 1.0, "logits": 3.0, "magnitude_prior": 1.4, "hidden_targets": 1.0}

seed_points = [{"name": f"{count} dense", "num_dense": count, **_best_known} for count in (0, 2, 4, 8)]
