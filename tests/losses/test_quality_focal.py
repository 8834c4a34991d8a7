"""Quality focal loss worked by hand."""

import math

import pytest
import torch
from small import samples

from frcnn.losses import FocalSigmoid, QualityFocal
from frcnn.losses.soft_targets import quality


def moved(share: float) -> torch.Tensor:
    """Deltas of a box that keeps this share of the object's height: its IoU."""
    # CODER: dy = 10 * shift / 10 px, dh = 5 * log of the height's factor; the top edge stays.
    return torch.tensor([[0.0, 10 * (share - 1) / 2, 0, 5 * math.log(share)]])


def test_a_positive_and_a_negative_of_the_worked_example() -> None:
    # p = .5: (.8 - .5)^2 ln 2 = .0624 for t = .8, and .25 ln 2 = .1733 for a negative.
    given = samples(torch.zeros(2, 2), [1, 0], moved(0.8))
    assert QualityFocal()(given).tolist() == pytest.approx([0.0624, 0.1733], abs=5e-5)
    # Of two classes the other one is a negative too. Soft targets of an assigner come first.
    given = samples(torch.zeros(2, 3), [2, 0], moved(0.3))
    given.soft_targets = torch.tensor([0.8, 0.0])
    assert QualityFocal()(given).tolist() == pytest.approx([0.2357, 0.3466], abs=1e-4)


def test_t_is_the_iou_of_the_decoded_box_without_gradient() -> None:
    deltas = torch.cat([moved(0.8), moved(0.25)]).requires_grad_()
    logits = torch.zeros(3, 2, requires_grad=True)
    given = samples(logits, [1, 0, 1], deltas)
    assert quality(given).tolist() == pytest.approx([0.8, 0, 0.25])
    QualityFocal()(given).sum().backward()
    assert deltas.grad is None and logits.grad[:, 1].abs().min() > 0


def test_the_loss_vanishes_where_the_score_is_the_quality() -> None:
    given = samples(torch.tensor([[0.0, math.log(4)]], requires_grad=True), [1], moved(0.8))
    loss = QualityFocal()(given)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert QualityFocal(beta=0)(given).item() == pytest.approx(0.5004, abs=1e-4)  # cross entropy


def test_with_perfect_boxes_it_is_the_focal_loss() -> None:
    logits, labels = torch.randn(12, 4), [0, 1, 2, 3] * 3
    expected = FocalSigmoid(2.0, None)(samples(logits, labels))
    torch.testing.assert_close(QualityFocal(2.0)(samples(logits, labels)), expected)


def test_arguments_out_of_range() -> None:
    for arguments, name in (({"beta": -1.0}, "beta"), ({"per": "coordinate"}, "per")):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            QualityFocal(**arguments)
