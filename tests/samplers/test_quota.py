"""Ranks and quotas against loops that a reader can check."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import worked

from samplers.arguments import check_budget
from samplers.quota import count, pick_per_row, quotas, rank_within, take_quota

# Few distinct priorities, so that ties are the rule.
ELEMENTS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.booleans()),
    max_size=30,
)
# Images of labels; an image may be empty.
IMAGES = st.lists(st.lists(st.sampled_from([-1, 0, 0, 1, 2]), max_size=12), min_size=1, max_size=4)


@settings(deadline=None)
@given(ELEMENTS)
def test_a_rank_counts_who_is_ahead_in_the_group(
    elements: list[tuple[int, float, bool]],
) -> None:
    group = torch.tensor([g for g, _, _ in elements], dtype=torch.int64)
    priority = torch.tensor([p for _, p, _ in elements])
    among = torch.tensor([m for _, _, m in elements], dtype=torch.bool)
    # Ahead: a higher priority, or the same and earlier.
    expected = [
        sum(m and h == g and (q > p or (q == p and j < i)) for j, (h, q, m) in enumerate(elements))
        for i, (g, p, _) in enumerate(elements)
    ]
    rank = rank_within(group, priority, 4, among)
    assert rank[among].tolist() == torch.tensor(expected)[among].tolist()


@settings(deadline=None)
@given(ELEMENTS, st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_the_highest_of_a_row(
    elements: list[tuple[int, float, bool]], first: int, second: int, spare: int
) -> None:
    row = [priority if there else -math.inf for _, priority, there in elements]
    table = torch.tensor([row, row[::-1]]).reshape(2, -1)
    picked = pick_per_row(table, torch.tensor([first, second]), max(first, second) + spare)
    for here, values, quota in zip(picked.tolist(), table.tolist(), (first, second), strict=True):
        # The stable sort keeps the order of equal values.
        order = sorted(range(len(values)), key=lambda i: -values[i])
        expected = [i for i in order if values[i] > -math.inf][:quota]
        assert [i for i, is_picked in enumerate(here) if is_picked] == sorted(expected)


def test_count_keeps_empty_groups() -> None:
    assert count(torch.tensor([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]


@settings(deadline=None)
@given(IMAGES, st.integers(1, 8), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_missing_positives_are_made_up_for_by_negatives(
    images: list[list[int]], budget: int, fraction: float
) -> None:
    labels = [label for image in images for label in image]
    image = [i for i, image in enumerate(images) for _ in image]
    candidates = worked(labels, [0.0] * len(labels), image=image)
    generators = [torch.Generator() for _ in images]  # so that empty images count
    candidates = replace(candidates, generators=generators, sizes=())
    positives, negatives = quotas(candidates, budget, fraction)
    share = int(budget * fraction)
    expected = [min(share, sum(label > 0 for label in labels)) for labels in images]
    assert positives.tolist() == expected
    assert negatives.tolist() == [budget - taken for taken in expected]


@settings(deadline=None)
@given(IMAGES, st.integers(1, 8), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 2**31))
def test_a_quota_is_filled_image_by_image(
    images: list[list[int]], budget: int, fraction: float, seed: int
) -> None:
    labels = [label for image in images for label in image]
    image = [i for i, image in enumerate(images) for _ in image]
    candidates = worked(labels, [0.0] * len(labels), image=image)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    rank, expected = [0] * len(labels), [0.0] * len(labels)
    for here in range(len(images)):
        rows = [row for row in order if image[row] == here]
        positive = [row for row in rows if labels[row] > 0]
        negative = [row for row in rows if labels[row] == 0]
        for pool in (positive, negative):
            for place, row in enumerate(pool):
                rank[row] = place
        taken = positive[: int(budget * fraction)]
        for row in taken + negative[: budget - len(taken)]:
            expected[row] = 1.0
    weights = take_quota(candidates, -torch.tensor(rank, dtype=torch.float32), budget, fraction)
    assert weights.tolist() == expected
    assert weights.dtype == torch.float32


@pytest.mark.parametrize(("budget", "fraction"), [(0, 0.5), (1, -0.1), (1, 1.1), (1, float("nan"))])
def test_a_budget_out_of_range_is_refused(budget: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="^(batch_size_per_image|positive_fraction) must be "):
        check_budget(budget, fraction)
