"""Focal losses worked by hand, against their textbook forms and their published gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from small import samples
from torchvision.ops import sigmoid_focal_loss

from frcnn.losses import CrossEntropy, Focal, FocalSigmoid, FocalStar, Samples
from frcnn.losses.activation import sigmoid_bias, sigmoid_scores, softmax_bias
from frcnn.model.rpn import two_columns

# One logit and its label, 1 and 0, in both directions of right and wrong.
X = torch.tensor([-9.0, -2.0, -0.1, 0.0, 0.7, 3.0, 9.0], dtype=torch.float64).repeat(2)
LABELS = [0] * 7 + [1] * 7
Y = torch.tensor(LABELS).double()
SIGN = 2 * Y - 1


def gradient(loss, logits: torch.Tensor, labels: list[int]) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(samples(logits, labels)).sum(), logits)
    return found


# Six samples of three labels, and eighths of probability, background first.
ROWS = [
    (0, [6, 1, 1]),
    (0, [1, 5, 2]),
    (1, [2, 4, 2]),
    (1, [5, 1, 2]),
    (2, [2, 3, 3]),
    (2, [5, 1, 2]),
]


@pytest.mark.parametrize("alpha", [None, [0.5, 1.0, 2.0]])
def test_softmax_focal_by_hand(alpha) -> None:
    labels, eighths = zip(*ROWS, strict=True)
    value = Focal(2.0, class_weights=alpha)(samples(torch.tensor(eighths).log(), labels))
    # (1 - q)^2 log 1/q of q = 6/8, 1/8, 4/8, 1/8, 3/8, 2/8.
    expected = [
        4 / 64 * math.log(8 / 6),
        49 / 64 * math.log(8),
        16 / 64 * math.log(2),
        49 / 64 * math.log(8),
        25 / 64 * math.log(8 / 3),
        36 / 64 * math.log(4),
    ]
    if alpha is not None:
        expected = [alpha[y] * loss for y, loss in zip(labels, expected, strict=True)]
    assert value.tolist() == pytest.approx(expected, rel=1e-6)


# Six samples of two classes: label, and p_t of both classes.
BINARY = [
    (0, [3 / 4, 3 / 4]),
    (0, [1 / 2, 1 / 4]),
    (1, [3 / 4, 1 / 2]),
    (1, [1 / 4, 3 / 4]),
    (2, [1 / 4, 1 / 2]),
    (2, [3 / 4, 3 / 4]),
]


def right_by(x_t: torch.Tensor) -> Samples:
    """The samples above with logits that are so far on the right side; column 0 is not read."""
    labels = [label for label, _ in BINARY]
    sign = 2 * F.one_hot(torch.tensor(labels), 3)[:, 1:] - 1
    return samples(torch.cat([torch.full((6, 1), 50.0), sign * x_t], 1), labels)


def summed(easy: float, even: float, hard: float, alpha: float | None) -> list[float]:
    """What the samples above lose if a p_t of 3/4, 1/2 and 1/4 loses that: alpha at the label."""
    own, other = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    return [
        other * easy + other * easy,
        other * even + other * hard,
        own * easy + other * even,
        own * hard + other * easy,
        other * hard + own * even,
        other * easy + own * easy,
    ]


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_sigmoid_focal_by_hand(alpha: float | None) -> None:
    given = right_by(torch.tensor([p for _, p in BINARY]).logit())
    # (1 - p_t)^2 log 1/p_t: 1/16 ln 4/3, 1/4 ln 2, 9/16 ln 4.
    expected = summed(math.log(4 / 3) / 16, math.log(2) / 4, math.log(4) * 9 / 16, alpha)
    assert FocalSigmoid(2.0, alpha)(given).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_star_by_hand(alpha: float | None) -> None:
    # x_t such that 2 x_t + 1 is ln 3, 0, -ln 3: p_t* is 3/4, 1/2, 1/4, and log 1/p_t* / 2 is lost.
    given = right_by((torch.tensor([p for _, p in BINARY]).logit() - 1) / 2)
    expected = summed(math.log(4 / 3) / 2, math.log(2) / 2, math.log(4) / 2, alpha)
    assert FocalStar(2.0, 1.0, alpha)(given).tolist() == pytest.approx(expected, rel=1e-6)


def test_gamma_zero_is_cross_entropy() -> None:
    logits, labels = torch.randn(20, 4), [0, 1, 2, 3] * 5
    expected = CrossEntropy()(samples(logits, labels))
    torch.testing.assert_close(Focal(0.0)(samples(logits, labels)), expected)
    binary = samples(two_columns(X), LABELS)
    torch.testing.assert_close(FocalSigmoid(0.0, None)(binary), CrossEntropy()(binary))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_at_the_rpn_both_are_the_binary_focal_loss(gamma: float) -> None:
    binary = samples(two_columns(X), LABELS)
    for alpha in (None, 0.25):
        expected = sigmoid_focal_loss(X, Y, alpha=-1 if alpha is None else alpha, gamma=gamma)
        torch.testing.assert_close(FocalSigmoid(gamma, alpha)(binary), expected)
        # One number as class weights is alpha for objects and 1 - alpha for background.
        torch.testing.assert_close(Focal(gamma, class_weights=alpha)(binary), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_the_gradient_is_the_published_one(gamma: float) -> None:
    # dFL/dx = y (1 - p_t)^gamma (gamma p_t log p_t + p_t - 1), y = -1 or 1 (appendix B).
    p = (SIGN * X).sigmoid()
    expected = SIGN * (1 - p) ** gamma * (gamma * p * p.log() + p - 1)
    for loss in (FocalSigmoid(gamma, None), Focal(gamma)):
        found = gradient(loss, two_columns(X), LABELS)[:, 1]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_softmax_gradient_is_cross_entropy_s_times_a_factor() -> None:
    logits, labels = torch.randn(12, 4, dtype=torch.float64), [0, 1, 2, 3] * 3
    p = logits.softmax(1)
    q = p[torch.arange(12), labels]
    factor = (1 - q) ** 2 * (1 - 2 * q * q.log() / (1 - q))
    expected = factor[:, None] * (p - F.one_hot(torch.tensor(labels), 4))
    torch.testing.assert_close(gradient(Focal(2.0), logits, labels), expected)


def test_focal_star_s_gradient_and_limits() -> None:
    # dFL*/dx = y (p_t* - 1); gamma 1 and beta 0 are cross entropy; a steep one is max(0, -x_t).
    found = gradient(FocalStar(2.0, 1.0), two_columns(X), LABELS)[:, 1]
    torch.testing.assert_close(found, SIGN * ((2 * SIGN * X + 1).sigmoid() - 1))
    binary = samples(two_columns(X), LABELS)
    torch.testing.assert_close(FocalStar(1.0, 0.0)(binary), CrossEntropy()(binary))
    steep = FocalStar(1e4, 0.0)(binary)
    torch.testing.assert_close(steep, (-SIGN * X).clamp(min=0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("loss", [Focal(0.5), FocalSigmoid(0.5), FocalStar(), Focal(2.0)])
def test_certain_answers_have_finite_gradients(loss) -> None:
    logits = torch.tensor([[0.0, 200.0], [0.0, -200.0], [0.0, 200.0], [0.0, 0.0]])
    assert gradient(loss, logits, [1, 1, 0, 0]).isfinite().all()
    assert gradient(loss, logits[:1], [1])[0, 1].abs() < 1e-6


def test_sigmoid_scores_by_hand() -> None:
    # Each class by itself, and background what the likeliest leaves; column 0 is not read.
    logits = torch.tensor([[9.0, 0.0, math.log(3)], [-9.0, -math.log(3), -math.log(9)]])
    expected = torch.tensor([[1 / 4, 1 / 2, 3 / 4], [3 / 4, 1 / 4, 1 / 10]])
    torch.testing.assert_close(sigmoid_scores(logits), expected)


def test_untrained_heads_give_the_prior() -> None:
    assert sigmoid_scores(sigmoid_bias(0.01, 4)[None])[0, 1:].tolist() == pytest.approx([0.01] * 3)
    softmax = softmax_bias(0.1, 4).softmax(0)
    assert softmax.tolist() == pytest.approx([0.9] + [0.1 / 3] * 3)
    # Of [0, x] both say the same.
    first, second = sigmoid_bias(0.01, 2), softmax_bias(0.01, 2)
    assert (first[1] - first[0]).item() == pytest.approx(-math.log(99))
    assert (second[1] - second[0]).item() == pytest.approx(-math.log(99))
    assert sigmoid_bias(None, 4) is None and softmax_bias(None, 4) is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Focal(-1), "gamma"),
        (lambda: FocalStar(0), "gamma"),
        (lambda: FocalSigmoid(alpha=1.5), "alpha"),
        (lambda: FocalSigmoid(per="coordinate"), "per must be"),
        (lambda: FocalSigmoid(prior=1.0), "prior must be above 0 and below 1, got 1"),
        (lambda: Focal(guided_scale=0.0), "guided_scale must be above 0, got 0"),
        (lambda: Focal(prior=0.0), "prior must be above 0 and below 1, got 0"),
    ],
)
def test_arguments_out_of_range(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
