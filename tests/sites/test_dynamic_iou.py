"""The threshold of Dynamic R-CNN worked by hand, its labels against loops, and its state."""

from dataclasses import replace

import pytest
import torch
from plain import Image, Owners, batch, check, images, one_image, overlap

from frcnn.sites.assigners import DynamicIoU, Unassigned

OBJECT = [0.0, 0, 10, 10]


def with_ious(*ious: float) -> Unassigned:
    return one_image([[0, 0, 10, 10 * iou] for iou in ious], [OBJECT])


def two(first: Unassigned, second: Unassigned) -> Unassigned:
    """A batch of both images."""
    names = ("boxes", "objects", "object_labels", "ignore")
    return Unassigned(*([*getattr(first, name), *getattr(second, name)] for name in names))


def test_the_threshold_is_the_mean_of_the_recorded_ious() -> None:
    assigner = DynamicIoU(min_threshold=0.4, start=0.5, top=2, interval=2)
    # The second highest IoUs are .8 and .6, their mean is .7; in the next step it is .5.
    first = two(with_ious(0.9, 0.8, 0.1), with_ious(0.6, 0.2, 0.7))
    assert assigner(first).labels.tolist() == [1, 1, 0, 1, 0, 1]
    assert assigner.threshold == 0.5
    # The update is for the next batch: (.7 + .5) / 2 = .6.
    assert assigner(with_ious(0.55, 0.5)).labels.tolist() == [1, 1]
    assert assigner.threshold.item() == pytest.approx(0.6)
    assert assigner(with_ious(0.55, 0.61)).labels.tolist() == [0, 1]
    # Then .55 and 0 have a mean below the least threshold.
    assigner(with_ious(0.9, 0.0))
    assert assigner.threshold.item() == pytest.approx(0.4)


def test_images_without_objects_or_with_few_candidates() -> None:
    assigner = DynamicIoU(top=75, interval=1)
    empty = one_image([OBJECT], [])
    assigner(empty)
    assert (assigner.threshold.item(), assigner.steps.item()) == (0.5, 0)
    assigner(two(empty, with_ious(0.9, 0.7)))  # of two the lowest
    assert assigner.threshold.item() == pytest.approx(0.7)


@pytest.mark.parametrize("seed", range(10))
def test_equal_to_plain_loops(seed: int) -> None:
    given, seen = batch(seed, levels=False)
    assigner = DynamicIoU(start=0.45, top=5, interval=1, min_threshold=0.0)

    def rule(image: Image) -> Owners:
        owner = {}
        for row, box in enumerate(image.boxes):
            ious = [overlap(box, other) for other in image.objects]
            if max(ious) >= 0.45:
                owner[row] = ious.index(max(ious))
        return owner

    check(assigner(given), given, seen, rule)
    recorded = []
    for image in images(given, seen):
        best = sorted(
            max(overlap(b, o) for o in image.objects) for b in image.boxes if image.objects
        )
        recorded += [best[-5]] if best else []
    assert assigner.threshold.item() == pytest.approx(sum(recorded) / len(recorded))


def test_two_processes_are_one() -> None:
    parts = with_ious(0.9, 0.5), with_ious(0.7, 0.6), one_image([OBJECT], [])
    whole = DynamicIoU(top=2, interval=1, min_threshold=0.0)
    whole(two(parts[0], parts[1]))
    # Each process adds the other's sum and count of images.
    for own, other in ((0, 1), (1, 0)):
        assigner = DynamicIoU(top=2, interval=1, min_threshold=0.0)
        numbers = {0: (0.5, 1.0), 1: (0.6, 1.0)}
        share = torch.tensor(numbers[other])
        assigner(replace(parts[own], total=lambda value, share=share: value + share))
        assert assigner.threshold.item() == pytest.approx(whole.threshold.item()) == 0.55
    # A process without objects takes part and has the same threshold.
    assigner = DynamicIoU(top=2, interval=1, min_threshold=0.0)
    assigner(replace(parts[2], total=lambda value: value + torch.tensor([1.1, 2.0])))
    assert assigner.threshold.item() == pytest.approx(0.55)


def test_a_saved_state_goes_on() -> None:
    first, second = (DynamicIoU(top=1, interval=3) for _ in range(2))
    for iou in (0.9, 0.8):
        first(with_ious(iou))
    second.load_state_dict(first.state_dict())
    for assigner in (first, second):
        assigner(with_ious(0.7))
        assert assigner.threshold.item() == pytest.approx(0.8)


@pytest.mark.parametrize(
    "changed",
    [
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"steps": 100},
        {"steps": -1},
        {"iou_sum": -1.0},
    ],
)
def test_states_of_other_hands_are_refused(changed: dict) -> None:
    state = DynamicIoU().state_dict()
    state |= {key: torch.tensor(value) for key, value in changed.items()}
    with pytest.raises(ValueError, match="threshold|batches|sum"):
        DynamicIoU().load_state_dict(state)


@pytest.mark.parametrize(
    "argument",
    [{"min_threshold": -0.1}, {"start": 0.3}, {"top": 0}, {"interval": 0}, {"ignore_ioa": 2}],
)
def test_arguments_out_of_range(argument: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(argument))} must be"):
        DynamicIoU(**argument)
