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
    # Every sigmoid is 1/2: ln 2 a class. Background counts all three, an object of class 1 two,
    # and an object of the rare class all three: its own, and the common ones.
    logits = torch.zeros(3, 4, requires_grad=True)
    value = Equalization(SHARES)(samples(logits, [0, 1, 3]))
    assert value.tolist() == pytest.approx([3 * math.log(2), 2 * math.log(2), 3 * math.log(2)])
    value.sum().backward()
    expected = [[0, 0.5, 0.5, 0.5], [0, -0.5, 0.5, 0], [0, 0.5, 0.5, -0.5]]
    assert logits.grad.tolist() == expected


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
        Equalization(SHARES)
    assert "1 of 3 classes are below 0.00176" in caplog.text


@pytest.mark.parametrize("frequencies", [None, "data"])
def test_it_needs_frequencies(frequencies) -> None:
    with pytest.raises(ValueError, match="needs class_frequencies"):
        Equalization(frequencies)


def test_frequencies_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values, but 5 classes"):
        Equalization(SHARES).initial_bias(6)
