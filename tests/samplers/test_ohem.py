"""OHEM worked by hand, and against a plain NMS that looks at everything."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import worked

from samplers import OHEM, Candidates

# Image 0: rows 0..6, image 1: rows 7 and 8.
LABELS = [1, 1, 0, 2, 0, -1, 0, 0, 1]
BOXES = [
    [0, 0, 10, 10],  # 0
    [0, 0, 10, 9],  # 1: IoU 0.9 with 0, the same label
    [0, 0, 10, 10],  # 2: where 0 is, but background
    [0, 0, 10, 9.5],  # 3: IoU 0.95 with 0 and 2, of another class than both
    [20, 0, 30, 10],  # 4: alone
    [50, 0, 60, 10],  # 5: ignored
    [0, 0, 10, 8],  # 6: IoU 0.8 with 2, background too
    [0, 0, 10, 10],  # 7: where 2 is, in another image
    [80, 0, 90, 10],  # 8
]
CLASS = [1.0, 2.4, 2.8, 1.5, 1.9, 90.0, 2.7, 0.1, 0.2]
TOTAL = [3.0, 2.9, 2.8, 2.0, 1.9, 90.0, 2.7, 0.1, 0.3]  # class + box loss


def picks(sampler: OHEM) -> list[int]:
    """The rows of the batch above that are picked."""
    image = [0] * 7 + [1] * 2
    weights = sampler(worked(LABELS, TOTAL, CLASS, BOXES, image))
    assert set(weights.tolist()) <= {0.0, 1.0}
    return torch.where(weights)[0].tolist()


def test_as_published() -> None:
    # By total loss: 0 (3.0), 1 falls to 0, 2 stays beside 0 (another label), 6 falls to 2, 3 stays,
    # which fills the budget of image 0. Image 1 has only two; 2 does not reach into it.
    assert picks(OHEM(3)) == [0, 2, 3, 7, 8]


def test_without_nms_copies_fill_the_budget() -> None:
    assert picks(OHEM(3, nms_iou=None)) == [0, 1, 2, 7, 8]


def test_ranked_by_the_class_loss() -> None:
    # 2 (2.8), 6 falls to 2, 1 (2.4), 4 (1.9); 0 (1.0) would fall to 1.
    assert picks(OHEM(3, rank_by="class_loss")) == [1, 2, 4, 7, 8]


def test_as_re_implemented_with_a_quota() -> None:
    # A quarter of 4 positive: 1 (2.4). Negatives 2 (2.8), 6 (2.7), 4 (1.9).
    quota = OHEM(4, positive_fraction=0.25, nms_iou=None, rank_by="class_loss")
    assert picks(quota) == [1, 2, 4, 6, 7, 8]


def test_quota_of_the_total_loss_with_nms() -> None:
    # Half of 2 positive: 0 (3.0). Negative: 2 (2.8).
    assert picks(OHEM(2, positive_fraction=0.5)) == [0, 2, 7, 8]


def test_missing_positives_are_made_up_for() -> None:
    # Six positives asked, three there after NMS: 0 and 3 and, in image 1, 8; all negatives left.
    assert picks(OHEM(6, positive_fraction=1.0)) == [0, 2, 3, 4, 7, 8]


def test_overlap_at_the_threshold_stays() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5]]  # IoU 0.5 exactly
    candidates = worked([0, 0], [2.0, 1.0], boxes=boxes)
    assert OHEM(2, nms_iou=0.5)(candidates).tolist() == [1, 1]
    assert OHEM(2, nms_iou=0.4999)(candidates).tolist() == [1, 0]


def test_boxes_left_of_the_image_do_not_reach_into_other_groups() -> None:
    # The background fills the corner that the anchors of class 1 begin in, once NMS has set the
    # groups side by side; in their own images they lie far apart.
    boxes = [[0, 0, 100, 100], [-60, -60, 40, 40]]
    candidates = worked([0, 1], [2.0, 1.0], boxes=boxes)
    assert OHEM(2, nms_iou=0.1)(candidates).tolist() == [1, 1]


def test_precise_however_many_images_and_classes() -> None:
    # IoU 2.15 / 3.1 = 0.69. In float32 the offset of this group, two million, leaves quarter
    # pixels: 2.25 / 3 = 0.75.
    boxes = [[0, 0, 8, 3.1], [0, 0, 8, 2.15], [0, 0, 1400, 1400]]
    candidates = worked([90, 90, 0], [3.0, 2.0, 1.0], boxes=boxes, image=[16, 16, 16])
    assert OHEM(3)(candidates).tolist() == [1, 1, 1]


def overlap(a: list[float], b: list[float]) -> float:
    """IoU of two boxes of at least a pixel."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def slowly(candidates: Candidates, loss: list[float], sampler: OHEM) -> list[int]:
    """Greedy NMS among equal labels of an image over all candidates, then the hardest of each."""
    boxes, labels, image = (
        t.tolist() for t in (candidates.boxes, candidates.labels, candidates.image)
    )
    left: list[int] = []
    for row in sorted(range(len(labels)), key=lambda row: -loss[row]):
        rivals = [r for r in left if (image[r], labels[r]) == (image[row], labels[row])]
        if labels[row] >= 0 and all(
            overlap(boxes[r], boxes[row]) <= sampler.nms_iou for r in rivals
        ):
            left.append(row)
    chosen: list[int] = []
    for here in set(image):
        mine, budget = [r for r in left if image[r] == here], sampler.batch_size_per_image
        if sampler.positive_fraction is None:
            chosen += mine[:budget]
            continue
        positive = [r for r in mine if labels[r] > 0][: int(budget * sampler.positive_fraction)]
        chosen += positive + [r for r in mine if labels[r] == 0][: budget - len(positive)]
    return sorted(chosen)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.integers(1, 120),
    st.integers(1, 3),
    st.sampled_from([None, 0.5]),
    st.integers(2, 40),
)
def test_the_growing_window_equals_nms_of_everything(
    seed: int, n: int, budget: int, fraction: float | None, spread: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    # Corners in few places: a small spread makes piles of copies that outgrow the first window.
    corner = torch.randint(0, spread, (n, 2), generator=g)
    boxes = torch.cat([corner, corner + torch.randint(20, 24, (n, 2), generator=g)], 1)
    labels = torch.randint(-1, 3, (n,), generator=g).tolist()
    image = torch.randint(0, 2, (n,), generator=g).sort().values.tolist()
    loss = (torch.randint(0, 60, (n,), generator=g) / 7).tolist()  # with ties
    candidates = worked(labels, loss, boxes=boxes.tolist(), image=image)
    # No ratio of areas this small is equal to the threshold.
    sampler = OHEM(budget, fraction, nms_iou=0.67891)
    picked = torch.where(sampler(candidates))[0].tolist()
    assert picked == slowly(candidates, loss, sampler)


def test_the_growing_window_equals_nms_of_everything_among_many() -> None:
    # 1500 boxes, where torchvision changes its NMS; two piles of copies before anything else.
    g = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0, 0, 20, 20]]).repeat(1500, 1)
    boxes[700:1400] += 50
    boxes[1400:] += torch.randint(100, 300, (100, 1), generator=g)
    loss = torch.arange(1500, 0, -1.0).tolist()
    candidates = worked([0] * 1500, loss, boxes=boxes.tolist())
    sampler = OHEM(64, nms_iou=0.67891)
    picked = torch.where(sampler(candidates))[0].tolist()
    assert len(picked) > 2
    assert picked == slowly(candidates, loss, sampler)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_unless_ignored(value: float) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        OHEM(2)(worked([0, 1], [1.0, value]))
    assert OHEM(2)(worked([0, -1], [1.0, value])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size_per_image", 0),
        ("positive_fraction", 1.5),
        ("nms_iou", 0.0),
        ("nms_iou", 1.1),
        ("rank_by", "box_loss"),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        OHEM(**({"batch_size_per_image": 1} | {name: value}))


def test_ranks_half_precision_as_it_stands() -> None:
    candidates = worked([0] * 4, [1.0, 3.0, 2.0, 4.0])
    full = candidates.predict

    def halved(rows: torch.Tensor):
        shown = full(rows)
        return replace(shown, loss=shown.loss.half(), class_loss=shown.class_loss.half())

    assert OHEM(2)(replace(candidates, predict=halved)).tolist() == [0, 1, 0, 1]
