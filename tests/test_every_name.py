"""Every preset with both real networks: thirty steps on small images of the embedded shapes."""

import math
from pathlib import Path

import pytest
from tiny import composed, lines, presets

from frcnn.training.run import run

PRESETS = presets("sampler", "loss", "box_loss", "assigner", "weigher")
NETWORKS = {
    "fasterrcnn_resnet18_fpn_slim": ["site.rcnn.budget=64", "model.rpn_post_nms_top_n_train=200"],
    "retinanet_resnet18_fpn_slim": [],
}
QUICK = [
    "data=shapes",
    "data.train_images=24",
    "data.val_images=4",
    "data.min_size=64",
    "data.max_size=96",
    "trainer.batch_size=2",
    "trainer.precision=fp32",
    "trainer.max_steps=30",
    "trainer.log_every=1",
    "trainer.num_pictures=0",
    "trainer.workers=0",
    "wandb.mode=disabled",
]


@pytest.mark.slow
@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_thirty_steps_stay_finite(tmp_path: Path, preset: str, model: str) -> None:
    run(*composed(*QUICK, f"model={model}", *NETWORKS[model], preset), tmp_path)
    records = lines(tmp_path)
    steps = [record for record in records if "train/loss" in record]
    assert len(steps) == 30
    losses = [value for record in records for key, value in record.items() if "loss" in key]
    assert all(value is not None and math.isfinite(value) for value in losses)
