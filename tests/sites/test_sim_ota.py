"""SimOTA worked by hand and against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain import (
    STRIDES,
    Image,
    Owners,
    batch,
    center,
    center_inside,
    check,
    one_image,
    overlap,
    ranked,
)

from frcnn.sites.assigners import Outputs, SimOTA, Unassigned
from frcnn.sites.assigners.sim_ota import class_cost

OBJECT = [0.0, 0, 100, 100]


def predicted(ious: list[float], boxes: list, stride: int = 8) -> Unassigned:
    """Candidates of one object, with the IoU of each prediction; all scores are equal."""
    seen = torch.tensor([[[0, 0, 100, 100 * iou]] for iou in ious]).double()

    def predict(rows: torch.Tensor) -> Outputs:
        return Outputs(torch.full((len(rows), 2), 0.5).double(), seen[rows])

    level = torch.zeros(len(boxes), dtype=torch.int64)
    return one_image(boxes, [OBJECT], predict=predict, level=level, strides=[stride])


def test_an_object_takes_as_many_as_its_ious_sum_to() -> None:
    for ious, expected in (
        ([0.9, 0.8, 0.7, 0.3], [1, 1, 0, 0]),  # 2.7: two
        ([0.3, 0.9, 0.8, 0.95], [0, 1, 0, 1]),  # 2.95: the two best
        ([0.1, 0.2, 0.1, 0.0], [0, 1, 0, 0]),  # 0.4: one at least
        ([1.0, 1.0, 1.0, 0.1], [1, 1, 1, 0]),  # 3.1
    ):
        assert SimOTA()(predicted(ious, [OBJECT] * 4)).labels.tolist() == expected
    # Of the two highest IoUs alone: 1.7.
    assert SimOTA(top=2)(predicted([0.9, 0.8, 0.7, 0.3], [OBJECT] * 4)).labels.sum() == 1


def test_candidates_of_the_centre_zone_come_first() -> None:
    # Centres at x = 50, 80 and 105: in the object and within 2.5 x 8 px of its centre, in the
    # object alone, and in neither. The IoUs of the first two sum to 1.4, of all three to 2.3.
    boxes = [[x - 10.0, 40, x + 10, 60] for x in (50, 80, 105)]
    given = predicted([0.5, 0.9, 0.9], boxes)
    assert SimOTA()(given).labels.tolist() == [1, 0, 0]
    # With a zone of 40 px the second is in it too, and cheaper; the third is in the zone of 60 px.
    assert SimOTA(radius=5)(given).labels.tolist() == [0, 1, 0]
    assert SimOTA(radius=7.5)(given).labels.tolist() == [1, 1, 0]


def test_the_class_cost_is_torch_s_binary_cross_entropy() -> None:
    scores, labels = torch.rand(7, 4), torch.tensor([1, 3])
    scores[0, 1], scores[1, 2] = 0, 1
    targets = F.one_hot(labels - 1, 3).float()
    for number, target in enumerate(targets):
        expected = F.binary_cross_entropy(scores[:, 1:], target.expand(7, 3), reduction="none")
        torch.testing.assert_close(class_cost(scores, labels)[number], expected.sum(1))


@pytest.mark.parametrize("seed", range(15))
def test_equal_to_plain_loops(seed: int) -> None:
    given, seen = batch(seed)
    level = given.level.tolist()

    def cost(image: Image, row: int, number: int) -> float:
        scores, label = image.scores[row][1:], image.labels[number]
        terms = [s if c == label else 1 - s for c, s in enumerate(scores, 1)]
        iou = overlap(image.seen[row][0], image.objects[number])
        both = center_inside(image.boxes[row], image.objects[number], 0.0)
        both = both and in_zone(image, row, number)
        found = -sum(max(math.log(term), -100) for term in terms)
        return found - 3 * math.log(iou + 1e-7) + (0 if both else 1e5)

    def in_zone(image: Image, row: int, number: int) -> bool:
        pairs = zip(center(image.boxes[row]), center(image.objects[number]), strict=True)
        return all(abs(a - b) < 2.5 * STRIDES[level[row]] for a, b in pairs)

    def rule(image: Image) -> Owners:
        numbers = range(len(image.objects))
        near = [
            row
            for row, box in enumerate(image.boxes)
            if any(center_inside(box, o, 0.0) for o in image.objects)
            or any(in_zone(image, row, number) for number in numbers)
        ]
        costs = {(row, n): cost(image, row, n) for row in near for n in numbers}
        takers: dict[int, list[int]] = {}
        for number in numbers:
            ious = [overlap(image.seen[row][0], image.objects[number]) for row in near]
            count = max(1, int(sum(sorted(ious)[-10:])))
            for place in ranked([costs[row, number] for row in near], count):
                takers.setdefault(near[place], []).append(number)
        return {
            row: own[0] if len(own) == 1 else min(numbers, key=lambda n: costs[row, n])
            for row, own in takers.items()
        }

    assert any(check(SimOTA()(given), given, seen, rule))


def test_only_candidates_near_an_object_are_previewed() -> None:
    given, _ = batch(0)
    predict, asked = given.predict, []
    given.predict = lambda rows: (asked.append(len(rows)), predict(rows))[1]
    SimOTA(radius=0.5)(given)
    assert 0 < asked[0] < len(given.stacked) / 2


@pytest.mark.parametrize("argument", [{"radius": 0}, {"top": 0}, {"iou_weight": -1.0}])
def test_arguments_out_of_range(argument: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(argument))} must be"):
        SimOTA(**argument)
    with pytest.raises(ValueError, match="pyramid level"):
        SimOTA()(one_image([OBJECT], [OBJECT]))
