"""A data set under a model's anchors, as one page: ``python -m experiments.data``."""
