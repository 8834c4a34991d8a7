"""One training run: launch, loop, schedules, resume."""
