"""Reading and plotting the results of searches.

import analysis
experiment = analysis.open("results/first")
experiment.trials.nsmallest(3, "val_error")
"""

from analysis.experiment import OpenedExperiment as open

__all__ = ["open"]
