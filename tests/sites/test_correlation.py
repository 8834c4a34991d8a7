"""Correlation Loss worked by hand, and against numpy."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import samples
from torch import Tensor

from frcnn.losses import Samples
from frcnn.losses.activation import sigmoid_scores
from frcnn.sites.weighers import Correlation

COEFFICIENTS = ("concordance", "pearson")


def given(ious: list[float], scores: list[float]) -> Samples:
    """A negative, and positives with these IoUs of their boxes and scores of their classes."""
    logits = torch.tensor([[0.0, math.log(p / (1 - p))] for p in (0.9, *scores)]).double()
    # A box that keeps this share of the height; the top edge stays.
    deltas = [[0, 10 * (share - 1) / 2, 0, 5 * math.log(share)] for share in ious]
    rows = torch.tensor(deltas).double().reshape(-1, 4)
    return samples(logits, [0] + [1] * len(ious), rows, sigmoid_scores)


def term(one: Samples, coefficient: str = "concordance", weight: float = 1.0) -> Tensor:
    values = torch.rand(len(one.labels)), torch.rand(len(one.positive))
    weighed = Correlation(weight, coefficient)(one, *values)
    assert weighed.class_values is values[0] and weighed.box_values is values[1]
    return weighed.terms["correlation"]


def test_by_hand() -> None:
    # Scores .2, .6 and IoUs .5, .7: variances .08 and .02, covariance .04, means .4 and .6.
    one = given([0.5, 0.7], [0.2, 0.6])
    assert term(one).item() == pytest.approx(1 - 0.08 / (0.08 + 0.02 + 0.04), rel=1e-5)
    assert term(one, "pearson").item() == pytest.approx(0, abs=1e-6)
    assert term(one, weight=0.2).item() == pytest.approx(0.2 * term(one).item())
    falling = given([0.7, 0.5], [0.2, 0.6])
    assert term(falling, "pearson").item() == pytest.approx(2, rel=1e-5)
    same = given([0.3, 0.6, 0.9], [0.3, 0.6, 0.9])
    assert term(same).item() == pytest.approx(0, abs=1e-6)


def by_numpy(scores: list[float], ious: list[float], coefficient: str) -> float:
    if coefficient == "pearson":
        return 1 - np.corrcoef(scores, ious)[0, 1]
    table = np.cov(scores, ious)
    apart = (np.mean(scores) - np.mean(ious)) ** 2
    return 1 - 2 * table[0, 1] / (table[0, 0] + table[1, 1] + apart)


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_as_numpy(coefficient: str) -> None:
    choose = random.Random(0)
    for _ in range(300):
        count = choose.randrange(2, 9)
        ious, scores = ([choose.uniform(0.02, 0.98) for _ in range(count)] for _ in range(2))
        expected = by_numpy(scores, ious, coefficient)
        assert term(given(ious, scores), coefficient).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_fewer_than_two_positives_or_equal_scores(coefficient: str) -> None:
    for ious, scores in (([], []), ([0.5], [0.3])):
        one = given(ious, scores)
        one.logits.requires_grad_()
        found = term(one, coefficient)
        found.backward()
        assert found.item() == 0 and one.logits.grad.abs().sum() == 0
    one = given([0.5, 0.8], [0.3, 0.3])
    one.logits.requires_grad_()
    found = term(one, coefficient)
    found.backward()
    assert found.item() == pytest.approx(1) and one.logits.grad.isfinite().all()


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_scores_alone_have_the_gradient_of_the_term(coefficient: str) -> None:
    one = given([0.5, 0.7, 0.9, 0.3], [0.2, 0.6, 0.3, 0.4])
    deltas = one.deltas.requires_grad_()
    term(replace(one, logits=one.logits.requires_grad_()), coefficient).backward()
    assert deltas.grad is None

    def value(logits: Tensor) -> Tensor:
        return term(replace(one, logits=logits), coefficient)

    assert torch.autograd.gradcheck(value, (one.logits.detach().requires_grad_(),))


def test_the_batches_of_a_step_share_the_term() -> None:
    one = given([0.5, 0.7], [0.2, 0.6])
    alone = term(one).item()
    one.step_total = lambda count: count + 6  # positives of the other batches
    assert term(one).item() == pytest.approx(alone * 2 / 8)


def test_soft_ranks_of_scores_are_scores() -> None:
    """So the released coefficient of Spearman is Pearson's.

    The soft ranks of z are its projection on the permutations of 1..n (arXiv 2002.08871). z shifted
    to their mean lies among their mixtures, as the sums of its greatest show: it is the projection.
    """
    choose = random.Random(0)
    for _ in range(300):
        count = choose.randrange(1, 9)
        z = sorted((choose.random() for _ in range(count)), reverse=True)
        shifted = [value - sum(z) / count + (count + 1) / 2 for value in z]
        for top in range(1, count + 1):
            assert sum(shifted[:top]) <= sum(range(count, count - top, -1)) + 1e-9


def test_arguments_out_of_range() -> None:
    for name, value in {"weight": -0.1, "coefficient": "spearman"}.items():
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Correlation(**{name: value})
