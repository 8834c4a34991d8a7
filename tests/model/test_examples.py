"""What the detector learns from: images without objects, ignore areas, the targets' seeds."""

import pytest
import torch
from small import batch, quick
from torch import Tensor

from frcnn.model import Detector
from samplers import OHEM, All, Candidates, Random


def draws(model: Detector, images: list, targets: list) -> dict[str, tuple[Candidates, Tensor]]:
    """Candidates and weights of both sites in a training step."""
    seen = {}
    for site in model.sites.values():
        site.observer = lambda name, candidates, weights: seen.update({name: (candidates, weights)})
    model(images, targets)
    return seen


@pytest.mark.parametrize(
    "sampler", [Random(16, 0.5), OHEM(16), All()], ids=["random", "ohem", "all"]
)
@pytest.mark.parametrize("objects", [(0, 3), (0,), (0, 0)], ids=str)
def test_images_without_objects_train(sampler, objects: tuple[int, ...]) -> None:
    model = quick(sampler={"rpn": sampler, "rcnn": sampler})
    losses = model(*batch(*objects))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_classifier"] > 0
    assert losses["loss_objectness"] > 0
    if not any(objects):
        assert losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().max() > 0


@pytest.mark.parametrize("sampler", [Random(16, 0.5), OHEM(16)], ids=["random", "ohem"])
def test_a_batch_without_proposals_trains(sampler) -> None:
    model = quick(rpn_score_thresh=1.0, sampler={"rcnn": sampler})
    losses = model(*batch(0, 0))
    sum(losses.values()).backward()
    assert losses["loss_classifier"] == 0
    assert losses["loss_objectness"] > 0
    assert model.rpn.head.cls_logits.weight.grad.abs().max() > 0


@pytest.mark.parametrize("sampler", [OHEM(64), All()], ids=["ohem", "all"])
def test_ignored_candidates_are_never_sampled(sampler) -> None:
    model = quick(sampler={"rpn": sampler, "rcnn": sampler})
    images, targets = batch(2, 2)
    boxes = [target["boxes"].clone() for target in targets]
    # The left half of the second image, whose 72x64 pixels become 72x64: resized by 1.
    targets[1]["ignore"] = torch.tensor([[0.0, 0, 32, 72]])
    for candidates, weights in draws(model, images, targets).values():
        left = candidates.boxes.clone()
        left[:, 2].clamp_(max=32)
        left[:, 0].clamp_(min=0)
        left[:, 1::2] = left[:, 1::2].clamp(0, 72)
        area = (candidates.boxes[:, 2:] - candidates.boxes[:, :2]).prod(1)
        share = (left[:, 2:] - left[:, :2]).clamp(min=0).prod(1) / area
        covered = (candidates.image == 1) & (share > 0.501)
        assert covered.sum() > 10
        assert not candidates.negative[covered].any()
        assert not weights[covered & ~candidates.positive].any()
        assert (candidates.negative & (candidates.image == 0)).any()
    assert all(torch.equal(t["boxes"], b) for t, b in zip(targets, boxes, strict=True))


def test_ignore_areas_are_resized_with_the_image() -> None:
    model = quick(min_size=128, max_size=256)
    target = {"boxes": torch.ones(1, 4), "labels": torch.ones(1), "ignore": torch.ones(1, 4) * 8}
    image, resized = model.transform.resize(torch.rand(3, 64, 96), dict(target))
    assert image.shape == (3, 128, 192)
    assert resized["ignore"].tolist() == [[16.0] * 4]
    assert resized["boxes"].tolist() == [[2.0] * 4]
    assert target["ignore"].tolist() == [[8.0] * 4]


def test_an_image_draws_the_same_in_any_batch() -> None:
    samplers = {"sampler": {"rpn": Random(16, 0.5), "rcnn": Random(16, 0.25)}}
    model = quick(**samplers)  # it has no BatchNorm, which would mix the images
    images, targets = batch(3, 2, sizes=[(64, 64)] * 3)
    for seed, target in zip((11, 12), targets, strict=True):
        target["seed"] = seed
    together = draws(model, images, targets)
    torch.manual_seed(99)
    for index in (1, 0):
        alone = draws(model, images[index : index + 1], targets[index : index + 1])
        for name, (candidates, weights) in alone.items():
            whole, expected = together[name]
            expected = expected[whole.image == index]
            assert weights.tolist() == expected.tolist()
            assert 0 < weights.sum() < len(candidates.labels)


def test_proposals_hold_the_objects_once_each() -> None:
    model = quick()
    images, targets = batch(3, 0, 2)
    candidates, _ = draws(model, images, targets)["rcnn"]
    assert (candidates.ious > 0.9999).sum() == 5
    sites = (candidates.ious > 0.9999).nonzero().flatten()
    assert candidates.labels[sites].tolist() == torch.cat([t["labels"] for t in targets]).tolist()
    assert candidates.gt[sites].tolist() == [0, 1, 2, 3, 4]
