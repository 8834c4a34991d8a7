"""Random sampling: its quota worked by hand, and torchvision's draws."""

import pytest
import torch
from small import worked
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from samplers import All, Candidates, Random


def kept(candidates: Candidates, budget: int, fraction: float) -> tuple[int, int]:
    """(positives, negatives) picked."""
    weights = Random(budget, fraction)(candidates)
    assert not weights[candidates.labels < 0].any()
    return int(weights[candidates.positive].sum()), int(weights[candidates.negative].sum())


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (10, 20, (2, 6)),  # a quarter of 8
        (1, 20, (1, 7)),  # a missing positive is made up for by a negative
        (0, 20, (0, 8)),
        (10, 3, (2, 3)),  # missing negatives are not made up for
        (10, 0, (2, 0)),
        (1, 2, (1, 2)),  # fewer than asked
    ],
)
def test_quota_of_eight_with_a_quarter_positive(
    positives: int, negatives: int, expected: tuple[int, int]
) -> None:
    labels = [3] * positives + [0] * negatives + [-1] * 5
    assert kept(worked(labels, [0.0] * len(labels)), 8, 0.25) == expected


@pytest.mark.parametrize("seed", range(3))
def test_draws_what_torchvision_draws(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    images = [torch.randint(-1, 3, (n,), generator=g) for n in (40, 7, 25)]
    torch.manual_seed(seed)
    masks = BalancedPositiveNegativeSampler(10, 0.3)(images)
    expected = torch.cat([p | n for p, n in zip(*masks, strict=True)])
    labels, image = torch.cat(images), torch.arange(3).repeat_interleave(torch.tensor([40, 7, 25]))
    torch.manual_seed(seed)
    weights = Random(10, 0.3)(worked(labels.tolist(), [0.0] * 72, image=image.tolist()))
    assert weights.tolist() == expected.float().tolist()


def test_every_candidate_has_the_same_chance() -> None:
    candidates = worked([1] * 4 + [0] * 8, [0.0] * 12)
    torch.manual_seed(0)
    mean = torch.stack([Random(4, 0.5)(candidates) for _ in range(2000)]).mean(0)
    # 2 of 4 positives, 2 of 8 negatives; five standard deviations of 2000 draws are 0.056.
    assert mean[:4].sub(0.5).abs().max() < 0.06
    assert mean[4:].sub(0.25).abs().max() < 0.06


def test_all_takes_all_but_the_ignored() -> None:
    assert All()(worked([0, -1, 2, 1, -1], [0.0] * 5)).tolist() == [1, 0, 1, 1, 0]
