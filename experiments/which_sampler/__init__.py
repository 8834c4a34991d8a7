"""Which sampler should I use? The study that compares tuned methods on four data sets."""
