"""ATSS worked by hand and against plain loops."""

import statistics

import pytest
import torch
from plain import (
    STRIDES,
    Image,
    Owners,
    batch,
    best_pairs,
    center,
    center_inside,
    check,
    one_image,
    overlap,
    ranked,
)

from frcnn.sites.assigners import ATSS

OBJECT = [0.0, 0, 100, 100]


def test_the_threshold_is_mean_plus_unbiased_deviation() -> None:
    # Boxes within the object, all with its centre: their IoUs are .1 .2 .3 .4 .5 .6 .7 .2 .1, of
    # mean .344 and deviation .219. The threshold of .563 leaves two.
    shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.2, 0.1]
    boxes = [[0, 50 - 50 * share, 100, 50 + 50 * share] for share in shares]
    given = one_image(boxes, [OBJECT], [2], level=torch.zeros(9, dtype=torch.int64), strides=[8])
    found = ATSS(9)(given)
    assert found.labels.tolist() == [0, 0, 0, 0, 0, 2, 2, 0, 0]
    assert found.ious.tolist() == pytest.approx(shares)
    assert statistics.stdev(shares) == pytest.approx(0.219, abs=1e-3)


@pytest.mark.parametrize(("left", "label"), [(0.0, 1), (49.9, 1), (50.0, 0), (60.0, 0)])
def test_the_centre_must_lie_inside(left: float, label: int) -> None:
    # A lone candidate reaches its own threshold; its centre is at x = left + 50.
    level = torch.zeros(1, dtype=torch.int64)
    given = one_image([[left, 0, left + 100, 100]], [OBJECT], level=level, strides=[8])
    assert ATSS()(given).labels.tolist() == [label]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("k", [1, 4, 9])
def test_equal_to_plain_loops(seed: int, k: int) -> None:
    given, seen = batch(seed)
    level = given.level.tolist()

    def rule(image: Image) -> Owners:
        pairs = {}
        for number, (x1, y1, x2, y2) in enumerate(image.objects):
            near = []
            for wanted in range(len(STRIDES)):
                rows = [row for row, own in enumerate(level) if own == wanted]
                away = []
                for row in rows:
                    x, y = center(image.boxes[row])
                    away.append((x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2)
                near += [rows[place] for place in ranked(away, k)]
            ious = {row: overlap(image.boxes[row], image.objects[number]) for row in near}
            threshold = statistics.mean(ious.values()) + statistics.stdev(ious.values())
            for row, iou in ious.items():
                if iou >= threshold and center_inside(image.boxes[row], image.objects[number]):
                    pairs[row, number] = iou
        return best_pairs(pairs)

    said = check(ATSS(k)(given), given, seen, rule)
    assert any(said)


def test_one_candidate_and_none() -> None:
    for boxes, expected in (([OBJECT], [1]), ([], [])):
        level = torch.zeros(len(boxes), dtype=torch.int64)
        given = one_image(boxes, [OBJECT], level=level, strides=[8])
        assert ATSS()(given).labels.tolist() == expected


def test_candidates_without_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="pyramid level"):
        ATSS()(one_image([OBJECT], [OBJECT]))
    with pytest.raises(ValueError, match="^k must be"):
        ATSS(0)
