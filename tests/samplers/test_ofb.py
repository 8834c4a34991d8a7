"""Positives evenly over the classes of a batch."""

from dataclasses import replace

import pytest
import torch
from small import part, stacked, worked

from samplers import OFB
from samplers.ofb import same_label

TIMES = 4000


def drawn(labels: list[int], budget: int, fraction: float) -> list[float]:
    """Share of the draws that have each row: a batch of as many equal images."""
    image = [number for number in range(TIMES) for _ in labels]
    batch = worked(labels * TIMES, [0.0] * len(image), image=image)
    return OFB(budget, fraction)(batch).reshape(TIMES, -1).mean(0).tolist()


def test_each_class_has_the_same_odds() -> None:
    # Classes of 1, 2 and 5 positives; one is drawn: a third for each class.
    found = drawn([1, 2, 2, 3, 3, 3, 3, 3, 0, 0], 2, 0.5)
    assert found == pytest.approx([1 / 3, *[1 / 6] * 2, *[1 / 15] * 5, 1 / 2, 1 / 2], abs=0.03)


def test_without_replacement() -> None:
    # Odds 1/2, 1/4, 1/4 for two draws: the first row comes 1/2 + 2 (1/4) (2/3) = 5/6 of the times.
    assert drawn([1, 2, 2], 2, 1.0) == pytest.approx([5 / 6, 7 / 12, 7 / 12], abs=0.03)


def test_counts_are_of_the_whole_batch() -> None:
    two = worked([1, 2, 1, 1, 0, -1], [0.0] * 6, image=[0, 0, 1, 1, 1, 1])
    assert same_label(two).tolist() == [3, 1, 3, 3, 1, 1]
    others = torch.tensor([2, 2, 0])
    shared = replace(two, gather=lambda rows: (torch.cat([others, rows]), slice(3, 9)))
    assert same_label(shared).tolist() == [3, 3, 3, 3, 2, 1]
    # Image 0: class 2 three times as often as class 1.
    hits = sum(OFB(1, 1.0)(two)[1].item() for _ in range(1000))
    assert hits / 1000 == pytest.approx(3 / 4, abs=0.06)


def test_with_one_class_it_draws_at_random() -> None:
    expected = [1 / 2] * 4 + [2 / 3] * 3
    assert drawn([1, 1, 1, 1, 0, 0, 0], 4, 0.5) == pytest.approx(expected, abs=0.03)


def test_quotas_are_kept() -> None:
    parts = [part([0] * 9 + [1, 1, 2, 3], 3, seed) for seed in range(3)]
    for budget, fraction in ((4, 0.5), (8, 0.25), (20, 1.0)):
        weights = OFB(budget, fraction)(stacked(parts)).reshape(3, 13)
        positives = min(4, int(budget * fraction))
        assert weights[:, 9:].sum(1).tolist() == [positives] * 3
        assert weights[:, :9].sum(1).tolist() == [min(9, budget - positives)] * 3
