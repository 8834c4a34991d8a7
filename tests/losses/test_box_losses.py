"""L1, balanced L1, GIoU and CARL worked by hand. Targets are 0, boxes [0, 0, 10, 10]."""

import math

import pytest
import torch
from small import samples
from torch import Tensor

from frcnn.losses import CARL, GHMR, L1, BalancedL1, BoxLoss, GIoU, Samples, SmoothL1

DELTAS = torch.tensor([[0.5, 2.0, 0.0, -1.0], [0.05, 0.0, 0.0, 0.0]])


def of(deltas: Tensor) -> Samples:
    return samples(torch.zeros(len(deltas), 2), [1] * len(deltas), deltas)


def test_l1() -> None:
    assert L1()(of(DELTAS)).tolist() == pytest.approx([3.5, 0.05])


def test_balanced_l1_by_hand() -> None:
    # alpha 1/2, gamma 3/2: b = e^3 - 1. At |d| = 1: 1/2 ((1 + 1/b) 3 - 1) = 1 + 3 / (2 b).
    b = math.exp(3) - 1
    one = 1 + 1.5 / b
    half = 0.5 * ((0.5 + 1 / b) * math.log(b / 2 + 1) - 0.5)
    assert BalancedL1()(of(DELTAS[:1])).tolist() == pytest.approx([half + (one + 1.5) + one])


@pytest.mark.parametrize("beta", [1.0, 0.2])
def test_balanced_l1_has_the_gradient_it_was_made_from(beta: float) -> None:
    d = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None].repeat(1, 4).requires_grad_()
    value = BalancedL1(0.5, 1.5, beta)(of(d))
    (found,) = torch.autograd.grad(value.sum(), d)
    small = 0.5 * ((math.exp(3) - 1) * d.abs() / beta + 1).log()
    expected = d.sign() * torch.where(d.abs() < beta, small, 1.5)
    torch.testing.assert_close(found, expected.detach())


def test_giou_by_hand() -> None:
    # Seven positives of three classes among two negatives; the last is decoded 5 px to the right.
    deltas = torch.zeros(7, 4)
    deltas[6, 0] = 5
    given = samples(torch.zeros(9, 4), [1, 0, 2, 3, 1, 0, 2, 3, 1], deltas)
    # I / U - (H - U) / H, H the area of the hull.
    objects, giou = zip(
        ([0, 0, 10, 10], 1.0),
        ([5, 0, 15, 10], 50 / 150),
        ([5, 5, 15, 15], 25 / 175 - 50 / 225),
        ([0, 0, 5, 5], 25 / 100),  # inside
        ([-5, -5, 15, 15], 100 / 400),  # around
        ([20, 0, 30, 10], 0 - 100 / 300),  # apart
        ([10, 0, 20, 10], 50 / 150),
        strict=True,
    )
    given.objects = torch.tensor(objects).float()
    expected = [1 - value for value in giou]
    assert GIoU(1.0)(given).tolist() == pytest.approx(expected, abs=1e-6)
    assert GIoU(10.0)(given).tolist() == pytest.approx([10 * x for x in expected], abs=1e-5)


def test_giou_pulls_a_box_towards_its_object_even_from_afar() -> None:
    deltas = torch.zeros(1, 4, requires_grad=True)
    given = of(deltas)
    given.objects = torch.tensor([[40.0, 0, 50, 10]])
    GIoU()(given).sum().backward()
    assert deltas.grad[0, 0] < 0  # downhill is to the right


# Six positives of two classes among two negatives: label, eighths of probability (background
# first), and an error in x, of which L1 is the size. p of the positives is 1/8, 2/8, .. 6/8.
ROWS = [
    (1, [6, 1, 1], 1.0),
    (2, [1, 5, 2], -2.0),
    (0, [4, 2, 2], None),
    (1, [1, 3, 4], 0.5),
    (2, [2, 2, 4], 4.0),
    (1, [2, 5, 1], 0.0),
    (0, [6, 1, 1], None),
    (2, [1, 1, 6], -0.5),
]
BASE = [1.0, 2.0, 0.5, 4.0, 0.0, 0.5]


def carl_samples() -> Samples:
    labels, eighths, errors = zip(*ROWS, strict=True)
    deltas = torch.tensor([[error, 0, 0, 0] for error in errors if error is not None])
    logits = torch.tensor(eighths).log()
    return samples(logits.requires_grad_(), labels, deltas.requires_grad_())


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize(
    ("k", "v"),
    [
        (1.0, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),  # 0.8 p + 0.2
        (2.0, [0.09, 0.16, 0.25, 0.36, 0.49, 0.64]),
    ],
)
def test_carl_by_hand(k: float, v: list[float], added: bool) -> None:
    value = CARL(L1(), k, bias=0.2, added=added)(carl_samples())
    # c L = v / mean(v) L, L in all 8.
    weighted = [x / (sum(v) / 6) * loss for x, loss in zip(v, BASE, strict=True)]
    if added:
        expected = [loss + more for loss, more in zip(BASE, weighted, strict=True)]
    else:  # the sum stays that of L
        expected = [more * 8 / sum(weighted) for more in weighted]
    assert value.tolist() == pytest.approx(expected)


def test_carl_in_its_base_s_place_has_a_constant_scale() -> None:
    def gradients(loss) -> list[Tensor]:
        given = carl_samples()
        return list(torch.autograd.grad(loss(given).sum(), (given.logits, given.deltas)))

    added, replaced = gradients(CARL(L1())), gradients(CARL(L1(), added=False))
    # v as above, mean 0.55: sum(v L) = .3 + .8 + .25 + 2.4 + .4 = 4.15, so the scale is 8 / (4.15
    # / .55). Of L + c L the logits have the gradient of c L, the errors that of L beside it.
    scale = 8 * 0.55 / 4.15
    torch.testing.assert_close(replaced[0], scale * added[0])
    sign = carl_samples().deltas.detach().sign()
    torch.testing.assert_close(replaced[1], scale * (added[1] - sign))


@pytest.mark.parametrize("base", [BalancedL1(), GIoU(), GHMR()])
def test_carl_weighs_any_base(base: BoxLoss) -> None:
    given = carl_samples()
    twice = CARL(base, bias=1.0)(given)  # all weights are 1
    torch.testing.assert_close(twice, 2 * base(given))


def test_carl_weights_average_one() -> None:
    logits, labels = torch.randn(30, 4), torch.randint(1, 4, (30,)).tolist()
    weights = CARL(L1(), k=2.0, bias=0.1)._weights(samples(logits, labels))
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("added", [True, False])
def test_carl_lowers_the_score_of_the_badly_placed_box(added: bool) -> None:
    given = carl_samples()
    (slope,) = torch.autograd.grad(CARL(L1(), added=added)(given).sum(), given.logits)
    # Row 4 has the largest error, 4; row 7 is placed well and scores best.
    assert slope[4, 2] > 0 > slope[7, 2]
    assert not slope[[2, 6]].any()  # background has no box


def test_carl_reads_the_activation_of_the_class_loss() -> None:
    # Sigmoids of 1/2 and 3/4 whatever the first column says: v = .6, .8, of mean .7.
    logits = torch.tensor([[7.0, 0.0], [0.0, math.log(3)]])
    given = samples(logits, [1, 1], DELTAS, scores=lambda logits: logits.sigmoid())
    assert CARL(L1())._weights(given).tolist() == pytest.approx([6 / 7, 8 / 7])


@pytest.mark.parametrize(
    "make",
    [
        lambda: BalancedL1(alpha=0),
        lambda: GIoU(weight=0),
        lambda: CARL(L1(), bias=2),
        lambda: SmoothL1(per="guided"),
        lambda: L1(per="object"),
    ],
)
def test_arguments_out_of_range(make) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_coordinates_are_four_a_positive() -> None:
    assert L1(per="coordinate").normalizer(of(DELTAS)) == 8
    assert L1(per="coordinate").normalizer(of(DELTAS[:0])) == 1


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("k", [0.0, 0.25, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("gap", [60.0, 87.0, 200.0])  # e^-87 is float32's last, e^-200 is 0 in it
def test_carl_has_a_gradient_where_a_score_vanishes(gap: float, k: float, added: bool) -> None:
    for rows in ([[gap, 0.0]], [[gap, 0.0], [0.0, 1.0]], [[gap, 0.0]] * 2):
        logits = torch.tensor(rows, requires_grad=True)
        deltas = 9 * DELTAS[: len(rows)]
        value = CARL(L1(), k=k, bias=0.0, added=added)(samples(logits, [1] * len(rows), deltas))
        value.sum().backward()
        assert value.isfinite().all() and logits.grad.isfinite().all()
