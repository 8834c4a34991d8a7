"""L1, balanced L1, GIoU and CARL worked by hand. Targets are 0, boxes [0, 0, 10, 10]."""

import math

import pytest
import torch
from small import samples
from torch import Tensor

from frcnn.losses import CARL, L1, BalancedL1, GIoU, Samples, SmoothL1

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
    given = of(torch.zeros(3, 4))
    given.objects = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10]])
    # Overlap 50 of 150, which is the hull too: GIoU 1/3. Apart: 0 - (300 - 200) / 300 = -1/3.
    assert GIoU(1.0)(given).tolist() == pytest.approx([0, 2 / 3, 4 / 3], abs=1e-6)
    assert GIoU(10.0)(given).tolist() == pytest.approx([0, 20 / 3, 40 / 3], abs=1e-5)


def test_giou_pulls_a_box_towards_its_object_even_from_afar() -> None:
    deltas = torch.zeros(1, 4, requires_grad=True)
    given = of(deltas)
    given.objects = torch.tensor([[40.0, 0, 50, 10]])
    GIoU()(given).sum().backward()
    assert deltas.grad[0, 0] < 0  # downhill is to the right


# Of [0, ln 1] and [0, ln 3] the second column has p = 1/2 and 3/4.
LOGITS = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])


def carl_samples() -> tuple[Tensor, Samples]:
    logits = LOGITS.clone().requires_grad_()
    return logits, samples(logits, [1, 1], DELTAS.clone().requires_grad_())


@pytest.mark.parametrize("added", [True, False])
def test_carl_by_hand(added: bool) -> None:
    # v = 0.8 p + 0.2 = 0.6, 0.8; c = v / 0.7; L1 gives 3.5 and 0.05.
    _, given = carl_samples()
    value = CARL(L1(), k=1.0, bias=0.2, added=added)(given)
    weighted = torch.tensor([3.5 * 6 / 7, 0.05 * 8 / 7])
    if added:
        expected = torch.tensor([3.5, 0.05]) + weighted
    else:  # the sum stays that of L
        expected = weighted * 3.55 / weighted.sum()
        assert value.sum().item() == pytest.approx(3.55)
    torch.testing.assert_close(value, expected)


def test_carl_weights_average_one() -> None:
    logits, labels = torch.randn(30, 4), torch.randint(1, 4, (30,)).tolist()
    weights = CARL(L1(), k=2.0, bias=0.1)._weights(samples(logits, labels))
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("added", [True, False])
def test_carl_lowers_the_score_of_the_badly_placed_box(added: bool) -> None:
    logits, given = carl_samples()
    CARL(L1(), added=added)(given).sum().backward()
    assert logits.grad[0, 1] > 0 > logits.grad[1, 1]


def test_carl_reads_the_activation_of_the_class_loss() -> None:
    # A sigmoid of 0 and ln 3 whatever the first column says.
    given = samples(
        LOGITS + torch.tensor([7.0, 0.0]), [1, 1], DELTAS, scores=lambda logits: logits.sigmoid()
    )
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
