"""SSD's hard negative mining worked by hand, and against a loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import worked

from samplers import HardNegative

# Image 0: one positive; image 1: none; image 2: two.
LABELS = [2, 0, 0, 0, -1, 0, 0, 0, 1, 1, 0]
IMAGE = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
CLASS = [0.1, 0.5, 0.9, 0.7, 9.0, 0.3, 0.8, 0.2, 0.0, 0.0, 0.1]
TOTAL = [9.0] * 11  # class + box loss plays no part


def picks(sampler: HardNegative) -> list[int]:
    return torch.where(sampler(worked(LABELS, TOTAL, CLASS, image=IMAGE)))[0].tolist()


def test_the_hardest_at_the_ratio() -> None:
    # Image 0: 0 and its two hardest negatives 2 (0.9), 3 (0.7); the ignored 4 is harder and stays
    # out. Image 1: no positive, nothing. Image 2: asks for four negatives, has one.
    assert picks(HardNegative(ratio=2)) == [0, 2, 3, 8, 9, 10]


def test_a_minimum_of_negatives_where_there_are_no_positives() -> None:
    # Image 1 keeps its two hardest: 6 (0.8), 5 (0.3). The others have their ratio.
    assert picks(HardNegative(ratio=2, min_negatives=2)) == [0, 2, 3, 5, 6, 8, 9, 10]


def test_the_minimum_leaves_the_ratio_alone() -> None:
    # Image 0 has one positive: one negative, its hardest, though four are there and five the
    # minimum. Image 1 asks for five and has three.
    assert picks(HardNegative(ratio=1, min_negatives=5)) == [0, 2, 5, 6, 7, 8, 9, 10]


def test_the_ratio_is_at_most_kept() -> None:
    # Image 0: floor(1.5) = 1 negative for its positive.
    assert picks(HardNegative(ratio=1.5)) == [0, 2, 8, 9, 10]


def test_a_ratio_too_large_for_64_bits_keeps_every_negative() -> None:
    # Image 1 has no positive and keeps nothing.
    assert picks(HardNegative(ratio=1e30)) == [0, 1, 2, 3, 8, 9, 10]


@pytest.mark.parametrize(
    ("name", "value"),
    [("ratio", -1.0), ("ratio", float("nan")), ("ratio", float("inf")), ("min_negatives", -1)],
)
def test_arguments_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        HardNegative(**{name: value})


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([-1, 0, 0, 0, 1]), st.integers(0, 5)), max_size=30),
    st.integers(0, 3),
    st.integers(0, 4),
)
def test_against_a_loop(rows: list[tuple[int, int]], ratio: int, least: int) -> None:
    labels, loss = [label for label, _ in rows], [float(value) for _, value in rows]
    weights = HardNegative(ratio, least)(worked(labels, loss))
    positives = [i for i, label in enumerate(labels) if label == 1]
    negatives = [i for i, label in enumerate(labels) if label == 0]
    quota = ratio * len(positives) if positives else least
    hardest = sorted(negatives, key=lambda i: (-loss[i], i))[:quota]
    assert torch.where(weights)[0].tolist() == sorted(positives + hardest)
