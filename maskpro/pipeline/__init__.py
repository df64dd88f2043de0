"""The steps of the original pipeline as functions: prune, extract, baseline, train, evaluate. Results fill a new folder."""
