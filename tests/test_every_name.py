"""Every name with real networks: thirty steps on small images of the embedded shapes."""

import math
from pathlib import Path
from typing import get_args

import pytest
from tiny import composed, lines, presets

from frcnn.data.order import OrderName
from frcnn.training.run import run

PRESETS = presets("sampler", "loss", "box_loss", "assigner", "weigher")
FASTER_RCNN, RETINANET, CASCADE = (
    f"{kind}_resnet18_fpn_slim" for kind in ("fasterrcnn", "retinanet", "cascade_rcnn")
)
PROPOSALS = "model.rpn_post_nms_top_n_train=200"
SMALL = {
    FASTER_RCNN: ["site.rcnn.budget=64", PROPOSALS],
    RETINANET: [],
    CASCADE: [*(f"site.rcnn{stage}.budget=64" for stage in (1, 2, 3)), PROPOSALS],
}
# The order of images is the same for all networks. Three heads are one kind of site, that of
# Faster R-CNN's head, so one sampler and one loss show that they take presets.
CASES = [
    *(f"{model} {preset}" for preset in PRESETS for model in (FASTER_RCNN, RETINANET)),
    *(f"{FASTER_RCNN} data.sampler={name} data.repeat_threshold=1" for name in get_args(OrderName)),
    f"{CASCADE} sampler=pisa loss=seesaw",
]
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
@pytest.mark.parametrize("case", CASES)
def test_thirty_steps_stay_finite(tmp_path: Path, case: str) -> None:
    model, *choices = case.split()
    run(*composed(*QUICK, f"model={model}", *SMALL[model], *choices), tmp_path)
    records = lines(tmp_path)
    steps = [record for record in records if "train/loss" in record]
    assert len(steps) == 30
    losses = [value for record in records for key, value in record.items() if "loss" in key]
    assert all(value is not None and math.isfinite(value) for value in losses)
