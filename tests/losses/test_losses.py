"""Cross entropy and smooth L1 worked by hand, and what they are divided by."""

import math

import pytest
import torch
import torch.nn.functional as F
from small import samples

from frcnn.losses import CrossEntropy, SmoothL1
from frcnn.model.rpn import two_columns


def test_cross_entropy_by_hand() -> None:
    # exp(logits) = 1, 3, 4 of 8.
    logits = torch.tensor([0.0, math.log(3), math.log(4)]).repeat(3, 1)
    value = CrossEntropy()(samples(logits, [0, 1, 2]))
    assert value.tolist() == pytest.approx([math.log(8), math.log(8 / 3), math.log(2)], rel=1e-6)
    scores = CrossEntropy().scores(logits)[0]
    assert scores.tolist() == pytest.approx([1 / 8, 3 / 8, 4 / 8], rel=1e-6)


def test_two_columns_are_the_binary_loss_of_one_logit() -> None:
    x = torch.tensor([-30.0, -2.0, 0.0, 0.5, 30.0]).repeat(2).requires_grad_()
    labels = [0] * 5 + [1] * 5
    value = CrossEntropy()(samples(two_columns(x), labels))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    target = torch.tensor(labels).float()
    expected = F.binary_cross_entropy_with_logits(x, target, reduction="none")
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, x.sigmoid().detach() - target, rtol=1e-6, atol=1e-7)
    scores = CrossEntropy().scores(two_columns(x))
    torch.testing.assert_close(scores[:, 1], x.sigmoid(), rtol=1e-6, atol=1e-7)


DELTAS = torch.tensor([[0.5, 2.0, 0.0, -1.0], [0.05, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        # d^2 / 2 below 1: 1/8 + (2 - 1/2) + 0 + (1 - 1/2), and 0.05^2 / 2.
        (1.0, [2.125, 0.00125]),
        # 9/2 d^2 below 1/9, |d| - 1/18 above: 3.5 - 3/18, and 4.5 * 0.0025.
        (1 / 9, [3.5 - 3 / 18, 0.01125]),
    ],
)
def test_smooth_l1_by_hand(beta: float, expected: list[float]) -> None:
    value = SmoothL1(beta)(samples(torch.zeros(3, 2), [1, 0, 1], DELTAS))
    assert value.tolist() == pytest.approx(expected, rel=1e-6)


def test_smooth_l1_is_torchvisions_without_a_choice() -> None:
    assert SmoothL1().beta == pytest.approx(1 / 9)
    assert SmoothL1().per == "sample"


@pytest.mark.parametrize("loss", [CrossEntropy, SmoothL1])
@pytest.mark.parametrize(
    ("per", "labels", "expected"),
    [
        ("sample", [0, 1, 0, 2, 0], 5),
        ("positive", [0, 1, 0, 2, 0], 2),
        (256, [0, 1, 0, 2, 0], 256),
        (0.5, [0, 1], 0.5),
        ("sample", [], 1),  # never a division by nothing
        ("positive", [0, 0], 1),
    ],
)
def test_what_a_loss_is_divided_by(loss: type, per, labels: list[int], expected: float) -> None:
    assert loss(per=per).normalizer(samples(torch.zeros(len(labels), 3), labels)) == expected


@pytest.mark.parametrize("loss", [CrossEntropy, SmoothL1])
@pytest.mark.parametrize("per", ["object", 0, -1.0, float("nan"), True])
def test_an_unknown_divisor_is_refused(loss: type, per) -> None:
    with pytest.raises(ValueError, match="per must be"):
        loss(per=per)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_smooth_l1_needs_a_beta_above_zero(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        SmoothL1(beta)
