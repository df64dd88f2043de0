"""Figures of an experiment; each is a function of its frames (`analysis.experiment`)."""
