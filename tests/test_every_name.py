"""Every preset with the real network: thirty steps on the embedded shapes."""

import math
from pathlib import Path

import pytest
from tiny import composed, lines

from frcnn.config import CONF
from frcnn.run import run

PRESETS = sorted(
    f"{group}={file.stem}"
    for group in ("sampler", "loss", "box_loss")
    for file in (Path(CONF) / group).glob("*.yaml")
)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_thirty_steps_stay_finite_and_learn(tmp_path: Path, preset: str) -> None:
    quick = ["experiment=quick", "trainer.max_steps=30", "trainer.log_every=1"]
    rest = ["trainer.num_pictures=0", "trainer.workers=0", "wandb.mode=disabled"]
    run(*composed(*quick, *rest, preset), tmp_path)
    records = lines(tmp_path)
    steps = [record for record in records if "train/loss" in record]
    assert len(steps) == 30
    assert all(v is not None and math.isfinite(v) for r in records for v in r.values())
    # Each term by itself: scales differ between losses, and guided ones follow the box term.
    first, last = ([record["train/loss"] for record in part] for part in (steps[:5], steps[-5:]))
    assert sum(last) < sum(first)
