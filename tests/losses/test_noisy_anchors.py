"""Soft labels and weights of Noisy Anchors, worked by hand and against loops."""

import math
import random
from dataclasses import replace

import pytest
import torch
from small import samples
from test_quality_focal import moved

from frcnn.losses import FocalSigmoid, NoisyAnchors, Samples
from frcnn.losses.activation import sigmoid_scores
from frcnn.sites.weighers import NoisyAnchorWeights

FORMS = ("paper", "released")


def given(ious: list[float], scores: list[float], image: list[int] | None = None) -> Samples:
    """Positives whose predicted boxes have these IoUs, and whose classes have these scores."""
    logits = torch.tensor([[0.0, math.log(p / (1 - p))] for p in scores]).double()
    deltas = torch.cat([moved(share) for share in ious]).double()
    found = samples(logits, [1] * len(ious), deltas, sigmoid_scores)
    place = torch.tensor(image or [0] * len(ious))
    return replace(found, image=place, num_images=int(place.max()) + 1)


def test_labels_of_the_worked_example() -> None:
    one = given([0.8, 0.5], [0.6, 0.2])
    assert NoisyAnchors()._cleanliness(one).tolist() == pytest.approx([0.75, 0.425])
    # The released form: 1.298 and .702 stretched to 1 and to the mean IoU.
    found = NoisyAnchors(labels="released")._cleanliness(one)
    assert found.tolist() == pytest.approx([1.0, 0.65])


def test_weights_of_the_worked_example() -> None:
    one, ones = given([0.8, 0.5], [0.6, 0.2]), torch.ones(2)
    weighed = NoisyAnchorWeights()(one, ones, ones)
    assert weighed.box_values.tolist() == pytest.approx([1.414, 0.586], abs=5e-4)
    assert weighed.class_values.tolist() == weighed.box_values.tolist()
    found = NoisyAnchorWeights(weights="released")(one, ones, ones)
    assert found.box_values.tolist() == pytest.approx([1.405, 0.595], abs=5e-4)


def test_the_loss_of_a_soft_label() -> None:
    # p = .6, c = .75 * .8 + .25 * .6 = .75, a = .5: .5 (.75 * .4^2 * .511 + .25 * .6^2 * .916).
    loss = NoisyAnchors()(given([0.8], [0.6]))
    expected = 0.5 * (0.75 * 0.16 * -math.log(0.6) + 0.25 * 0.36 * -math.log(0.4))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_with_clean_positives_it_is_the_focal_loss() -> None:
    logits, labels = torch.randn(12, 4), [0, 1, 2, 3] * 3
    one = replace(samples(logits, labels), image=torch.zeros(12, dtype=torch.int64))
    for focal_alpha in (None, 0.3):
        expected = FocalSigmoid(2.0, focal_alpha)(one)
        torch.testing.assert_close(NoisyAnchors(1.0, "paper", focal_alpha)(one), expected)
        torch.testing.assert_close(NoisyAnchors(1.0, "released", focal_alpha)(one), expected)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def labels_by_loop(ious: list[float], scores: list[float], alpha: float, form: str) -> list[float]:
    """The labels of one image."""
    if form == "paper":
        return [alpha * u + (1 - alpha) * p for u, p in zip(ious, scores, strict=True)]
    rank = [
        alpha * u / mean(ious) + (1 - alpha) * p / mean(scores)
        for u, p in zip(ious, scores, strict=True)
    ]
    least, most, floor = min(rank), max(rank), mean(ious)
    if most == least:
        return [1.0] * len(rank)
    return [floor + (1 - floor) * (value - least) / (most - least) for value in rank]


def weights_by_loop(
    ious: list[float], scores: list[float], alpha: float, gamma: float, form: str
) -> list[float]:
    """The weights of one image; the released ones before the sums are kept."""
    near, sure = [1 / (1 - u) for u in ious], [1 / (1 - p) for p in scores]
    if form == "paper":
        mixed = [(alpha * a + (1 - alpha) * b) ** gamma for a, b in zip(near, sure, strict=True)]
        return [value / mean(mixed) for value in mixed]
    return [
        (alpha * a / mean(near) + (1 - alpha) * b / mean(sure)) ** gamma
        for a, b in zip(near, sure, strict=True)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_as_loops_image_by_image(form) -> None:
    choose = random.Random(0)
    for _ in range(100):
        image = sorted(choose.randrange(3) for _ in range(8))
        ious, scores = ([choose.uniform(0.02, 0.98) for _ in image] for _ in range(2))
        alpha, gamma = choose.random(), choose.choice([0, 0.5, 1, 2])
        one = given(ious, scores, image)
        labels, weights = [], []
        for number in range(3):
            rows = [row for row, place in enumerate(image) if place == number]
            own = [ious[row] for row in rows], [scores[row] for row in rows]
            if rows:
                labels += labels_by_loop(*own, alpha, form)
                weights += weights_by_loop(*own, alpha, gamma, form)
        found = NoisyAnchors(alpha, form)._cleanliness(one)
        assert found.tolist() == pytest.approx(labels, rel=1e-5)
        r = NoisyAnchorWeights(alpha, gamma, form)._weights(one)
        assert r.tolist() == pytest.approx(weights, rel=1e-4)


def test_released_weights_keep_both_sums() -> None:
    labels = [1, 0, 1, 0]
    logits = torch.randn(4, 2)
    one = samples(logits, labels, torch.cat([moved(0.9), moved(0.4)]), sigmoid_scores)
    one = replace(one, image=torch.zeros(4, dtype=torch.int64), weights=torch.rand(4) + 0.5)
    values = torch.rand(4), torch.rand(2)
    weighed = NoisyAnchorWeights(weights="released")(one, *values)
    kept = (one.weights * weighed.class_values).sum(), weighed.box_values.sum()
    assert kept[0].item() == pytest.approx((one.weights * values[0]).sum().item())
    assert kept[1].item() == pytest.approx(values[1].sum().item())
    ratio = (weighed.class_values / values[0]).tolist()
    assert ratio[1] == pytest.approx(ratio[3])  # negatives share the factor that keeps the sum
    paper = NoisyAnchorWeights()(one, *values).class_values / values[0]
    assert paper[[1, 3]].tolist() == pytest.approx([1, 1])


def test_poles_and_images_without_positives() -> None:
    one = given([1.0, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 2])  # a perfect box; one image has none
    for form in FORMS:
        weighed = NoisyAnchorWeights(weights=form)(one, torch.ones(3), torch.ones(3))
        assert weighed.box_values.isfinite().all()
        assert NoisyAnchors(labels=form)(one).isfinite().all()
    # A single positive of an image, or equal ones, are the best of it.
    assert NoisyAnchors(labels="released")._cleanliness(one)[2].item() == 1
    background = replace(samples(torch.zeros(1, 2), [0]), image=torch.zeros(1, dtype=torch.int64))
    weighed = NoisyAnchorWeights(weights="released")(background, torch.ones(1), torch.ones(0))
    assert weighed.class_values.tolist() == [1] and weighed.box_values.tolist() == []


def test_labels_and_weights_have_no_gradient() -> None:
    one = given([0.8, 0.5], [0.6, 0.2])
    deltas = one.deltas.requires_grad_()
    one.logits.requires_grad_()
    values = NoisyAnchors()(one), torch.ones(2).double()
    weighed = NoisyAnchorWeights()(one, *values)
    weighed.class_values.sum().backward()
    assert deltas.grad is None and not weighed.box_values.requires_grad
    # d loss / dx of the first with c = .75 and r = 1.414, both constant
    p, c, r = 0.6, 0.75, 4.375 / 3.09375
    yes = -((1 - p) ** 2) * (1 - p - 2 * p * math.log(p))
    no = p**2 * (p - 2 * (1 - p) * math.log(1 - p))
    expected = r * 0.5 * (c * yes + (1 - c) * no)
    assert one.logits.grad[0, 1].item() == pytest.approx(expected, rel=1e-5)


def test_arguments_out_of_range() -> None:
    wrong = {"alpha": 1.1, "labels": "mine", "focal_alpha": 2.0, "focal_gamma": -1.0, "per": "x"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"^{name} must be"):
            NoisyAnchors(**{name: value})
    for name, value in {"alpha": -0.1, "gamma": -1.0, "weights": "mine"}.items():
        with pytest.raises(ValueError, match=f"^{name} must be"):
            NoisyAnchorWeights(**{name: value})
