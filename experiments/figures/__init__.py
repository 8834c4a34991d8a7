"""The figures of the papers, drawn from a checkpoint: ``python -m experiments.figures``."""
