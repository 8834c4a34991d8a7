"""What a run records: metrics, W&B, sampling figures."""
