"""The top N candidates worked by hand and against plain loops."""

import pytest
import torch
from plain import Image, Owners, batch, check, one_image, overlap, ranked

from frcnn.sites.assigners import TopN


def test_the_best_n_are_positive_below_any_threshold() -> None:
    # IoUs .4 .3 .2 .1 and 0 with the first object, which is class 2; the second overlaps nothing.
    boxes = [[0.0, 0, 10, 10 * share] for share in (0.4, 0.3, 0.2, 0.1)] + [[50, 50, 60, 60]]
    given = one_image(boxes, [[0, 0, 10, 10], [90, 90, 99, 99]], [2, 1])
    for n, expected in ((1, [2, 0, 0, 0, 0]), (3, [2, 2, 2, 0, 0]), (9, [2, 2, 2, 2, 0])):
        assert TopN(n)(given).labels.tolist() == expected


def test_a_positive_stands_for_the_object_that_it_overlaps_most() -> None:
    # The best candidate of the wide object (IoU .5) is the box of the narrow one inside it.
    boxes = [[0.0, 0, 10, 10], [0, 0, 40, 10]]
    given = one_image(boxes[:1], [[0, 0, 20, 10], [0, 0, 10, 10]], [1, 2])
    found = TopN(1)(given)
    assert (found.labels.tolist(), found.gt.tolist(), found.ious.tolist()) == ([2], [1], [1.0])
    # With a second candidate, of IoU .5 with the wide object too, the first of equal ones counts.
    given = one_image(boxes, [[0, 0, 20, 10], [0, 0, 10, 10]], [1, 2])
    assert TopN(1)(given).labels.tolist() == [2, 0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n", [1, 5, 30])
def test_equal_to_plain_loops(seed: int, n: int) -> None:
    given, seen = batch(seed, levels=False)

    def rule(image: Image) -> Owners:
        owner = {}
        for target in image.objects:
            ious = [overlap(box, target) for box in image.boxes]
            for row in ranked([-iou for iou in ious], n):
                if ious[row] > 0:
                    own = [overlap(image.boxes[row], other) for other in image.objects]
                    owner[row] = own.index(max(own))
        return owner

    assert any(check(TopN(n)(given), given, seen, rule))


def test_chunks_of_objects_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given, _ = batch(0)
    whole = TopN(7)(given)
    monkeypatch.setattr("frcnn.sites.assigners.pairs.PAIRS", 1)
    assert torch.equal(TopN(7)(given).labels, whole.labels)


def test_n_out_of_range() -> None:
    with pytest.raises(ValueError, match="^n must be"):
        TopN(0)
