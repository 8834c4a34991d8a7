"""The comparison of methods as a W&B workspace and report, made from code."""
