"""Equalization loss worked by hand."""

import logging
import math

import pytest
import torch
from small import samples

from frcnn.losses import Equalization

# Class 3 is rare.
SHARES = [0.5, 0.5, 0.001]


def test_a_rare_class_is_spared_the_objects_of_others_alone() -> None:
    # Seven samples: label, and four times the sigmoids of the three classes. Class 3 counts for
    # background and for its own objects, not for objects of 1 and 2.
    rows = [
        (0, [1, 2, 3]),
        (0, [3, 1, 1]),
        (1, [1, 2, 3]),
        (1, [3, 1, 1]),
        (2, [2, 3, 3]),
        (3, [1, 2, 3]),
        (3, [2, 3, 1]),
    ]
    labels, quarters = zip(*rows, strict=True)
    logits = torch.cat([torch.full((7, 1), 9.0), (torch.tensor(quarters) / 4).logit()], 1)
    value = Equalization(SHARES)(samples(logits.requires_grad_(), labels))
    # A class loses log 1/p where it is the label, log 1/(1 - p) elsewhere.
    easy, even, hard = math.log(4 / 3), math.log(2), math.log(4)
    expected = [
        easy + even + hard,
        hard + easy + easy,
        hard + even,
        easy + easy,
        even + easy,
        easy + even + easy,
        even + hard + hard,
    ]
    assert value.tolist() == pytest.approx(expected, rel=1e-6)
    value.sum().backward()
    # p - y where it counts; column 0 is not read.
    slopes = [
        [0, 1, 2, 3],
        [0, 3, 1, 1],
        [0, -3, 2, 0],
        [0, -1, 1, 0],
        [0, 2, -1, 0],
        [0, 1, 2, -1],
        [0, 2, 3, -3],
    ]
    torch.testing.assert_close(logits.grad, torch.tensor(slopes) / 4)


@pytest.mark.parametrize(
    ("spared_at", "spares"),
    [
        ("objects", lambda label: label not in (0, 3)),
        ("background", lambda label: label == 0),
        ("all", lambda label: label != 3),
    ],
)
def test_background_may_be_a_frequent_class(spared_at, spares) -> None:
    # Class 3 is rare; all p are 1/2, so each term that counts is log 2.
    labels = [0, 1, 2, 3]
    value = Equalization(SHARES, spared_at=spared_at)(samples(torch.zeros(4, 4), labels))
    expected = [(2 if spares(label) else 3) * math.log(2) for label in labels]
    assert value.tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="^spared_at must be one of objects, background, all"):
        Equalization(SHARES, spared_at="tail")


def test_without_a_rare_class_it_is_sigmoid_cross_entropy() -> None:
    logits, labels = torch.randn(6, 4), [0, 1, 2, 3, 3, 0]
    value = Equalization(SHARES, rare_below=0.0)(samples(logits, labels))
    targets = torch.nn.functional.one_hot(torch.tensor(labels), 4)[:, 1:].float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, 1:], targets, reduction="none"
    )
    torch.testing.assert_close(value, expected.sum(1))


def test_it_says_how_many_classes_it_masks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        loss = Equalization(SHARES)
        assert not caplog.text  # the command line's check makes one too, of stand-in numbers
        loss.prepare(4)
    assert "1 of 3 classes are below 0.00176" in caplog.text


@pytest.mark.parametrize("frequencies", [None, "data"])
def test_it_needs_frequencies(frequencies) -> None:
    with pytest.raises(ValueError, match="needs class_frequencies"):
        Equalization(frequencies)


def test_frequencies_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values, but 5 classes"):
        Equalization(SHARES).prepare(6)
