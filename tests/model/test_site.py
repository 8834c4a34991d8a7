"""A site's losses and predictions worked by hand."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from frcnn.losses import CrossEntropy, SmoothL1
from frcnn.sites.assigners.max_iou import Matched, Matcher
from frcnn.sites.site import Site, of_class, site_generators
from samplers import All, Candidates

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
# Rows 0 and 3 are positives of class 2 and 1; both objects are 2 px right of their boxes.
MATCHED = Matched(
    boxes=torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 5], [9, 9, 20, 20], [20, 20, 40, 40]]),
    labels=torch.tensor([2, 0, -1, 1]),
    ious=torch.tensor([0.8, 0.1, 0.4, 0.9]),
    gt=torch.tensor([0, 0, 1, 1]),
    gt_boxes=torch.tensor([[2.0, 0, 12, 10], [22, 20, 42, 40]]),
    image=torch.tensor([0, 0, 0, 1]),
)
ROWS = torch.tensor([0, 1, 3])


def site(per: str = "sample") -> Site:
    return Site("rcnn", Matcher(0.5, 0.5), All(), CrossEntropy(per), SmoothL1(1.0, per), CODER)


def test_weighted_sum_over_the_normalizer() -> None:
    # All classes equally likely: each loss ln 3. Weights 1, 4, 1 of three samples: 6 ln 3 / 3.
    weights = torch.tensor([1.0, 4.0, 1.0])
    logits, deltas = torch.zeros(3, 3), torch.zeros(3, 3, 4)
    class_term, box_term = site().losses(MATCHED, ROWS, weights, logits, deltas)
    assert class_term.item() == pytest.approx(2 * math.log(3))
    # 2 px of 10 are 10 * 0.2 = 2 encoded, of 20 they are 1: (1.5 + 0.5) / 3 samples, unweighted.
    assert box_term.item() == pytest.approx(2 / 3)
    class_term, box_term = site("positive").losses(MATCHED, ROWS, weights, logits, deltas)
    assert class_term.item() == pytest.approx(3 * math.log(3))
    assert box_term.item() == pytest.approx(1)


def test_guided_scaling_takes_its_size_from_the_box_term_and_its_direction_from_the_loss() -> None:
    here = site()
    here.class_loss = CrossEntropy("guided", guided_scale=2.0)
    logits = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]], requires_grad=True)
    deltas = torch.zeros(3, 3, 4, requires_grad=True)
    weights = torch.tensor([1.0, 4.0, 1.0])
    class_term, box_term = here.losses(MATCHED, ROWS, weights, logits, deltas)
    assert box_term.item() == pytest.approx(2 / 3)
    assert class_term.item() == pytest.approx(4 / 3)
    (found,) = torch.autograd.grad(class_term, logits, retain_graph=True)
    plain, _ = site().losses(MATCHED, ROWS, weights, logits, deltas)
    (expected,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(found, expected * (class_term / plain).item())
    # The boxes learn from their own term alone.
    assert torch.autograd.grad(class_term, deltas, allow_unused=True) == (None,)


def test_without_a_box_term_the_guided_loss_is_a_mean_over_samples() -> None:
    here = site()
    here.class_loss = CrossEntropy("guided")
    background = ROWS[1:2]
    logits = torch.zeros(1, 3, requires_grad=True)
    class_term, box_term = here.losses(
        MATCHED, background, torch.ones(1), logits, torch.zeros(1, 3, 4)
    )
    assert (class_term.item(), box_term.item()) == (pytest.approx(math.log(3)), 0)
    class_term.backward()
    assert logits.grad[0, 0] < 0  # a batch of background still teaches
    # Nor is a perfect class loss a division by zero.
    certain = torch.tensor([[-300.0, -300, 300], [300, 0, 0], [-300, 300, -300]])
    weights, deltas = torch.ones(3), torch.zeros(3, 3, 4)
    assert here.losses(MATCHED, ROWS, weights, certain, deltas)[0].item() == 0


def test_a_loss_found_not_finite_is_told_after_the_draw() -> None:
    # On a GPU a sampler does not wait to see it.
    class Blind:
        def __call__(self, candidates: Candidates) -> Tensor:
            candidates.finite = torch.tensor(False)
            return torch.ones(4)

    here = site()
    here.sampler = Blind()
    with pytest.raises(FloatingPointError, match="not finite"):
        here.draw(MATCHED, None, None)


def test_nothing_kept_is_a_loss_of_zero_with_a_gradient() -> None:
    logits, deltas = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3, 4, requires_grad=True)
    terms = site().losses(MATCHED, ROWS[:0], torch.zeros(0), logits, deltas)
    assert [term.item() for term in terms] == [0, 0]
    sum(terms).backward()
    assert logits.grad.shape == (0, 3)


def test_a_prediction_has_loss_and_box_of_the_label() -> None:
    # Background is seen as such, and as class 1 if an object; class c moves a box c * 10 % right.
    logits = torch.tensor([[0.0, 0, 0], [4, 3, 1], [0, 0, 0]])
    deltas = torch.zeros(3, 3, 4)
    deltas[:, :, 0] = torch.tensor([0.0, 1.0, 2.0])
    shown = site().prediction(MATCHED, ROWS, logits, deltas)
    background = math.log(1 + math.exp(-1) + math.exp(-3))
    expected = [math.log(3), background, math.log(3)]
    assert shown.class_loss.tolist() == pytest.approx(expected, rel=1e-6)
    # Both objects lie where their class predicts: 20 % of 10 px, 10 % of 20 px. No box loss.
    assert shown.loss.tolist() == pytest.approx(expected, rel=1e-5)
    boxes = torch.tensor([[2.0, 0, 12, 10], [0.5, 0, 5.5, 5], [22, 20, 42, 40]])
    torch.testing.assert_close(shown.boxes, boxes)
    away = site().prediction(MATCHED, ROWS, logits, torch.zeros(3, 3, 4))
    # Encoded errors of 2 and 1, smooth L1 1.5 and 0.5; none for background.
    assert (away.loss - away.class_loss).tolist() == pytest.approx([1.5, 0, 0.5], rel=1e-5)


def test_boxes_for_each_class_or_for_all() -> None:
    labels = torch.tensor([2, 0])
    each = torch.arange(24.0).reshape(2, 3, 4)
    assert of_class(each, labels).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert of_class(each[:, :1], labels).tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert of_class(each[:0], labels[:0]).shape == (0, 4)


def test_draw_keeps_rows_above_zero_and_shows_them() -> None:
    seen = []

    def sampler(candidates: Candidates) -> torch.Tensor:
        return torch.tensor([0.5, 0.0, 0.0, 2.0])

    here = site()
    here.sampler = sampler
    here.observer = lambda *what: seen.append(what)
    rows, weights = here.draw(MATCHED, lambda rows: None, None)
    assert (rows.tolist(), weights.tolist()) == ([0, 3], [0.5, 2.0])
    ((name, candidates, shown),) = seen
    assert name == "rcnn"
    assert candidates.labels is MATCHED.labels
    assert shown.tolist() == [0.5, 0, 0, 2]


def test_generators_are_of_the_image_and_the_site_alone() -> None:
    def draws(seeds: list[int], index: int) -> list[list[float]]:
        made = site_generators([{"seed": s} for s in seeds], index, torch.device("cpu"))
        return [torch.rand(3, generator=g).tolist() for g in made]

    first = draws([4, 5], 0)
    assert draws([5, 4], 0) == first[::-1]
    # No stream twice among neighbouring seeds and both sites.
    streams = draws([4, 5, 6], 0) + draws([4, 5, 6], 1)
    assert len({tuple(stream) for stream in streams}) == 6
    assert site_generators([{"seed": 1}, {}], 0, torch.device("cpu")) is None
