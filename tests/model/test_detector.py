"""What a user of ``build_detector`` may ask for, and what is refused."""

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from small import batch, detector, quick
from torch import nn

from frcnn.errors import ConfigError
from frcnn.losses import (
    GHMC,
    GHMR,
    CrossEntropy,
    DynamicSmoothL1,
    Equalization,
    FocalSigmoid,
    SmoothL1,
)
from frcnn.model.backbones import FAMILIES, freeze_stages
from samplers import OHEM, Candidates


@pytest.mark.parametrize("name", ["rpn_batch_size_per_image", "box_fg_iou_thresh"])
def test_a_budget_belongs_to_the_sampler_and_a_threshold_to_the_assigner(name: str) -> None:
    with pytest.raises(ConfigError, match=f"samplers and assigners decide: {name} "):
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


@pytest.mark.parametrize(("append", "expected"), [(True, 5), (False, 0)])
def test_objects_are_proposals_only_where_they_are_appended(append: bool, expected: int) -> None:
    seen = []

    def sampler(candidates: Candidates) -> torch.Tensor:
        seen.append(candidates)
        return torch.ones(len(candidates.labels))

    quick(sampler={"rcnn": sampler}, append_objects=append)(*batch(3, 2))
    (candidates,) = seen
    assert (candidates.ious == 1).sum() == expected  # no proposal of an untrained RPN is exact


def test_the_validation_loss_appends_objects_in_every_run() -> None:
    with_objects, without = quick().eval(), quick(append_objects=False).eval()
    without.load_state_dict(with_objects.state_dict())
    images, targets = batch(3, 2)
    targets = [target | {"seed": 1} for target in targets]
    _, expected = with_objects(images, targets)
    _, found = without(images, targets)
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}


def test_a_samplers_bad_weight_is_named() -> None:
    class Broken:
        def __call__(self, candidates: object) -> torch.Tensor:
            return torch.full((len(candidates.labels),), float("nan"))

    model = detector(sampler={"rcnn": Broken()})
    with pytest.raises(ValueError, match="Broken at rcnn"):
        model(*batch(2))


def test_a_sampler_that_its_definition_forbids_at_a_site_is_refused() -> None:
    class AnchorsAlone(OHEM):
        unfit: ClassVar = {"rcnn": "it is for anchors"}

    detector(sampler={"rpn": AnchorsAlone(8)})
    with pytest.raises(ConfigError, match="AnchorsAlone cannot serve at the rcnn: it is for"):
        detector(sampler={"rcnn": AnchorsAlone(8)})


def test_strict_loading_misses_every_weight_but_the_sites_own() -> None:
    model = quick(box_loss={"rcnn": DynamicSmoothL1()})
    state = model.state_dict()
    assert not any("sites." in key for key in state)
    model.load_state_dict(state)
    model.backbone.sites = nn.Linear(1, 1)  # a user's module may have this name
    with pytest.raises(RuntimeError, match=r"backbone\.sites\.weight"):
        model.load_state_dict(state)


@pytest.mark.parametrize(("trainable", "stages"), [(0, set()), (2, {"layer4", "layer3"})])
def test_frozen_stages(trainable: int, stages: set[str]) -> None:
    model = detector()
    freeze_stages(model, FAMILIES["fasterrcnn_resnet18_fpn"], trainable)
    body = model.backbone.body.named_parameters()
    assert {key.partition(".")[0] for key, p in body if p.requires_grad} == stages
    assert all(p.requires_grad for p in model.backbone.fpn.parameters())
    with pytest.raises(ConfigError, match="for ResNets"):
        freeze_stages(model, FAMILIES["fasterrcnn_mobilenet_v3_large_fpn"], trainable)


def test_the_last_layers_start_at_the_prior_of_their_loss() -> None:
    plain = detector()
    assert plain.rpn.head.cls_logits.bias.abs().max() == 0
    model = detector(loss={"rpn": FocalSigmoid(prior=0.01), "rcnn": CrossEntropy(prior=0.1)})
    expected = pytest.approx([-math.log(99)] * 3)
    assert model.rpn.head.cls_logits.bias.tolist() == expected
    # Of four columns three are objects: softmax of [ln 27, 0, 0, 0] is 0.9 and 1/30 each.
    bias = model.roi_heads.box_predictor.cls_score.bias
    assert bias.tolist() == pytest.approx([math.log(27), 0, 0, 0], abs=1e-6)
    images, _ = batch(1)
    assert model.eval()(images)  # and both sites still run


def test_loaded_weights_keep_their_bias_and_a_fresh_predictor_gets_the_prior(
    tmp_path: Path,
) -> None:
    source = detector(num_classes=4)
    torch.nn.init.constant_(source.rpn.head.cls_logits.bias, 0.5)
    torch.nn.init.constant_(source.roi_heads.box_predictor.cls_score.bias, 0.25)
    file = str(tmp_path / "weights.pt")
    torch.save(source.state_dict(), file)
    losses = {"loss": {"rpn": FocalSigmoid(), "rcnn": FocalSigmoid(prior=0.5)}}
    same = detector(num_classes=4, weights=file, **losses)
    assert set(same.rpn.head.cls_logits.bias.tolist()) == {0.5}
    assert set(same.roi_heads.box_predictor.cls_score.bias.tolist()) == {0.25}
    other = detector(num_classes=3, weights=file, **losses)
    assert set(other.rpn.head.cls_logits.bias.tolist()) == {0.5}
    assert other.roi_heads.box_predictor.cls_score.bias.tolist() == [0, 0, 0]


def test_a_loss_that_does_not_fit_is_refused_in_one_line() -> None:
    rare = Equalization([0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match="^Equalization cannot serve at the rpn: .*one class$"):
        detector(loss={"rpn": rare})
    with pytest.raises(ConfigError, match="^CrossEntropy at the rcnn: .* 2 weights, but 4 classes"):
        detector(loss={"rcnn": CrossEntropy(class_weights=[1.0, 2.0])})
    detector(loss={"rcnn": rare})


def test_states_of_losses_travel_beside_the_weights() -> None:
    def fresh():
        return quick(loss={"rpn": GHMC()}, box_loss={"rcnn": GHMR(), "rpn": SmoothL1()})

    model = fresh()
    model(*batch(3, 2))
    states = model.sites.state_dict()
    assert states.keys() == {"rpn.class_loss.density.shares", "rcnn.box_loss.density.shares"}
    assert not any("shares" in key for key in model.state_dict())
    # The network's own names load strictly, and so do a checkpoint's, which has no site.
    other = fresh()
    assert str(other.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    other = fresh()
    other.sites.load_state_dict(states)
    shares = [m.sites["rpn"].class_loss.density.shares for m in (model, other)]
    assert torch.equal(*shares) and shares[0].sum().item() == pytest.approx(1)
    before = shares[0].clone()
    with torch.inference_mode():
        model.eval()(*batch(3, 2))
    assert torch.equal(model.sites["rpn"].class_loss.density.shares, before)


def test_a_batch_is_pooled_alike_whatever_came_before_it() -> None:
    images, targets = batch(2, sizes=[(64, 64)])
    losses = []
    for sizes in ((64,), (40, 64)):  # the shorter side, batch by batch
        model = detector().eval()
        for size in sizes:
            # Padded to 64, an image of 40 pixels lets torchvision guess stride 16 for 32.
            model.transform.min_size = (size,)
            last = model(images, targets)[1]["loss_classifier"]
        losses.append(last)
    assert losses[0] == losses[1]


def test_the_image_mean_follows_the_options_and_serves_training_after_a_validation() -> None:
    transform = quick().transform
    image = torch.rand(3, 8, 8)
    with torch.inference_mode():
        transform.normalize(image)
    image.requires_grad_()
    transform.normalize(image).sum().backward()
    assert image.grad is not None
    transform.image_mean, transform.image_std = [0.0] * 3, [0.5] * 3
    torch.testing.assert_close(transform.normalize(image), 2 * image)
