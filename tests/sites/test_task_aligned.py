"""Task-aligned assignment worked by hand and against plain loops."""

import pytest
import torch
from plain import Image, Owners, batch, best_pairs, center_inside, check, one_image, overlap, ranked

from frcnn.sites.assigners import Outputs, TaskAligned, Unassigned

OBJECT = [0.0, 0, 100, 100]


def predicted(scores: list[float], ious: list[float], boxes: list | None = None) -> Unassigned:
    """Candidates in an object of class 2 of two, with the score of that class and the IoU."""
    seen = torch.tensor([[[0, 0, 100, 100 * iou]] for iou in ious]).double()
    table = torch.tensor([[0, 1, score] for score in scores]).double()

    def predict(rows: torch.Tensor) -> Outputs:
        return Outputs(table[rows], seen[rows])

    return one_image(boxes or [OBJECT] * len(ious), [OBJECT], [2], predict=predict)


def test_soft_targets_of_the_worked_example() -> None:
    # t = s u^6 = .131 .042 .159; over the largest, times the best IoU of .9: .740 .237 .900.
    found = TaskAligned()(predicted([0.5, 0.9, 0.3], [0.8, 0.6, 0.9]))
    assert found.labels.tolist() == [2, 2, 2]
    assert found.soft_targets.tolist() == pytest.approx([0.740, 0.237, 0.900], abs=5e-4)
    assert found.weights.tolist() == found.soft_targets.tolist()
    # The best one alone: t / max(t) is 1, and the rest is background of weight 1.
    found = TaskAligned(k=1)(predicted([0.5, 0.9, 0.3], [0.8, 0.6, 0.9]))
    assert found.labels.tolist() == [0, 0, 2]
    assert found.soft_targets.tolist() == pytest.approx([0, 0, 0.9])
    assert found.weights.tolist() == pytest.approx([1, 1, 0.9])


def test_a_network_that_has_learned_little_has_targets_too() -> None:
    found = TaskAligned()(predicted([0.01, 0.01], [0.1, 0.05]))  # t = 1e-8 and 1.6e-10
    assert found.soft_targets.tolist() == pytest.approx([0.1, 0.1 / 64])
    # Without any overlap there is no positive.
    assert TaskAligned()(predicted([0.9], [0.0])).labels.tolist() == [0]


def test_the_centre_is_that_of_the_candidate_and_follows_the_top_k() -> None:
    # The first has the highest t and its centre outside: as released, nobody takes its place.
    boxes = [[80.0, 0, 160, 100], OBJECT]
    given = predicted([0.9, 0.5], [0.9, 0.5], boxes)
    assert TaskAligned(k=1)(given).labels.tolist() == [0, 0]
    assert TaskAligned(k=2)(given).labels.tolist() == [0, 2]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("k", "columns"), [(1, 1), (13, 1), (13, 4)])
def test_equal_to_plain_loops(seed: int, k: int, columns: int) -> None:
    given, seen = batch(seed, columns=columns, levels=False)
    quality = []

    def rule(image: Image) -> Owners:
        t, u, pairs = {}, {}, {}
        for number, (target, label) in enumerate(zip(image.objects, image.labels, strict=True)):
            for row, boxes in enumerate(image.seen):
                u[row, number] = overlap(boxes[label if columns > 1 else 0], target)
                t[row, number] = image.scores[row][label] * u[row, number] ** 6
            best = ranked([-t[row, number] for row in range(len(image.boxes))], k)
            for row in best:
                if t[row, number] > 0 and center_inside(image.boxes[row], target):
                    pairs[row, number] = u[row, number]
        owner = best_pairs(pairs)
        targets = [0.0] * len(image.boxes)
        for row, number in owner.items():
            own = [other for other, its in owner.items() if its == number]
            highest = max(t[other, number] for other in own)
            targets[row] = t[row, number] / highest * max(u[other, number] for other in own)
        quality.append(targets)
        return owner

    found = TaskAligned(k)(given)
    said = check(found, given, seen, rule)
    assert any(said)
    counts = torch.tensor([len(objects) for objects in given.objects])
    with_objects = counts.repeat_interleave(torch.tensor(given.sizes)) > 0
    expected = torch.tensor([value for image in quality for value in image]).double()
    torch.testing.assert_close(found.soft_targets[with_objects], expected)
    assert found.soft_targets[found.labels <= 0].abs().max() == 0
    assert found.weights.equal(torch.where(found.labels > 0, found.soft_targets, 1))


@pytest.mark.parametrize("argument", [{"k": 0}, {"alpha": -1.0}, {"beta": -1.0}])
def test_arguments_out_of_range(argument: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(argument))} must be"):
        TaskAligned(**argument)
