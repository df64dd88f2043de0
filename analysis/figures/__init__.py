"""Figures of an experiment, each a function of its frames (`analysis.experiment`)."""
