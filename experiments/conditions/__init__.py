"""Where a method pays: ``python -m experiments.conditions DIR --by KEY``."""
