"""Every preset with the real network: thirty steps on the embedded shapes."""

import math
from pathlib import Path

import pytest
from tiny import composed, lines, presets

from frcnn.training.run import run

PRESETS = presets("sampler", "loss", "box_loss", "assigner", "weigher")


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_thirty_steps_stay_finite(tmp_path: Path, preset: str) -> None:
    quick = ["experiment=quick", "trainer.max_steps=30", "trainer.log_every=1"]
    rest = ["trainer.num_pictures=0", "trainer.workers=0", "wandb.mode=disabled"]
    run(*composed(*quick, *rest, preset), tmp_path)
    records = lines(tmp_path)
    steps = [record for record in records if "train/loss" in record]
    assert len(steps) == 30
    losses = [value for record in records for key, value in record.items() if "loss" in key]
    assert all(value is not None and math.isfinite(value) for value in losses)
