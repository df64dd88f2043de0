"""The fixed held-out sets: which there are, and the seeds of their samples."""

from __future__ import annotations

from typing import Literal

# Seeds of the fixed held-out sets, far from those that users choose for calibration samples and masks.
VALIDATION_SEED = 2**32 + 1
TEST_SEED = 2**32 + 2
SELECTION_SEED = 2**32 + 4
# Seed of the samples that a job is tried on before it begins.
TRIAL_SEED = 2**32 + 6
HeldOut = Literal["validation", "selection", "test"]
HELD_OUT_SEEDS: dict[HeldOut, int] = {"validation": VALIDATION_SEED, "selection": SELECTION_SEED, "test": TEST_SEED}
