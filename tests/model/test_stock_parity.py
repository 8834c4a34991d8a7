"""With random sampling and its own RoIAlign the detector is torchvision's, number for number."""

from typing import Any

import pytest
import torch
from small import batch, detector, gradients, quick, quick_stock, stock
from torch import Tensor, nn
from torchvision.models import detection

from frcnn.model import build_detector
from samplers import Candidates, Random

# Small budgets, so that the quotas bind: 6 objects against 4 of 8 and 2 of 8.
BUDGETS = {
    "rpn_batch_size_per_image": 8,
    "rpn_positive_fraction": 0.5,
    "box_batch_size_per_image": 8,
    "box_positive_fraction": 0.25,
}


def pair(**options: Any) -> tuple[nn.Module, nn.Module]:
    """torchvision's detector and ours with the same weights."""
    theirs = stock(**BUDGETS, **options)
    samplers = {"sampler": {"rpn": Random(8, 0.5), "rcnn": Random(8, 0.25)}}
    ours = detector(roi_align="torchvision", **samplers, **options)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def watch_stock(model: nn.Module) -> dict[str, Tensor]:
    """Fills with the picks of torchvision's two samplers, images stacked."""
    seen: dict[str, Tensor] = {}
    for name, part in (("rpn", model.rpn), ("rcnn", model.roi_heads)):
        sampler = part.fg_bg_sampler

        def watched(labels: list[Tensor], name: str = name, sampler: Any = sampler) -> Any:
            positive, negative = sampler(labels)
            seen[name] = torch.cat(positive).bool() | torch.cat(negative).bool()
            return positive, negative

        part.fg_bg_sampler = watched
    return seen


@pytest.mark.parametrize(
    ("objects", "seed"),
    [((6, 7), 0), ((0, 6, 3), 1), ((5,), 2)],
    ids=str,
)
def test_a_training_step(objects: tuple[int, ...], seed: int) -> None:
    theirs, ours = pair()
    seen, expected_picks = {}, watch_stock(theirs)

    def observe(name: str, candidates: Candidates, weights: Tensor) -> None:
        seen[name] = (candidates, weights > 0)

    for site in ours.sites.values():
        site.observer = observe
    images, targets = batch(*objects, seed=seed)
    results = []
    for model in (theirs, ours):
        torch.manual_seed(seed)
        losses = model(images, [dict(target) for target in targets])
        sum(losses.values()).backward()
        results.append(losses)
    expected, losses = results
    for name, most in (("rpn", 4), ("rcnn", 2)):
        candidates, picks = seen[name]
        assert torch.equal(picks, expected_picks[name])
        assert len(picks) > picks.sum()  # something was left out
        full = [i for i, count in enumerate(objects) if count >= 5]
        for image in full:
            assert (picks & candidates.positive)[candidates.image == image].sum() == most
    assert list(losses) == list(expected)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9)
    wanted, found = gradients(theirs), gradients(ours)
    assert wanted.keys() == found.keys()
    for name, gradient in found.items():
        # By their norms: processors round differently, and one element may stand out.
        assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm() + 1e-12, name
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name  # BatchNorm's statistics


def assert_same_detections(theirs: nn.Module, ours: nn.Module, images: list[Tensor]) -> int:
    """Boxes, labels and scores are equal; how many there are."""
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    for want, have in zip(expected, found, strict=True):
        assert want.keys() == have.keys()
        for key, value in want.items():
            assert torch.equal(have[key], value), key
    return sum(len(have["boxes"]) for have in found)


def test_detections() -> None:
    theirs, ours = pair(box_score_thresh=0.2, box_detections_per_img=15)
    images, targets = batch(3, 4, 2)
    assert assert_same_detections(theirs, ours, images) > 10


def test_detections_of_no_proposals() -> None:
    theirs, ours = pair(rpn_score_thresh=1.0)
    assert assert_same_detections(theirs, ours, batch(3, 4)[0]) == 0


def test_detections_beside_the_losses() -> None:
    _, ours = pair()
    images, targets = batch(3, 0)
    with torch.no_grad():
        alone = ours.eval()(images)
        found, losses = ours(images, targets)
    assert {key: [d[key].tolist() for d in found] for key in found[0]} == {
        key: [d[key].tolist() for d in alone] for key in alone[0]
    }
    assert set(losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
    }


def test_the_fast_roi_align_changes_nothing_but_the_last_digits() -> None:
    slow, fast = quick(roi_align="torchvision"), quick(roi_align="fast")
    images, targets = batch(5, 0, 3)
    results = []
    for model in (slow, fast):
        torch.manual_seed(0)
        losses = model(images, targets)
        sum(losses.values()).backward()
        results.append(torch.stack(list(losses.values())))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients(fast).items():
        expected = gradients(slow)[name]
        torch.testing.assert_close(gradient, expected, rtol=0, atol=2e-3 * expected.abs().max())


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    ],
)
def test_parameter_names_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=5)
        ours = build_detector(5, name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def train(model: nn.Module, steps: int) -> list[Tensor]:
    """Plain SGD with momentum in float64; the loss of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for step in range(steps):
        images, targets = batch(3, 2, seed=step)
        torch.manual_seed(step)
        doubles = [dict(t, boxes=t["boxes"].double()) for t in targets]
        terms = model([image.double() for image in images], doubles)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append(sum(terms.values()).detach())
    return losses


def test_thirty_steps_in_float64_are_those_of_torchvision() -> None:
    samplers = {"rpn": Random(8, 0.5), "rcnn": Random(8, 0.25)}
    ours = quick(roi_align="torchvision", sampler=samplers).double()
    theirs = quick_stock(**BUDGETS).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    expected, found = train(theirs, 30), train(ours, 30)
    assert expected[-1] < expected[0]
    # torchvision's objectness term is a float32 value, with a float64 gradient.
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-6, atol=0)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-9, atol=1e-9)
