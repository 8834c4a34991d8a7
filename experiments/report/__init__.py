"""Runs of a sweep -> a paired comparison: ``python -m experiments.report DIR``."""
