"""What a user of ``build_detector`` may ask for, and what is refused."""

import pytest
import torch
from small import batch, detector
from torch import nn

from frcnn.errors import ConfigError
from frcnn.model.zoo import freeze_stages


@pytest.mark.parametrize("name", ["rpn_batch_size_per_image", "box_positive_fraction"])
def test_a_budget_belongs_to_the_sampler(name: str) -> None:
    with pytest.raises(ConfigError, match="samplers hold the budgets"):
        detector(**{name: 7})


def test_class_agnostic_boxes_serve_every_class() -> None:
    model = detector()
    predictor = model.roi_heads.box_predictor
    predictor.bbox_pred = nn.Linear(predictor.bbox_pred.in_features, 4)
    nn.init.zeros_(predictor.bbox_pred.weight)
    images, targets = batch(3, 2)
    losses = model(images, targets)
    assert all(value.isfinite() for value in losses.values())
    model.roi_heads.score_thresh = 0.0
    found = model.eval()(images)[0]
    assert set(found["labels"].tolist()) == {1, 2, 3}


def test_a_samplers_bad_weight_is_named() -> None:
    class Broken:
        def __call__(self, candidates: object) -> torch.Tensor:
            return torch.full((len(candidates.labels),), float("nan"))

    model = detector(rcnn_sampler=Broken())
    with pytest.raises(ValueError, match="Broken at rcnn"):
        model(*batch(2))


@pytest.mark.parametrize(("trainable", "stages"), [(0, set()), (2, {"layer4", "layer3"})])
def test_frozen_stages(trainable: int, stages: set[str]) -> None:
    model = detector()
    freeze_stages(model, "fasterrcnn_resnet18_fpn", trainable)
    body = model.backbone.body.named_parameters()
    assert {key.partition(".")[0] for key, p in body if p.requires_grad} == stages
    assert all(p.requires_grad for p in model.backbone.fpn.parameters())
    with pytest.raises(ConfigError, match="ResNets only"):
        freeze_stages(model, "fasterrcnn_mobilenet_v3_large_fpn", trainable)
