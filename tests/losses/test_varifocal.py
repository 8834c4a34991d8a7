"""Varifocal loss worked by hand, and its start with hard labels."""

import math
import random

import pytest
import torch
from small import samples
from test_quality_focal import moved
from torch import Tensor

from frcnn.losses import QualityFocal, Samples, Varifocal
from frcnn.losses.soft_targets import SoftTargets


def test_a_positive_and_a_negative_of_the_worked_example() -> None:
    # p = .5: .8 ln 2 = .5545 for q = .8, and .75 * .25 ln 2 = .1300 for a negative.
    given = samples(torch.zeros(2, 2), [1, 0], moved(0.8))
    assert Varifocal(start=0)(given).tolist() == pytest.approx([0.5545, 0.1300], abs=5e-5)
    # Of two classes the other one is a negative too. Soft targets of an assigner come first.
    given = samples(torch.zeros(2, 3), [2, 0], moved(0.3))
    given.soft_targets = torch.tensor([0.8, 0.0])
    assert Varifocal(start=0)(given).tolist() == pytest.approx([0.6845, 0.2599], abs=1e-4)
    # A positive of q = 0 is a negative.
    given.soft_targets = torch.zeros(2)
    assert Varifocal(start=0)(given).tolist() == pytest.approx([0.2599, 0.2599], abs=1e-4)


def entropy(p: float, q: float) -> float:
    """Binary cross entropy."""
    return -q * math.log(p) - (1 - q) * math.log(1 - p)


def by_loop(given: Samples, alpha: float, gamma: float) -> list[float]:
    """The definition, one number at a time."""
    found = []
    for row, label in enumerate(given.labels.tolist()):
        total = 0.0
        for column in range(1, given.logits.shape[1]):
            p = 1 / (1 + math.exp(-given.logits[row, column].item()))
            q = given.soft_targets[row].item() if column == label else 0.0
            total += q * entropy(p, q) if q > 0 else alpha * p**gamma * entropy(p, 0)
        found.append(total)
    return found


def test_as_a_loop_over_the_definition() -> None:
    choose = random.Random(0)
    for _ in range(200):
        labels = [choose.randrange(4) for _ in range(10)]
        given = samples(3 * torch.randn(10, 4).double(), labels)
        given.soft_targets = torch.rand(10).double() * (torch.rand(10) < 0.9)
        alpha, gamma = choose.uniform(0, 2), choose.choice([0, 0.5, 2, 5])
        found = Varifocal(alpha, gamma, start=0)(given)
        expected = torch.tensor(by_loop(given, alpha, gamma)).double()
        torch.testing.assert_close(found, expected)


def test_the_least_loss_of_a_positive_is_where_the_score_is_the_quality() -> None:
    logits = torch.tensor([[0.0, math.log(4)]], requires_grad=True)
    loss = Varifocal(start=0)(samples(logits, [1], moved(0.8)))
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.8 * entropy(0.8, 0.8))
    assert logits.grad[0, 1].item() == pytest.approx(0, abs=1e-6)


def targets(start: SoftTargets, training: bool) -> list[float]:
    """t of two positives of quality 0.8 and 0, and of a negative."""
    given = samples(torch.zeros(3, 2), [1, 1, 0], training=training)
    given.soft_targets = torch.tensor([0.8, 0.0, 0.0])
    return start(given).tolist()[:2]


def test_targets_go_from_one_to_the_quality() -> None:
    start = SoftTargets(2)
    for expected in ([1, 1], [0.9, 0.5], [0.8, 0], [0.8, 0]):
        # A preview sees what the training pass of its step sees, and moves nothing.
        assert targets(start, training=False) == pytest.approx(expected)
        assert targets(start, training=True) == pytest.approx(expected)
    assert SoftTargets(0).state_dict() == {} and targets(SoftTargets(0), True)[1] == 0
    again = SoftTargets(2)
    again.load_state_dict({"batches": torch.tensor(1)})
    assert targets(again, training=False) == pytest.approx([0.9, 0.5])


def gradient(loss: Varifocal | QualityFocal) -> Tensor:
    """Of the logit of a positive whose predicted box has an IoU of 0.05, in the first batch."""
    logits = torch.full((1, 2), math.log(0.01 / 0.99), requires_grad=True)
    loss(samples(logits, [1], moved(0.05), training=True)).sum().backward()
    return logits.grad[0, 1]


@pytest.mark.parametrize("kind", [Varifocal, QualityFocal])
def test_a_bad_box_does_not_keep_a_class_from_being_learned_at_the_start(kind) -> None:
    assert gradient(kind(start=100)) < -0.9  # as with a hard label
    assert gradient(kind(start=0)).abs() < 0.01


def test_arguments_out_of_range() -> None:
    wrong = {"alpha": -0.1, "gamma": -1.0, "start": -1, "per": "coordinate"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Varifocal(**{name: value})
