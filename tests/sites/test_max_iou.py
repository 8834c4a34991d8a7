"""Labels, IoUs and object numbers worked by hand, and against torchvision's matcher."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher as StockMatcher
from torchvision.ops import box_iou

from frcnn.sites.assigners import Assigned, MaxIoU
from frcnn.sites.site import stack_candidates
from samplers.iou import share_inside

RPN = MaxIoU(0.7, 0.3, keep_best=True)
HEAD = MaxIoU(0.5, 0.5)
NOTHING = torch.zeros(0, 4)


def assign(assigner: MaxIoU, boxes: list, targets: list, labels: list) -> Assigned:
    return assigner(stack_candidates(boxes, targets, labels))


# Object 0 (class 2), object 1 (class 1), object 2 (class 3), which nothing overlaps.
OBJECTS = torch.tensor([[0.0, 0, 10, 10], [100, 0, 110, 10], [500, 500, 510, 510]])
CLASSES = torch.tensor([2, 1, 3])
BOXES = torch.tensor(
    [
        [0.0, 0, 10, 10],  # IoU 1 with object 0
        [0, 0, 10, 5],  # 0.5 with object 0
        [0, 0, 10, 2],  # 0.2 with object 0
        [100, 0, 110, 2],  # 0.2 with object 1, the best it has
        [100, 8, 110, 10],  # 0.2 with object 1 too
        [50, 50, 60, 60],  # nothing
    ]
)


def test_rpn_rules_by_hand() -> None:
    labels, ious, gt = RPN.label(BOXES, OBJECTS, CLASSES, NOTHING)
    # The band of 0.3..0.7 is ignored; both best ones of object 1 are positive below any threshold;
    # object 2, that nothing overlaps, makes nothing positive.
    assert labels.tolist() == [2, -1, 0, 1, 1, 0]
    assert ious.tolist() == pytest.approx([1, 0.5, 0.2, 0.2, 0.2, 0])
    assert gt.tolist()[:5] == [0, 0, 0, 1, 1]


def test_head_rules_by_hand() -> None:
    # From the threshold on, and no favour for the best.
    assert HEAD.label(BOXES, OBJECTS, CLASSES, NOTHING)[0].tolist() == [2, 2, 0, 0, 0, 0]


def test_background_is_strictly_below() -> None:
    assigner = MaxIoU(0.7, 0.5)
    assert assigner.label(BOXES, OBJECTS, CLASSES, NOTHING)[0].tolist() == [2, -1, 0, 0, 0, 0]


def test_ignore_areas_turn_background_only() -> None:
    # Over all of object 0's boxes, and over half of the last box.
    areas = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 55]])
    labels, ious, gt = HEAD.label(BOXES, OBJECTS, CLASSES, areas)
    assert labels.tolist() == [2, 2, -1, 0, 0, 0]
    assert ious.tolist() == HEAD.label(BOXES, OBJECTS, CLASSES, NOTHING)[1].tolist()
    # Half is not more than half; with a lower threshold it is.
    assert replace(HEAD, ignore_ioa=0.4).label(BOXES, OBJECTS, CLASSES, areas)[0].tolist()[5] == -1


def test_share_is_of_the_box_not_of_the_union() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 0], [20, 20, 30, 30]])
    areas = torch.tensor([[-100.0, -100, 100, 5], [8, 8, 100, 100]])
    found = share_inside(boxes.T[..., None], areas.T[:, None])
    assert found.tolist() == [[0.5, pytest.approx(0.04)], [0, 0], [0, 1]]


def test_without_objects_all_is_background() -> None:
    labels, ious, gt = RPN.label(BOXES, NOTHING, CLASSES[:0], NOTHING)
    assert (labels.tolist(), ious.tolist(), gt.tolist()) == ([0] * 6, [0.0] * 6, [-1] * 6)
    assert labels.dtype == gt.dtype == torch.int64
    everywhere = torch.tensor([[-1.0, -1, 999, 999]])
    assert RPN.label(BOXES, NOTHING, CLASSES[:0], everywhere)[0].tolist() == [-1] * 6


def test_objects_are_numbered_over_the_batch() -> None:
    targets = [{"boxes": OBJECTS[:2]}, {"boxes": NOTHING}, {"boxes": OBJECTS[:1].double()}]
    labels = [CLASSES[:2], CLASSES[:0], CLASSES[:1]]
    boxes = [BOXES[[0, 3]], BOXES[:1], BOXES[[0, 5, 1]]]
    assigned = assign(HEAD, boxes, targets, labels)
    assert assigned.gt.tolist()[:2] == [0, 1]
    assert assigned.gt.tolist()[2:4] == [-1, 2]
    assert assigned.gt.tolist()[5] == 2
    assert assigned.gt_boxes.tolist() == OBJECTS[[0, 1, 0]].tolist()
    assert assigned.gt_boxes.dtype == torch.float32
    assert assigned.image.tolist() == [0, 0, 1, 2, 2, 2]
    assert assigned.labels.tolist() == [2, 0, 0, 2, 0, 2]
    assert assigned.boxes.tolist() == torch.cat(boxes).tolist()


def test_an_image_without_boxes_and_its_ignore_area() -> None:
    targets = [{"boxes": NOTHING, "ignore": OBJECTS}, {"boxes": OBJECTS[:1]}]
    assigned = assign(HEAD, [NOTHING, BOXES[:1]], targets, [CLASSES[:0], CLASSES[:1]])
    assert (assigned.image.tolist(), assigned.gt.tolist()) == ([1], [0])


def boxes_on_a_grid(n: int, generator: torch.Generator) -> Tensor:
    """Boxes of whole pixels, so that equal overlaps are common."""
    corner = torch.randint(0, 12, (n, 2), generator=generator)
    return torch.cat([corner, corner + torch.randint(3, 8, (n, 2), generator=generator)], 1).float()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("assigner", [RPN, HEAD])
def test_equal_to_torchvisions(seed: int, assigner: MaxIoU) -> None:
    g = torch.Generator().manual_seed(seed)
    boxes, objects = boxes_on_a_grid(80, g), boxes_on_a_grid(6, g)
    # torchvision makes every box positive that has no overlap with an object that none overlaps.
    objects = objects[box_iou(objects, boxes).amax(1) > 0]
    classes = torch.randint(1, 5, (len(objects),), generator=g)
    quality = box_iou(objects, boxes)
    index = StockMatcher(assigner.high, assigner.low, assigner.keep_best)(quality)
    expected = torch.where(index >= 0, classes[index.clamp(min=0)], -1)
    expected[index == StockMatcher.BELOW_LOW_THRESHOLD] = 0
    labels, ious, gt = assigner.label(boxes, objects, classes, NOTHING)
    assert labels.tolist() == expected.tolist()
    assert gt[labels > 0].tolist() == index[labels > 0].tolist()
    assert ious.tolist() == quality.amax(0).tolist()


@pytest.mark.parametrize("assigner", [RPN, HEAD])
def test_chunks_change_nothing(assigner: MaxIoU, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    boxes = [boxes_on_a_grid(n, g) for n in (80, 1, 33)]
    targets = [
        {"boxes": boxes_on_a_grid(n, g), "ignore": boxes_on_a_grid(j, g)}
        for n, j in ((6, 2), (1, 0), (0, 3))
    ]
    labels = [torch.ones(len(target["boxes"]), dtype=torch.int64) for target in targets]
    whole = assign(assigner, boxes, targets, labels)
    monkeypatch.setattr("frcnn.sites.assigners.max_iou.PAIRS", 100)
    pieces = assign(assigner, boxes, targets, labels)
    for name in ("labels", "ious", "gt"):
        assert getattr(pieces, name).tolist() == getattr(whole, name).tolist()


@pytest.mark.parametrize(
    ("high", "low", "name"), [(0.3, 0.5, "low"), (1.2, 0.5, "high"), (0.5, -0.1, "low")]
)
def test_thresholds_out_of_order_are_refused(high: float, low: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be in"):
        MaxIoU(high, low)
