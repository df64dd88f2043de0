"""The names that settings may have. Importing this takes no torch."""

from __future__ import annotations

from typing import Literal, get_args

EstimatorName = Literal["straight_through", "relaxed_subset", "gumbel_softmax", "policy_gradient"]
ESTIMATORS: tuple[EstimatorName, ...] = get_args(EstimatorName)
# Estimators with relaxed masks, which an annealing sharpens.
RELAXED: tuple[EstimatorName, ...] = ("relaxed_subset", "gumbel_softmax")
Annealing = Literal["geometric", "linear"]
# "data" is "noise" by another name: in a language model what the data say is the next token.
Target = Literal["teacher", "noise", "data"]
Timesteps = Literal["uniform", "importance"]
LearningRateDecay = Literal["linear", "cosine", "constant"]
OptimizerName = Literal["auto", "adam", "sgd"]
Precision = Literal["float32", "bfloat16"]
SamplingPrecision = Literal["auto", "float32", "bfloat16"]
