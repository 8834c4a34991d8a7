"""Anchors of a network in half precision."""

import pytest
import torch
from small import batch
from tiny import small_network

import frcnn
from samplers import Candidates


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "site"), [("fasterrcnn_resnet18_fpn", "rpn"), ("retinanet_resnet18_fpn", "dense")]
)
def test_half_precision_rounds_neither_anchors_nor_objects(
    name: str, site: str, dtype: torch.dtype
) -> None:
    """In bf16 a coordinate of 300 and more has no odd number, and one above 1,024 steps of 8."""
    with small_network():
        model = frcnn.build_detector(4, name, min_size=400, max_size=600)
    seen: list[Candidates] = []
    model.sites[site].observer = lambda name, candidates, weights: seen.append(candidates)
    images, targets = batch(3, 2)
    with torch.no_grad():
        model(images, targets)
        with torch.autocast("cpu", dtype):
            model(images, targets)
    whole, half = seen
    assert whole.boxes.max() > 600
    assert half.boxes.dtype == half.gt_boxes.dtype == torch.float32
    for name in ("boxes", "gt_boxes", "labels", "ious"):
        assert torch.equal(getattr(whole, name), getattr(half, name)), name
