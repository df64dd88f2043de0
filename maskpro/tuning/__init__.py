"""All that knows Ray and Optuna: search space, trainable, searcher, monitor, promotion."""

import os

# Set before `import ray`. Under `uv run` Ray would rebuild the environment for every worker and seem to hang; a user on a
# cluster who wants that sets the variable. The others silence notices that a search can't act on.
for _name, _value in {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Tune's newer output prints tables even at verbosity 0; the older one prints nothing.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tune's files of each trial (CSV, JSON, TensorBoard) and its snapshots of all trials cost the driver most of its time.
    # The history and the trials' own curves hold the same, and a search resumes from its history: a snapshot a year.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "31536000",
    # Seconds that Ray waits for its parts: half a minute and a minute are too short on a busy machine.
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "300",
}.items():
    os.environ.setdefault(_name, _value)
