"""The shares of loss and gradient by confidence."""

import math

import pytest
import torch
from hand_made import hand_made, lines

from experiments.figures.confidence import by_bin, confidence, shares


def test_the_share_of_middle_confidence_by_hand() -> None:
    # p_t = 1/4 is below the middle, 1/2 in it. In ln 2 the losses are 2 (3/4)^gamma, (1/2)^gamma.
    one = hand_made([1, 1, 0], right=[[0.25], [0.5], [0.95]])
    loss, gradient, negatives, _ = confidence({"rpn": one}).axes
    expected = {}
    for gamma in (0, 0.5, 1, 2, 5):
        low, middle = 2 * 0.75**gamma, 0.5**gamma
        expected[f"γ = {gamma}: {middle / (low + middle):.1%}"] = low / (low + middle)
    found = lines(loss)
    assert expected.keys() | {"examples: 50.0%"} == found.keys()
    for name, low in expected.items():
        place, share = found[name]
        assert (share[2].item(), share[5].item()) == pytest.approx((low, 1 - low), rel=1e-4)
        assert place[[2, 5]].tolist() == pytest.approx([0.25, 0.55])
    # Focal loss, appendix B: (1 - p)^gamma (1 - p - gamma p log p).
    low, middle = ((1 - p) ** 5 * (1 - p - 5 * p * math.log(p)) for p in (0.25, 0.5))
    assert f"γ = 5: {middle / (low + middle):.1%}" in lines(gradient)
    assert lines(negatives)["γ = 5: 0.0%"][1][9] == 1


def test_more_gamma_takes_from_the_middle_what_it_gives_to_the_hardest() -> None:
    loss, gradient = shares(torch.rand(10_000, generator=torch.Generator().manual_seed(0)))
    for part in (loss, gradient):
        assert all(share.sum().item() == pytest.approx(1) for share in part.values())
        assert part[0.0][3:7].sum() > part[2.0][3:7].sum() > part[5.0][3:7].sum()
        assert part[0.0][0] < part[2.0][0] < part[5.0][0]


def test_bins_of_confidence() -> None:
    right, value = torch.tensor([0.0, 0.1, 0.19, 1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert by_bin(right, value).tolist() == pytest.approx([0.1, 0.5, *[0] * 7, 0.4])
    assert by_bin(right[:0], value[:0]).tolist() == [0] * 10
