"""Batches of anchors for the tests of assigners, and what loops over Python numbers say of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frcnn.sites.assigners import Assigned, Outputs, Unassigned

STRIDES = (8, 16, 32)
SIDE = 64
# Which object each candidate is positive for: candidate -> object, of one image.
Owners = dict[int, int]


def anchors() -> tuple[Tensor, Tensor]:
    """[N, 4] boxes of three levels, two at each location, float64; [N] levels."""
    boxes, level = [], []
    for number, stride in enumerate(STRIDES):
        for y in range(stride // 2, SIDE, stride):
            for x in range(stride // 2, SIDE, stride):
                for w, h in ((stride, stride), (2 * stride, stride)):
                    boxes.append([x - w, y - h, x + w, y + h])
                    level.append(number)
    return torch.tensor(boxes).double(), torch.tensor(level)


def boxes_in(count: int, g: torch.Generator) -> Tensor:
    """[count, 4] boxes of whole pixels, so that equal distances and overlaps are common."""
    corner = torch.randint(0, 40, (count, 2), generator=g)
    return torch.cat([corner, corner + torch.randint(6, 32, (count, 2), generator=g)], 1).double()


def batch(
    seed: int, classes: int = 3, columns: int = 1, levels: bool = True
) -> tuple[Unassigned, Outputs]:
    """Four images, of which one has no object and two have ignore areas, and predictions.

    Args:
        columns: D, boxes per candidate; 1, or classes + 1.
        levels: False = the images have other numbers of candidates, which have no level.
    """
    g = torch.Generator().manual_seed(seed)
    place, level = anchors()
    counts = [len(place)] * 4 if levels else [len(place), 40, 0, 7]
    boxes = [place[:count] for count in counts]
    objects = [boxes_in(count, g) for count in (3, 0, 1, 6)]
    labels = [torch.randint(1, classes + 1, (len(o),), generator=g) for o in objects]
    ignore = [boxes_in(count, g) for count in (2, 1, 0, 0)]
    n = sum(counts)
    near = torch.cat(boxes)[:, None] + torch.randint(-4, 5, (n, columns, 4), generator=g)
    seen = Outputs(torch.rand(n, classes + 1, generator=g).double(), near)
    given: dict[str, Any] = {"level": level, "strides": STRIDES} if levels else {}

    def predict(rows: Tensor) -> Outputs:
        return Outputs(seen.scores[rows], seen.boxes[rows])

    return Unassigned(boxes, objects, labels, ignore, predict=predict, **given), seen


def one_image(
    boxes: Sequence[Sequence[float]],
    objects: Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    ignore: Sequence[Sequence[float]] = (),
    **more: Any,
) -> Unassigned:
    """An image written by hand, float64; all objects of class 1 by default."""
    given = [torch.tensor(rows).double().reshape(-1, 4) for rows in (boxes, objects, ignore)]
    kinds = torch.tensor([1] * len(objects) if labels is None else labels, dtype=torch.int64)
    return Unassigned([given[0]], [given[1]], [kinds], [given[2]], **more)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (areas - shared)


def center(box: Sequence[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def center_inside(box: Sequence[float], area: Sequence[float], margin: float = 0.01) -> bool:
    x, y = center(box)
    return min(x - area[0], y - area[1], area[2] - x, area[3] - y) > margin


def ranked(values: Sequence[float], count: int) -> list[int]:
    """Places of the ``count`` smallest values; the first of equal ones first."""
    return sorted(range(len(values)), key=lambda place: (values[place], place))[:count]


def best_pairs(pairs: dict[tuple[int, int], float]) -> Owners:
    """(candidate, object) -> preference: the object of highest preference of each candidate."""
    found: Owners = {}
    for (row, number), value in sorted(pairs.items()):
        if row not in found or value > pairs[row, found[row]]:
            found[row] = number
    return found


@dataclass
class Image:
    """One image as lists, with the predictions of its candidates."""

    boxes: list[list[float]]
    objects: list[list[float]]
    labels: list[int]
    ignore: list[list[float]]
    scores: list[list[float]]
    seen: list[list[list[float]]]


def images(given: Unassigned, seen: Outputs) -> list[Image]:
    parts = (given.boxes, given.objects, given.object_labels, given.ignore)
    outputs = seen.scores.split(given.sizes), seen.boxes.split(given.sizes)
    return [Image(*(t.tolist() for t in row)) for row in zip(*parts, *outputs, strict=True)]


def check(
    found: Assigned, given: Unassigned, seen: Outputs, rule: Callable[[Image], Owners]
) -> list[Owners]:
    """Compare all that an assigner returns with a rule; returns what the rule says."""
    labels, ious, gt, first = [], [], [], 0
    said = []
    for image in images(given, seen):
        owner = rule(image) if image.objects else {}
        said.append(owner)
        for row, box in enumerate(image.boxes):
            overlaps = [overlap(box, other) for other in image.objects]
            most = overlaps.index(max(overlaps)) if overlaps else -1
            own = owner.get(row, most)
            covered = [_share_inside(box, area) > 0.5 for area in image.ignore]
            labels.append(image.labels[own] if row in owner else -1 if any(covered) else 0)
            ious.append(overlaps[own] if overlaps else 0.0)
            gt.append(own + first if overlaps else -1)
        first += len(image.objects)
    assert found.labels.tolist() == labels
    torch.testing.assert_close(found.ious, torch.tensor(ious).double())
    assert found.gt.tolist() == gt
    assert found.boxes.equal(torch.cat(list(given.boxes)))
    assert (found.sizes, found.image.tolist()) == (given.sizes, given.image.tolist())
    assert found.labels.dtype == found.gt.dtype == torch.int64
    return said


def _share_inside(box: Sequence[float], area: Sequence[float]) -> float:
    width = min(box[2], area[2]) - max(box[0], area[0])
    height = min(box[3], area[3]) - max(box[1], area[1])
    return max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))
