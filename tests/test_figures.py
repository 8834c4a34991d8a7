"""The figures of the papers show what they say they show."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import BUDGET, about, as_trained, hand_made, heights, lines, seen_by
from matplotlib.figure import Figure
from small import OPTIONS, batch, quick
from tiny import BOTH, NETWORKS, call, small_network, voc
from torch import Tensor
from torch.testing import assert_close

from experiments import style
from experiments.figures import (
    confidence,
    forgetting,
    gradients,
    learned_weights,
    losses,
    prime_samples,
    quadrants,
    sampling,
)
from experiments.figures.__main__ import main
from experiments.figures.gradients import harmony, histogram
from experiments.figures.look import look
from experiments.figures.losses import (
    cumulative,
    focal,
    of_hardest,
    spread,
    value_and_slope,
    values,
)
from experiments.figures.seen import Seen
from experiments.style import png
from frcnn.build import dataset
from frcnn.evaluation.load import Trained
from frcnn.losses import FocalSigmoid, SmoothL1
from frcnn.model import Detector, build_detector
from frcnn.runfolder.checkpoint import load
from frcnn.sites.assigners import MaxIoU
from frcnn.sites.weighers import SWN
from frcnn.train import main as train
from samplers import OHEM, All

FIGURES = [
    "box_gradients",
    "candidates",
    "classes",
    "confidence",
    "cumulative_loss",
    "gradients",
    "learned_weights",
    "loss_curves",
    "negative_ious",
    "negatives_by_iou",
    "prime_samples",
    "quadrants",
]


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    return looked_at_by(BUDGET)


def looked_at_by(budget: dict[str, int | None], **more: Any) -> dict[str, Seen]:
    images, targets = batch(2, 3)
    loader = [
        ([(255 * image).byte()], [target]) for image, target in zip(images, targets, strict=False)
    ]
    # So low that some of an untrained RPN's proposals are positive.
    assigner = {"rcnn": MaxIoU(0.2, 0.2)}
    detector = quick(box_loss={"rcnn": SmoothL1(beta=0.5)}, assigner=assigner).eval()
    cpu = torch.device("cpu")
    return look(Trained(detector, {}, [], [], cpu, torch.float32, **more), loader, budget)


def test_share_of_the_loss_hardest_first() -> None:
    assert_close(cumulative(torch.tensor([1.0, 5.0, 2.0])).float(), torch.tensor([5, 7, 8]) / 8)
    assert cumulative(torch.zeros(2)).tolist() == [0, 0]


def test_losses_in_pieces_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.linspace(0.1, 0.9, 7)
    monkeypatch.setattr(losses, "AT_ONCE", 3)
    assert_close(values(focal(0.0), right), -right.log())
    assert len(values(focal(0.0), right[:0])) == 0


def test_the_places_of_a_line() -> None:
    assert [spread(size).tolist() for size in (0, 1, 3)] == [[], [1], [1, 2, 3]]
    many = spread(16_000_000)
    assert (many[0], many[-1]) == (1, 16_000_000)
    assert 1000 < len(many) <= 2000 and (many.diff() > 0).all()
    # 16e6^(1/1999) = 1.0083, where whole numbers do not stand further apart
    assert_close((many[1:] / many[:-1])[many[1:] > 10_000].max().item(), 1.0083, rtol=0, atol=2e-4)


def test_slopes_by_hand() -> None:
    half = torch.tensor([0.5])
    value, slope = value_and_slope(focal(0.0), half)
    assert_close((value.item(), slope.item()), (math.log(2), 0.5))
    # (1 - p)^2 (1 - p - 2 p log p) at p = 1/2
    assert_close(value_and_slope(focal(2.0), half)[1].item(), 0.25 * (0.5 + math.log(2)))


def test_gradient_harmony_by_hand() -> None:
    counts, centres = histogram(torch.tensor([0.0, 0.01, 1.0]))
    assert (counts[0], counts[29], counts.sum()) == (2, 1, 3)
    assert_close(centres[[0, 29]], torch.tensor([1 / 60, 59 / 60]))
    beta = harmony(counts)
    assert_close(beta[[0, 1, 29]], torch.tensor([3 / 60, 0, 3 / 30]))


def test_the_line_of_a_focal_loss_by_hand() -> None:
    # (1 - p)^gamma -log p at p = 1/4 and 1/2, in ln 2: 2 (3/4)^gamma and (1/2)^gamma.
    one = hand_made([0, 1, 0, 2, 0], right=[[0.5], [0.5], [0.5], [0.25], [0.5]])
    positives, negatives = losses.focal_loss({"rpn": one}).axes[:2]
    # The hardest fifth of two or three is one example; the legend has its share.
    shares = {
        "γ = 0: 67%": 2 / (2 + 1),
        "γ = 0.5: 71%": 3**0.5 / (3**0.5 + 0.5**0.5),
        "γ = 1: 75%": 1.5 / (1.5 + 0.5),
        "γ = 2: 82%": 1.125 / (1.125 + 0.25),
        "γ = 5: 94%": 2 * 0.75**5 / (2 * 0.75**5 + 0.5**5),
    }
    assert heights(positives, 0, 1) == about({name: [s, 1] for name, s in shares.items()})
    thirds = [f"γ = {gamma}: 33%" for gamma in ("0", "0.5", "1", "2", "5")]
    assert heights(negatives, 0, 1, 2) == about({name: [1 / 3, 2 / 3, 1] for name in thirds})
    assert lines(negatives)["γ = 0: 33%"][0].tolist() == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_hardest_fifth_is_rounded_up() -> None:
    assert of_hardest(torch.linspace(0.1, 1, 10)) == pytest.approx(0.2)
    assert of_hardest(torch.linspace(1 / 11, 1, 11)) == pytest.approx(3 / 11)
    assert math.isnan(of_hardest(torch.zeros(0)))


# Of 30 bins those of 0.05 and 0.75, which are the centres of the second and the 23rd.
LOW, HIGH = 1, 22


def test_gradient_norms_by_hand() -> None:
    # Two candidates with two classes each: 1 - p is 0.05 three times and 0.75 once.
    one = hand_made([1, 0], right=[[0.95, 0.95], [0.95, 0.25]])
    number, slope, both = gradients.gradients({"rcnn": one}).axes
    (place, share), *_ = lines(number).values()
    assert place[[LOW, HIGH]].tolist() == pytest.approx([0.05, 0.75])
    assert share[[LOW, HIGH]].tolist() == [0.75, 0.25] and share[0] == share[LOW + 1] < 1e-6
    # Focal loss, appendix B: (1 - p)^2 (1 - p - 2 p log p). GHM: g N / GD, GD = 30 count.
    expected = {
        "cross entropy": [0.05, 0.75],
        "focal, γ = 2": [
            0.05**2 * (0.05 - 1.9 * math.log(0.95)),
            0.75**2 * (0.75 - 0.5 * math.log(0.25)),
        ],
        "GHM-C": [0.05 * 4 / 90, 0.75 * 4 / 30],
    }
    assert heights(slope, LOW, HIGH) == about(expected)
    parts = {name: [0.75 * low, 0.25 * high] for name, (low, high) in expected.items()}
    assert heights(both, LOW, HIGH) == about(parts)


def test_gradient_norms_of_boxes_by_hand() -> None:
    # |d| = mu has the norm 1 / sqrt(2), in bin 21 of 30, and mu / 4 has 1 / sqrt(17), in bin 7.
    one = hand_made([0, 1], errors=[[0.02, -0.02, 0.005, 0.02]])
    number, slope, _ = gradients.box_gradients({"rpn": one}).axes
    (_, share), *_ = lines(number).values()
    assert share[[7, 21]].tolist() == [0.25, 0.75]
    assert heights(slope, 7, 21)["GHM-R"] == pytest.approx([15 / 60 * 4 / 30, 43 / 60 * 4 / 90])
    # At each centre smooth L1 has the slope d / beta of the d whose gradient under ASL1 it is.
    centres, under_smooth_l1 = lines(slope)["smooth L1, β = 1/9"]
    error = under_smooth_l1 / 9
    assert_close(error / (error**2 + 0.02**2).sqrt(), centres, rtol=1e-5, atol=0)
    assert torch.equal(lines(slope)["ASL1, μ = 0.02"][1], centres)


def test_the_curves_are_those_of_the_focal_loss_papers_appendix() -> None:
    value, slope = (lines(axes) for axes in losses.curves().axes[:2])
    x = value["CE"][0]
    p = x.sigmoid()
    expected = {
        "CE": (-p.log(), p - 1),
        "FL, γ = 2": (-((1 - p) ** 2) * p.log(), (1 - p) ** 2 * (2 * p * p.log() + p - 1)),
        "FL*, γ = 2, β = 1": (-(2 * x + 1).sigmoid().log() / 2, (2 * x + 1).sigmoid() - 1),
        "FL*, γ = 4, β = 0": (-(4 * x).sigmoid().log() / 4, (4 * x).sigmoid() - 1),
    }
    check_curves(value, slope, expected)


def check_curves(
    value: dict[str, Any], slope: dict[str, Any], expected: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Each line is the expected curve, at every logit."""
    assert value.keys() == slope.keys() == expected.keys()
    for name, curves in expected.items():
        for found, curve in zip((value, slope), curves, strict=True):
            assert_close(found[name][1], curve, rtol=1e-3, atol=1e-7)


def test_the_curves_by_gamma_and_beta_have_an_alpha_of_one_half() -> None:
    axes = [lines(axes) for axes in losses.curves().axes[2:]]
    x = axes[0]["γ = 0"][0]
    p = x.sigmoid()

    def fl(g: float) -> tuple[Tensor, Tensor]:
        return -((1 - p) ** g) * p.log() / 2, (1 - p) ** g * (g * p * p.log() + p - 1) / 2

    def star(g: float, b: float) -> tuple[Tensor, Tensor]:
        shifted = (g * x + b).sigmoid()
        return -shifted.log() / g / 2, (shifted - 1) / 2

    check_curves(axes[0], axes[1], {f"γ = {g:g}": fl(g) for g in (0, 0.5, 1, 2, 5)})
    pairs = ((1, 0), (2, 0), (2, 1), (4, 0), (4, 1))
    check_curves(axes[2], axes[3], {f"γ = {g}, β = {b}": star(g, b) for g, b in pairs})


def test_ious_of_negatives_by_hand() -> None:
    # 15 bins up to 0.3, the largest of a negative: those of 0.01 and 0.03 are the first two.
    picks = {
        "random": [1.0, 0.0, 0.0, 0.0, 1.0],
        "ohem": [0.0, 0.5, 0.0, 2.0, 1.0],
        "iou_balanced": [0.0] * 5,
    }
    one = hand_made([0, 0, 0, 0, 1], ious=[0.01, 0.01, 0.03, 0.3, 0.9], picks=picks)
    (axes,) = sampling.negative_ious({"rpn": one}).axes
    shares = {steps.get_label(): steps.get_data().values for steps in axes.patches}
    assert {name: found[[0, 1, 14]].tolist() for name, found in shares.items()} == {
        "all": [50, 25, 25],
        "random": [100, 0, 0],
        "ohem": [50, 0, 50],
        "iou_balanced": [0, 0, 0],
    }
    assert axes.patches[0].get_data().edges[[0, 1, 15]] == pytest.approx([0, 0.02, 0.3])


def test_images_without_candidates_are_counted() -> None:
    # Of four images the last two have none.
    one = hand_made([0, 1, 0, 0, 0, 2], level=[0, 0, 2, 2, 2, 2], image=[1, 0, 1, 1, 0, 1])
    by_level, by_image = sampling.counts({"rcnn": one}, 4).axes
    bars = {bar.get_label(): [b.get_height() for b in bar] for bar in by_level.containers}
    assert bars == {"positives": [1 / 4, 0, 1 / 4], "negatives": [1 / 4, 0, 3 / 4]}
    assert [bar.get_x() + 0.2 for bar in by_level.patches[::3]] == pytest.approx([-0.2, 0.2])
    assert heights(by_image, 0, 1, 2, 3) == {"positives": [1, 1, 0, 0], "negatives": [3, 1, 0, 0]}
    assert lines(by_image)["positives"][0][[0, 3]].tolist() == [0, 100]


def mobile(**options: Any) -> Detector:
    """A network whose anchors have the same five sizes at every level."""
    return build_detector(4, "fasterrcnn_mobilenet_v3_large_fpn", **OPTIONS, **options)


# Images of 64x96 and 72x64 share a square of 96. Its maps have strides of 4, 8, 16, 32 and 64 with
# 3 anchors a place, and strides of 32, 32 and 64 with 15.
@pytest.mark.parametrize(
    "make, expected",
    [
        (quick, [3 * side**2 for side in (24, 12, 6, 3, 2)]),
        (mobile, [15 * side**2 for side in (3, 3, 2)]),
    ],
)
def test_the_level_of_an_anchor_is_the_one_it_was_made_at(
    make: Callable[..., Detector], expected: list[int]
) -> None:
    detector = make(
        assigner={"rpn": MaxIoU(0.7, 0.7, keep_best=True)}
    )  # nothing between the thresholds is ignored
    one = seen_by(detector, *batch(2, 3))["rpn"]
    for image in (0, 1):
        level = one.level[one.image == image]
        assert level.bincount().tolist() == expected
        assert (level.diff() >= 0).all()


def test_the_place_of_an_anchor_counts_ignored_ones_too() -> None:
    """Places say at which level an anchor was made, whatever the assigner ignores before it."""
    per_level = torch.tensor([3 * side**2 for side in (24, 12, 6, 3, 2)])
    levels = torch.arange(5).repeat_interleave(per_level)
    one = seen_by(quick(assigner={"rpn": MaxIoU(0.7, 0.2)}), *batch(2, 3))["rpn"]
    assert len(one.place) < 2 * len(levels)
    assert torch.equal(levels[one.place], one.level)
    for image in (0, 1):
        assert (one.place[one.image == image].diff() > 0).all()


def test_the_head_sees_the_proposals_of_training_and_shows_all_but_the_objects() -> None:
    detector, (images, targets) = quick(), batch(2, 3)
    found = []
    detector.roi_heads.site.observer = lambda _, candidates, __: found.append(candidates)
    detector([(255 * image).byte() / 255 for image in images], targets)
    (training,) = found
    first, second = (torch.arange(size) for size in training.sizes)
    proposed = torch.cat([first < len(first) - 2, second < len(second) - 3])
    one = seen_by(detector, images, targets)["rcnn"]
    assert_close(one.ious, training.ious[proposed])
    assert_close(one.picks["ohem"], OHEM(BUDGET["rcnn"])(training)[proposed])


@pytest.mark.slow
def test_the_figures_of_an_rpn_that_proposes_nothing_are_empty() -> None:
    seen = seen_by(quick(rpn_score_thresh=1.0), *batch(2, 3))
    assert len(seen["rcnn"].labels) == 0
    for figure in (losses.focal_loss, gradients.gradients, gradients.box_gradients):
        png(figure(seen))
    png(quadrants.quadrants(seen, 0.25, 2.0))
    png(sampling.negatives_by_iou(seen))
    png(forgetting.forgetting({"same": (seen, seen)}))
    png(sampling.negative_ious(seen))
    png(sampling.counts(seen, 2))
    png(prime_samples.prime_samples(seen))
    png(confidence.confidence(seen))


def test_a_look_leaves_the_detector_as_it_was() -> None:
    detector = quick()
    seen_by(detector, *batch(2))
    assert not any(module.training for module in detector.modules())
    assert [site.observer for site in detector.sites.values()] == [None, None]
    assert not any(module._forward_hooks for module in detector.modules())


@pytest.mark.parametrize("site", ["rpn", "rcnn"])
def test_errors_and_scores_are_those_of_the_loss(seen: dict[str, Seen], site: str) -> None:
    one = seen[site]
    beta = {"rpn": 1 / 9, "rcnn": 0.5}[site]
    error = one.errors.abs()
    box = torch.where(error < beta, error**2 / (2 * beta), error - beta / 2).sum(1)
    expected = -one.right[:, 0].log()
    expected[one.positive] += box
    assert one.positive.any() and not one.positive.all()
    assert_close(one.loss, expected, rtol=1e-3, atol=1e-4)


def test_a_sigmoid_head_is_asked_for_each_class_by_itself() -> None:
    loss = FocalSigmoid(gamma=2.0, alpha=None)
    assigner = {"rcnn": MaxIoU(0.2, 0.2)}
    one = seen_by(quick(loss={"rcnn": loss}, assigner=assigner), *batch(2, 3))["rcnn"]
    assert one.right.shape == one.yes.shape == (len(one.labels), 3)
    positive = one.labels > 0
    assert one.yes.sum(1).tolist() == positive.int().tolist() and positive.any()
    assert torch.equal(torch.where(one.yes)[1] + 1, one.labels[positive])
    sum_of_three = (-one.right.log() * (1 - one.right) ** 2).sum(1)
    assert_close(sum_of_three[~positive], one.loss[~positive])  # without a box loss
    assert_close(values(focal(2.0), one.right.flatten()).sum(), sum_of_three.sum())
    here = losses.focal_loss({"rcnn": one}).axes[0]
    assert here.get_title() == f"rcnn, class by class: {int(positive.sum()):,} positives"


def test_images_are_numbered_over_batches_and_picks_are_within_budget(
    seen: dict[str, Seen],
) -> None:
    for site, one in seen.items():
        assert one.image.unique().tolist() == [0, 1]
        for name, weights in one.picks.items():
            taken = one.image[weights > 0].bincount(minlength=2)
            assert (taken > 0).all() and (taken <= BUDGET[site]).all(), name


def test_samplers_draw_as_many_as_the_run_did_unless_told() -> None:
    trained = looked_at_by({"rpn": 5, "rcnn": None}, budgets={"rpn": 9, "rcnn": 3})
    taken = {site: one.image[one.picks["ohem"] > 0].bincount() for site, one in trained.items()}
    assert taken["rpn"].tolist() == [5, 5]
    assert taken["rcnn"].max() == 3  # of at most 40 proposals; NMS leaves fewer in one image


def test_shares_of_the_quarters_by_hand() -> None:
    # A hard and an easy positive, two hard negatives, an easy one: -log2 p is 2, 1/2, 1, 1, 1/2.
    root = 0.5**0.5
    one = hand_made([1, 2, 0, 0, 0], right=[[0.25], [root], [0.5], [0.5], [root]])
    rows = quadrants.shares(one, alpha=0.25, gamma=1.0)
    easy = (1 - root) / 2  # (1 - p) -log2 p
    weights = {
        "examples": [1, 2, 1, 1],
        "loss, cross entropy": [2, 2, 0.5, 0.5],
        "loss, α = 0.25": [0.5, 1.5, 0.125, 0.375],
        "loss, γ = 1": [1.5, 1, easy, easy],
        "loss, α = 0.25, γ = 1": [0.375, 0.75, easy / 4, 3 * easy / 4],
        "gradient, cross entropy": [0.75, 1, 1 - root, 1 - root],
        "gradient, α = 0.25": [0.1875, 0.75, (1 - root) / 4, 3 * (1 - root) / 4],
    }
    for name, weight in weights.items():
        assert rows[name].tolist() == pytest.approx([w / sum(weight) for w in weight]), name
    # Focal loss, appendix B: (1 - p) (1 - p - p log p).
    slopes = [(1 - p) * (1 - p - p * math.log(p)) for p in (0.25, 0.5, root)]
    weight = [slopes[0] / 4, 1.5 * slopes[1], slopes[2] / 4, 0.75 * slopes[2]]
    found = rows["gradient, α = 0.25, γ = 1"]
    assert found.tolist() == pytest.approx([w / sum(weight) for w in weight], rel=1e-5)


def test_the_table_of_the_quarters_has_their_shares() -> None:
    one = hand_made([1, 0, 0, 0, 0, 0, 0, 0], right=[[0.4], [0.5], *[[0.9]] * 6])
    figure = quadrants.quadrants({"dense": one, "rpn": one}, 0.25, 2.0)
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert len(texts) == 9 * 4 and texts[:4] == ["12.5", "12.5", "0", "75.0"]


def test_negatives_by_iou_by_hand() -> None:
    # Bins of 0.05: the first has two negatives, the second none, the third three.
    one = hand_made(
        [0, 0, 0, 0, 0, 1],
        ious=[0.0, 0.04, 0.11, 0.12, 0.14, 0.9],
        loss=[1.0, 3.0, 1.0, 2.0, 6.0, 9.0],
        object_score=[0.2, 0.4, 0.5, 0.4, 0.3, 1.0],
    )
    number, loss, score = sampling.negatives_by_iou({"dense": one}).axes
    assert [bar.get_height() for bar in number.patches] == [2, 0, 3]
    assert heights(loss, 0, 2) == about({"mean": [2, 3], "median": [1, 2]})
    assert heights(score, 0, 2) == about({"mean": [0.3, 0.4], "median": [0.2, 0.4]})
    place, mean = lines(loss)["mean"]
    assert place.tolist() == pytest.approx([0.025, 0.075, 0.125]) and mean[1].isnan()


def test_the_score_of_an_object_class_is_the_highest_and_not_the_sum(
    seen: dict[str, Seen],
) -> None:
    """Softmax over three object classes: their sum is what the background's score leaves."""
    for site, classes in (("rpn", 1), ("rcnn", 3)):
        negative = ~seen[site].positive
        rest = 1 - seen[site].right[negative][:, 0]
        highest = seen[site].object_score[negative]
        assert (highest >= rest / classes - 1e-6).all()
        assert torch.allclose(highest, rest) if classes == 1 else (highest < rest).all()


def test_forgotten_examples_by_hand() -> None:
    labels = [1, 1, 1, 0, 0, 0, 0]
    before = hand_made(labels, right=[[0.6], [0.9], [0.5], [0.9], [0.9], [0.9], [0.1]])
    after = hand_made(labels, right=[[0.5], [0.6], [0.1], [0.4], [0.9], [0.9], [0.1]])
    assert forgetting.forgotten(before, after, positives=True) == (1 / 2, 2)
    assert forgetting.forgotten(before, after, positives=False) == (1 / 3, 3)
    runs = {"focal": ({"rpn": before}, {"rpn": after}), "CE": ({"rpn": before}, {"rpn": before})}
    (axes,) = forgetting.forgetting(runs).axes
    bars = {bar.get_label(): [b.get_width() for b in bar] for bar in axes.containers}
    assert bars == {"positives": [50, 0], "negatives": [pytest.approx(100 / 3), 0]}
    assert axes.texts[2].get_text() == " 33.3 % of 3"


def test_the_later_checkpoint_judges_the_proposals_of_the_earlier_one() -> None:
    first, second = quick(), quick()
    with torch.no_grad():
        for parameter in second.rpn.parameters():
            parameter += 0.1  # so that it would propose other boxes
    images, targets = batch(2, 3)
    loader = [([(255 * image).byte() for image in images], targets)]
    before, after = forgetting.look_twice(as_trained(first), as_trained(second), loader, BUDGET)
    for site in before:
        assert torch.equal(before[site].ious, after[site].ious)
    assert not torch.equal(before["rpn"].right, after["rpn"].right)
    assert not any(module._forward_hooks for module in second.modules())


def test_learned_weights_are_those_of_the_network_in_training() -> None:
    """One batch in training, and the same batch as the figure sees it."""
    weigher = SWN(limit=9.0)
    with torch.no_grad():
        for parameter in weigher.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    images, targets = batch(2, 3)
    detector = quick(weigher={"rpn": weigher}, sampler={"rpn": All()})
    inputs: list[Tensor] = []
    network = weigher.log_variances

    def noted(known: Tensor, positive: Tensor) -> Tensor:
        inputs.append(known.clone())
        return network(known, positive)

    weigher.log_variances = noted
    detector(images, targets)
    (one,) = (one for one in seen_by(detector, images, targets).values() if one.learned)
    known, seen_in_training = inputs[1].sort(0).values, inputs[0].sort(0).values
    assert_close(known, seen_in_training, rtol=1e-3, atol=1e-3)
    weights = (-network(inputs[1].clone(), torch.where(one.positive)[0])).exp()
    assert_close(one.learned["class_weight"], weights[:, 0])
    assert_close(one.learned["box_weight"], weights[one.positive, 1])
    assert_close(one.class_loss, inputs[1][:, 2])
    assert_close(one.box_ious, inputs[1][one.positive, 0])


def test_a_dot_for_each_learned_weight() -> None:
    losses = {"class_loss": [0.0, 0.5, 0.25], "loss": [0.0, 0.6, 0.45]}
    one = hand_made([0, 1, 2], **losses, box_ious=[0.6, 0.7])
    one.learned = {
        "class_weight": torch.tensor([1.0, 2.0, 3.0]),
        "box_weight": torch.tensor([4.0, 5.0]),
    }
    dots = [
        sorted(map(tuple, torch.tensor(part.get_offsets().tolist()).tolist()))
        for axes in learned_weights.learned_weights({"rcnn": one}).axes
        for part in axes.collections
    ]
    expected = [
        [(1e-4, 1)],  # a loss of 0 lies at the edge
        [(0.25, 3), (0.5, 2)],
        [(0.6, 2), (0.7, 3)],
        [(0.1, 4), (0.2, 5)],
        [(0.6, 4), (0.7, 5)],
    ]
    assert [[pytest.approx(dot) for dot in part] for part in expected] == dots


@pytest.fixture(
    scope="module",
    params=BOTH,
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    more = ["trainer.epochs=1", "data.imbalance=20", "loss=focal_sigmoid", "weigher=swn"]
    more.append("data.swapped_classes=0.5")
    with small_network():
        assert call(train, *NETWORKS[request.param], *more, f"hydra.run.dir={run}") == 0
    return run / "checkpoints/last.pt"


def figures_of(checkpoint: Path) -> list[str]:
    """The figures of a detector; one of them needs an RCNN head."""
    sites = load(checkpoint)["config"]["model"]["sites"]
    return sorted(FIGURES + ["prime_precision"] * ("rcnn" in sites))


def drawn(checkpoint: Path, out: Path, *more: str) -> list[str]:
    """The names of the figures that the command draws."""
    line = [f"checkpoint={checkpoint}", f"output={out}", "workers=0", "device=cpu", *more]
    with small_network():
        assert call(main, *line) == 0
    return sorted(file.stem for file in out.glob("*.png"))


@pytest.mark.slow
def test_the_command_draws_every_figure(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, looked_at = [], []

    def counts(_: dict[str, Seen], images: int) -> Figure:
        looked_at.append(images)
        return Figure()

    def classes(names: list[str], numbers: list[int]) -> Figure:
        counted.extend(numbers)
        return Figure()

    monkeypatch.setattr(sampling, "counts", counts)
    monkeypatch.setattr(sampling, "classes", classes)
    config = load(checkpoint)["config"]
    budgets = [f"budget.{site}=16" for site in config["model"]["sites"]]
    pair = f"forgetting=[[twice, {checkpoint}, {checkpoint}]]"
    noisy = f"wrong_labels=[[swapped, {checkpoint}]]"
    found = drawn(checkpoint, tmp_path, "images=3", *budgets, pair, noisy)
    assert found == sorted([*figures_of(checkpoint), "forgetting", "wrong_labels"])
    assert looked_at == [3]
    assert "\nswapped,rcnn,2,all," in (tmp_path / "wrong_labels.csv").read_text()
    config = config["data"]
    assert counted == dataset(config, "train").class_frequencies().tolist()
    assert counted != dataset(config, "val").class_frequencies().tolist()


def test_without_a_training_split_the_other_figures_are_drawn(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(style, "png", lambda figure: b"")  # drawing them is slow
    names = ["circle", "square", "triangle"]
    voc(tmp_path / "voc", names)
    (tmp_path / "voc/ImageSets/Main/train.txt").unlink()
    data = ["data=voc", f"data.root={tmp_path / 'voc'}", f"data.classes=[{','.join(names)}]"]
    expected = [name for name in figures_of(checkpoint) if name != "classes"]
    assert drawn(checkpoint, tmp_path / "out", *data) == expected
    warning = capsys.readouterr().err.splitlines()[0]
    assert "no classes.png" in warning and "train.txt: cannot be read" in warning


def test_every_class_with_objects_has_a_bar() -> None:
    (axes,) = sampling.classes(["rare", "many", "none"], [1, 30, 0]).axes
    assert axes.get_title() == "training split: 31 objects"
    left = axes.get_xlim()[0]
    assert [bar.get_width() > left for bar in axes.patches] == [True, True, False]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["many", "rare", "none"]
