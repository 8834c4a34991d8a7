"""Cascade R-CNN: three heads, three sites, boxes handed on."""

import math
from pathlib import Path

import pytest
import torch
from small import ANCHORS, OPTIONS, batch
from tiny import SMALL_CASCADE, composed, lines
from torch import Tensor

from frcnn.losses import FocalSigmoid
from frcnn.model import Detector, build_cascade_rcnn, build_detector
from frcnn.model.cascade import STAGES, refined
from frcnn.sites.assigners import MaxIoU
from frcnn.training.run import run
from samplers import OHEM, All, Candidates, Random

SMALL_NETWORK = OPTIONS | {
    "fpn_channels": 16,
    "representation_size": 16,
    "backbone_width": 0.25,
    "anchor_sizes": ANCHORS,
}


def cascade(**options: object) -> Detector:
    return build_cascade_rcnn(4, "cascade_rcnn_resnet18_fpn", **SMALL_NETWORK, **options)


def zero_deltas(model: Detector) -> None:
    """Every stage hands on the boxes that it gets."""
    for head in model.roi_heads.heads:
        for values in head.box_predictor.bbox_pred.parameters():
            torch.nn.init.zeros_(values)


def test_three_stages_with_the_paper_s_thresholds_weights_and_deltas() -> None:
    model = cascade()
    assert list(model.sites) == ["rpn", *STAGES]
    assert [model.sites[stage].assigner.high for stage in STAGES] == [0.5, 0.6, 0.7]
    assert [model.sites[stage].class_factor for stage in STAGES] == [1, 0.5, 0.25]
    assert [head.box_coder.weights[0] for head in model.roi_heads.heads] == [10, 20, 30]


def test_the_command_line_gives_the_same_and_takes_presets_and_single_stages() -> None:
    line = ("model=cascade_rcnn_resnet18_fpn_slim", "sampler=ohem", "loss/rcnn3=focal")
    config, _ = composed(*line, "site.rcnn2.budget=64")
    high = [config["assigner"][stage]["high"] for stage in STAGES]
    assert high == [0.5, 0.6, 0.7]
    assert [config["loss_weight"][stage]["box"] for stage in STAGES] == [1, 0.5, 0.25]
    budgets = [config["sampler"][stage]["batch_size_per_image"] for stage in STAGES]
    assert budgets == [512, 64, 512]
    assert "gamma" in config["loss"]["rcnn3"] and "gamma" not in config["loss"]["rcnn2"]
    config, _ = composed(line[0], "assigner/rcnn2=dynamic_iou")
    assert config["assigner"]["rcnn2"]["min_threshold"] == 0.4


def test_a_box_moves_by_its_stage_s_deltas() -> None:
    # Deltas of 0.5 in dx: the box of 20 moves by 0.5 / 10, / 20, / 30 of its width.
    model = cascade()
    for head, weight in zip(model.roi_heads.heads, (10, 20, 30), strict=True):
        deltas = torch.tensor([[[0.5, 0, 0, 0]]])
        (found,) = refined(head, [torch.tensor([[10.0, 10, 30, 30]])], deltas, [(64, 64)])
        assert found[0].tolist() == pytest.approx([10 + 10 / weight, 10, 30 + 10 / weight, 30])


def seen_by(model: Detector) -> dict[str, list[Tensor]]:
    """Candidates of each stage in one training pass."""
    found: dict[str, list[Tensor]] = {}
    for name, site in model.sites.items():
        site.observer = lambda name, candidates, weights: found.setdefault(
            name, [candidates.boxes, weights]
        )
    model(*batch(3, 2))
    return found


def test_a_stage_learns_from_what_the_one_before_has_sampled_and_from_the_objects() -> None:
    model = cascade(sampler={"rcnn1": Random(8, 0.25), "rcnn2": Random(6, 0.25)})
    zero_deltas(model)
    found = seen_by(model)
    objects = sum(len(target["boxes"]) for target in batch(3, 2)[1])
    for before, after in zip(STAGES, STAGES[1:], strict=False):
        boxes, weights = found[before]
        handed_on = found[after][0]
        apart = torch.cdist(handed_on, boxes[weights > 0])
        own = torch.where(apart.amin(1) < 1e-3)[0]
        # All candidates are sampled ones or objects; objects may be sampled ones too.
        assert len(own) >= len(handed_on) - objects
        assert len(handed_on) <= (weights > 0).sum() + objects


def test_each_stage_has_each_object_once() -> None:
    """Every stage appends the objects, and none hands on those that it has appended."""
    model = cascade(sampler={stage: All() for stage in STAGES})
    zero_deltas(model)
    found: dict[str, list[int]] = {}

    def look(name: str, candidates: Candidates, _: Tensor) -> None:
        near = torch.cdist(candidates.gt_boxes, candidates.boxes) < 1e-3
        found[name] = near.sum(1).tolist()

    for site in model.sites.values():
        site.observer = look
    model(*batch(3, 2))
    assert {stage: found[stage] for stage in STAGES} == dict.fromkeys(STAGES, [1] * 5)


def test_scores_are_the_mean_of_the_stages_and_boxes_those_of_the_last() -> None:
    model = cascade().eval()
    zero_deltas(model)
    biases = torch.randn(3, 4)
    for head, bias in zip(model.roi_heads.heads, biases, strict=True):
        torch.nn.init.zeros_(head.box_predictor.cls_score.weight)
        head.box_predictor.cls_score.bias.data.copy_(bias)
    expected = biases.softmax(1).mean(0)[1:]
    model.roi_heads.heads[-1].score_thresh = 0.0
    found = model(batch(3, 1)[0])[0]
    assert len(found["labels"])
    torch.testing.assert_close(found["scores"], expected[found["labels"] - 1])


def test_every_weight_learns_and_names_are_strict() -> None:
    model = cascade(sampler={stage: OHEM(8) for stage in STAGES}).train()
    sum(model(*batch(3, 2)).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    cascade().load_state_dict(model.state_dict(), strict=True)
    named = [name for name in model.state_dict() if name.startswith(model.predictor)]
    assert len(named) == 12


def test_each_head_starts_at_its_loss_s_prior() -> None:
    model = cascade(loss={"rcnn2": FocalSigmoid()})
    biases = [head.box_predictor.cls_score.bias for head in model.roi_heads.heads]
    assert biases[1][1:].tolist() == pytest.approx([-math.log(99)] * 3)
    assert biases[0].abs().max() < 1 and biases[2].abs().max() < 1


def test_by_name_with_thresholds_of_its_own() -> None:
    model = build_detector(
        4, "cascade_rcnn_resnet18_fpn", **SMALL_NETWORK, assigner={"rcnn3": MaxIoU(0.8, 0.8)}
    )
    assert [model.sites[stage].assigner.high for stage in STAGES] == [0.5, 0.6, 0.8]


def test_a_run_records_every_stage(tmp_path: Path) -> None:
    run(*composed(*SMALL_CASCADE, "sampler=pisa", "trainer.max_steps=3"), tmp_path)
    record = next(record for record in lines(tmp_path) if "train/loss" in record)
    assert {f"train/loss_classifier_{stage}" for stage in STAGES} <= record.keys()
    assert any("sampling/rcnn3/positive_iou" in record for record in lines(tmp_path))
