"""A site's losses and predictions worked by hand."""

import math
from typing import Any

import pytest
import torch
from small import batch, quick
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from frcnn.losses import GHMC, CrossEntropy, Samples, SmoothL1
from frcnn.sites.assigners import Assigned, MaxIoU
from frcnn.sites.site import Site, deltas_of_label, site_generators
from frcnn.sites.weighers import Weighed
from samplers import OHEM, All, Candidates

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
# Rows 0 and 3 are positives of class 2 and 1; both objects are 2 px right of their boxes.
ASSIGNED = Assigned(
    boxes=torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 5], [9, 9, 20, 20], [20, 20, 40, 40]]),
    labels=torch.tensor([2, 0, -1, 1]),
    ious=torch.tensor([0.8, 0.1, 0.4, 0.9]),
    gt=torch.tensor([0, 0, 1, 1]),
    gt_boxes=torch.tensor([[2.0, 0, 12, 10], [22, 20, 42, 40]]),
    image=torch.tensor([0, 0, 0, 1]),
)
ROWS = torch.tensor([0, 1, 3])


def site(per: str = "sample") -> Site:
    return Site("rcnn", MaxIoU(0.5, 0.5), All(), CrossEntropy(per), SmoothL1(1.0, per), CODER)


def terms(here: Site, *arguments: Any) -> list[Tensor]:
    """Class and box term."""
    return list(here.losses(*arguments).values())


def test_weighted_sum_over_the_normalizer() -> None:
    # All classes equally likely: each loss ln 3. Weights 1, 4, 1 of three samples: 6 ln 3 / 3.
    weights = torch.tensor([1.0, 4.0, 1.0])
    logits, deltas = torch.zeros(3, 3), torch.zeros(3, 3, 4)
    class_term, box_term = terms(site(), ASSIGNED, ROWS, weights, logits, deltas)
    assert class_term.item() == pytest.approx(2 * math.log(3))
    # 2 px of 10 are 10 * 0.2 = 2 encoded, of 20 they are 1: (1.5 + 0.5) / 3 samples, unweighted.
    assert box_term.item() == pytest.approx(2 / 3)
    class_term, box_term = terms(site("positive"), ASSIGNED, ROWS, weights, logits, deltas)
    assert class_term.item() == pytest.approx(3 * math.log(3))
    assert box_term.item() == pytest.approx(1)


def test_a_factor_multiplies_its_term() -> None:
    here = site()
    here.class_factor, here.box_factor = 3.0, 0.5
    arguments = ASSIGNED, ROWS, torch.ones(3), torch.zeros(3, 3), torch.zeros(3, 3, 4)
    found = here.losses(*arguments)
    assert found.keys() == {"loss_classifier", "loss_box_reg"}
    plain = terms(site(), *arguments)
    assert list(found.values()) == [3.0 * plain[0], 0.5 * plain[1]]
    # The validation loss is the same for every run.
    assert terms(here.eval(), *arguments) == terms(site().eval(), *arguments)


def test_guided_scaling_takes_its_size_from_the_box_term_and_its_direction_from_the_loss() -> None:
    here = site()
    here.class_loss = CrossEntropy("guided", guided_scale=2.0)
    logits = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]], requires_grad=True)
    deltas = torch.zeros(3, 3, 4, requires_grad=True)
    weights = torch.tensor([1.0, 4.0, 1.0])
    class_term, box_term = terms(here, ASSIGNED, ROWS, weights, logits, deltas)
    assert box_term.item() == pytest.approx(2 / 3)
    assert class_term.item() == pytest.approx(4 / 3)
    (found,) = torch.autograd.grad(class_term, logits, retain_graph=True)
    plain, _ = terms(site(), ASSIGNED, ROWS, weights, logits, deltas)
    (expected,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(found, expected * (class_term / plain).item())
    # The boxes learn from their own term alone.
    assert torch.autograd.grad(class_term, deltas, allow_unused=True) == (None,)


def test_without_a_box_term_the_guided_loss_is_a_mean_over_samples() -> None:
    here = site()
    here.class_loss = CrossEntropy("guided")
    background = ROWS[1:2]
    logits = torch.zeros(1, 3, requires_grad=True)
    class_term, box_term = terms(
        here, ASSIGNED, background, torch.ones(1), logits, torch.zeros(1, 3, 4)
    )
    assert (class_term.item(), box_term.item()) == (pytest.approx(math.log(3)), 0)
    class_term.backward()
    assert logits.grad[0, 0] < 0  # a batch of background still teaches
    # With boxes that are perfect already it is a mean over samples too, not over positives.
    boxes, gt = ASSIGNED.boxes[ROWS], ASSIGNED.gt_boxes[ASSIGNED.gt[ROWS]]
    perfect = CODER.encode_single(gt, boxes)[:, None].repeat(1, 3, 1)
    class_term, box_term = terms(here, ASSIGNED, ROWS, torch.ones(3), torch.zeros(3, 3), perfect)
    assert (class_term.item(), box_term.item()) == (pytest.approx(math.log(3)), 0)
    # Nor is a perfect class loss a division by zero.
    certain = torch.tensor([[-300.0, -300, 300], [300, 0, 0], [-300, 300, -300]])
    weights, deltas = torch.ones(3), torch.zeros(3, 3, 4)
    assert terms(here, ASSIGNED, ROWS, weights, certain, deltas)[0].item() == 0


def test_a_loss_found_not_finite_is_told_after_the_draw() -> None:
    # On a GPU a sampler does not wait to see it.
    class Blind:
        def __call__(self, candidates: Candidates) -> Tensor:
            candidates.finite = torch.tensor(False)
            return torch.ones(4)

    here = site()
    here.sampler = Blind()
    with pytest.raises(FloatingPointError, match="not finite"):
        here.draw(ASSIGNED, None, None)


def test_nothing_kept_is_a_loss_of_zero_with_a_gradient() -> None:
    logits, deltas = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3, 4, requires_grad=True)
    found = terms(site(), ASSIGNED, ROWS[:0], torch.zeros(0), logits, deltas)
    assert [term.item() for term in found] == [0, 0]
    sum(found).backward()
    assert logits.grad.shape == (0, 3)


def test_a_prediction_has_loss_and_box_of_the_label() -> None:
    # Background is seen as such, and as class 1 if an object; class c moves a box c * 10 % right.
    logits = torch.tensor([[0.0, 0, 0], [4, 3, 1], [0, 0, 0]])
    deltas = torch.zeros(3, 3, 4)
    deltas[:, :, 0] = torch.tensor([0.0, 1.0, 2.0])
    shown = site().prediction(ASSIGNED, ROWS, logits, deltas)
    background = math.log(1 + math.exp(-1) + math.exp(-3))
    expected = [math.log(3), background, math.log(3)]
    assert shown.class_loss.tolist() == pytest.approx(expected, rel=1e-6)
    # Both objects lie where their class predicts: 20 % of 10 px, 10 % of 20 px. No box loss.
    assert shown.loss.tolist() == pytest.approx(expected, rel=1e-5)
    boxes = torch.tensor([[2.0, 0, 12, 10], [0.5, 0, 5.5, 5], [22, 20, 42, 40]])
    torch.testing.assert_close(shown.boxes, boxes)
    away = site().prediction(ASSIGNED, ROWS, logits, torch.zeros(3, 3, 4))
    # Encoded errors of 2 and 1, smooth L1 1.5 and 0.5; none for background.
    assert (away.loss - away.class_loss).tolist() == pytest.approx([1.5, 0, 0.5], rel=1e-5)


def test_boxes_for_each_class_or_for_all() -> None:
    labels = torch.tensor([2, 0])
    each = torch.arange(24.0).reshape(2, 3, 4)
    assert deltas_of_label(each, labels).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert deltas_of_label(each[:, :1], labels).tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert deltas_of_label(each[:0], labels[:0]).shape == (0, 4)


def test_draw_keeps_rows_above_zero_and_shows_them() -> None:
    seen = []

    def sampler(candidates: Candidates) -> torch.Tensor:
        return torch.tensor([0.5, 0.0, 0.0, 2.0])

    here = site()
    here.sampler = sampler
    here.observer = lambda *what: seen.append(what)
    rows, weights, *_ = here.draw(ASSIGNED, lambda rows: None, None)
    assert (rows.tolist(), weights.tolist()) == ([0, 3], [0.5, 2.0])
    ((name, candidates, shown),) = seen
    assert name == "rcnn"
    assert candidates.labels is ASSIGNED.labels
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


def one_positive_four_negatives(ignored: int) -> tuple[Assigned, Tensor]:
    """Candidates whose boxes equal their object, and logits [N, 2] by which they differ."""
    labels = torch.tensor([1, 0, 0, 0, 0] + [-1] * ignored)
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(len(labels), 1)
    zeros = torch.zeros(len(labels), dtype=torch.int64)
    found = Assigned(boxes, labels, zeros.float(), zeros, boxes[:1], zeros, [len(labels)])
    x = torch.tensor([1.5, 1.2, 0.1, -1.0, -2.0] + [-3.0] * ignored)
    return found, torch.stack([torch.zeros_like(x), x], 1)


@pytest.mark.parametrize("loss", [GHMC(), CrossEntropy(class_weights="batch")])
def test_ignored_candidates_change_nothing_in_a_preview(loss: Any) -> None:
    here = Site("rpn", MaxIoU(0.7, 0.3), OHEM(2, nms_iou=None), loss, SmoothL1(), CODER)
    seen = []
    for ignored in (0, 50):
        found, logits = one_positive_four_negatives(ignored)
        shown = here.prediction(
            found, torch.arange(5 + ignored), logits, torch.zeros(len(logits), 1, 4)
        )
        assert shown.loss[5:].tolist() == [0.0] * ignored
        rows, *_ = here.draw(found, lambda rows, shown=shown: shown, None)
        seen.append((shown.loss[:5].tolist(), rows.tolist()))
    assert seen[0] == seen[1]


class Doubling:
    """A weigher that doubles class losses, zeroes box losses, and adds a term of its own."""

    def __call__(self, samples: Samples, class_values: Tensor, box_values: Tensor) -> Weighed:
        assert class_values.requires_grad and box_values.requires_grad
        return Weighed(2 * class_values, 0 * box_values, {"penalty": class_values.new_tensor(0.25)})


def test_a_weigher_weighs_both_terms_and_adds_one() -> None:
    logits, deltas = (torch.zeros(3, 3, *more, requires_grad=True) for more in ((), (4,)))
    here = site()
    here.weigher = Doubling()
    found = here.losses(ASSIGNED, ROWS, torch.ones(3), logits, deltas)
    assert list(found) == ["loss_classifier", "loss_box_reg", "loss_rcnn_penalty"]
    values = [value.item() for value in found.values()]
    assert values == pytest.approx([2 * math.log(3), 0, 0.25])


def test_a_weigher_s_normalizer_takes_the_place_of_the_losses_own() -> None:
    logits, deltas = (torch.zeros(3, 3, *more, requires_grad=True) for more in ((), (4,)))
    here = site()
    alone = here.losses(ASSIGNED, ROWS, torch.ones(3), logits, deltas)
    here.weigher = lambda samples, c, b: Weighed(c, b, normalizer=torch.tensor(6.0))
    found = here.losses(ASSIGNED, ROWS, torch.ones(3), logits, deltas)
    for name, term in alone.items():  # both were a sum over 3 samples
        assert found[name].item() == pytest.approx(term.item() * 3 / 6)


def test_a_weigher_s_term_does_not_replace_a_loss() -> None:
    logits, deltas = torch.zeros(3, 3), torch.zeros(3, 3, 4)
    here = site()
    here.term_names = ("loss_rcnn_class", "loss_rcnn_box")
    here.weigher = lambda samples, c, b: Weighed(c, b, {"box": torch.tensor(0.0)})
    with pytest.raises(ValueError, match="'box' has the name of another one, loss_rcnn_box"):
        here.losses(ASSIGNED, ROWS, torch.ones(3), logits, deltas)


class Counting(CrossEntropy, nn.Module):
    """Counts the labels that it has learned from."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        CrossEntropy.__init__(self)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, samples: Samples) -> Tensor:
        if samples.training:
            self.steps += 1
        return CrossEntropy.__call__(self, samples)

    __call__ = nn.Module.__call__


def test_a_state_moves_once_a_step_whatever_the_sampler_asks() -> None:
    model = quick(loss={"rcnn": Counting()}, sampler={"rcnn": OHEM(8)})
    model(*batch(3, 2))
    assert model.sites["rcnn"].class_loss.steps.item() == 1
    model.eval()(*batch(3, 2))
    assert model.sites["rcnn"].class_loss.steps.item() == 1


def test_in_eval_mode_the_draw_is_random_whatever_the_sampler() -> None:
    seen = []
    for sampler in (All(), OHEM(1)):
        here = site()
        here.sampler = sampler
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        rows, *_ = here.eval().draw(ASSIGNED, None, generators)  # it asks for no prediction
        seen.append(rows.tolist())
    assert seen[0] == seen[1] == [0, 1, 3]  # the kind's budget holds all three


def test_every_site_draws_from_a_stream_of_its_own() -> None:
    firsts = [
        torch.rand(1, generator=site_generators([{"seed": 5}], index, torch.device("cpu"))[0])
        for index in range(6)
    ]
    assert len({value.item() for value in firsts}) == 6


class ScaledToTheClassTerm(SmoothL1):
    """A box loss whose term equals the class term, as in rank and sort."""

    def normalizer(self, samples: Samples) -> Tensor:
        return samples.box_sum / samples.class_term()


def test_a_box_loss_may_be_scaled_to_the_class_term() -> None:
    here = site()
    here.box_loss = ScaledToTheClassTerm(1.0)
    class_term, box_term = terms(
        here, ASSIGNED, ROWS, torch.ones(3), torch.zeros(3, 3), torch.zeros(3, 3, 4)
    )
    assert box_term.item() == pytest.approx(class_term.item()) == pytest.approx(math.log(3))


def test_an_unknown_kind_is_refused() -> None:
    parts = MaxIoU(0.5, 0.5), All(), CrossEntropy(), SmoothL1(), CODER
    with pytest.raises(ValueError, match="kind must be rpn, rcnn, dense, got 'head'"):
        Site("head", *parts)
    assert Site("head", *parts, kind="rcnn").kind == "rcnn"


class Drawing(CrossEntropy):
    """Draws one number per batch, as ``Samples.generator`` asks."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def __call__(self, samples: Samples) -> Tensor:
        self.drawn.append(torch.rand((), generator=samples.generator).item())
        return super().__call__(samples)


def drawn(seed: int, rows: Tensor) -> list[float]:
    """What a loss draws in the preview and in the training pass."""
    here, loss = site(), Drawing()
    here.class_loss, here.seed = loss, seed
    logits, deltas = torch.zeros(len(rows), 3), torch.zeros(len(rows), 3, 4)
    here.prediction(ASSIGNED, rows, logits, deltas)
    here.losses(ASSIGNED, rows, torch.ones(len(rows)), logits, deltas)
    return loss.drawn


def test_a_loss_draws_from_the_stream_of_its_site_s_seed() -> None:
    preview, training = drawn(1, ROWS)
    assert preview == training
    # The rows of another process change nothing; the seed of another site or batch does.
    assert drawn(1, ROWS[:1]) == [preview, training]
    assert drawn(2, ROWS)[0] != preview
