"""Libra's balanced samplers worked by hand, and as the distributions they are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import worked

from samplers import Candidates, InstanceBalanced, IoUBalanced, Libra
from samplers.random import noise


def of_ious(ious: Sequence[float], seed: int = 0, positive_from: float = 0.5) -> Candidates:
    """One image; IoU >= ``positive_from`` is an object."""
    labels = [int(iou >= positive_from) for iou in ious]
    plain = worked(labels, [0.0] * len(ious))
    generator = torch.Generator().manual_seed(seed)
    return replace(plain, ious=torch.tensor(ious), generators=[generator])


def of_objects(gt: Sequence[int], negatives: int, seed: int = 0) -> Candidates:
    """One image whose positives belong to the objects ``gt``."""
    plain = worked([1] * len(gt) + [0] * negatives, [0.0] * (len(gt) + negatives))
    objects = max(gt) + 1
    return replace(
        plain,
        gt=torch.tensor([*gt, *[0] * negatives]),
        gt_boxes=torch.zeros(objects, 4),
        generators=[torch.Generator().manual_seed(seed)],
    )


def bins(candidates: Candidates, weights: torch.Tensor, edges: Sequence[float]) -> list[int]:
    """How many picked negatives lie in each bin."""
    picked = candidates.ious[(weights > 0) & candidates.negative]
    pairs = zip(edges, edges[1:], strict=False)
    return [int(((picked >= low) & (picked < high)).sum()) for low, high in pairs]


# 20 negatives in [0, 1/6), 5 in [1/6, 1/3), 3 in [1/3, 1/2), one positive.
IOUS = [0.05] * 20 + [0.2] * 5 + [0.4] * 3 + [0.9]
THIRDS = (0, 1 / 6, 1 / 3, 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_a_share_of_every_bin(seed: int) -> None:
    # B = 10, half positive: 1 positive, so 9 negatives, 9/3 = 3 from each bin.
    candidates = of_ious(IOUS, seed)
    weights = IoUBalanced(10, 0.5, negative_iou=0.5)(candidates)
    assert bins(candidates, weights, THIRDS) == [3, 3, 3]
    assert weights[-1] == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_bins_shortfall_is_filled_at_random(seed: int) -> None:
    # 18 negatives, 6 a bin: the bins of 5 and 3 give all they have, 6 + 4 come from the first.
    candidates = of_ious(IOUS, seed)
    weights = IoUBalanced(19, 0.5, negative_iou=0.5)(candidates)
    assert bins(candidates, weights, THIRDS) == [10, 5, 3]


def test_edges_as_released_leave_the_last_bin_empty() -> None:
    # The largest overlap is 1: bins [0, 1/3), [1/3, 2/3), [2/3, 1]; the last holds no negative.
    # 9 negatives: 3 from IoU < 1/3, 3 from [1/3, 1/2), 3 more at random from what is left: with
    # the three of the second bin taken, from the first.
    candidates = of_ious(IOUS[:-1] + [1.0])
    weights = IoUBalanced(10, 0.5, negative_iou=0.5, edges="max_overlap")(candidates)
    assert bins(candidates, weights, (0, 1 / 3, 0.5)) == [6, 3]


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_overlap_is_that_of_the_image(seed: int) -> None:
    # Beside an image with an IoU of 1 one whose largest is 0.45: bins [0, .15), [.15, .3),
    # [.3, .45] with 20, 5 and 3 negatives, 3 of each; the largest is one of them.
    ious = torch.tensor([*IOUS[:-1], 1.0, *IOUS[:-2], 0.45])
    plain = worked([*[0] * 28, 1, *[0] * 28], [0.0] * 57, image=[0] * 29 + [1] * 28)
    generators = [torch.Generator().manual_seed(seed + image) for image in range(2)]
    both = replace(plain, ious=ious, generators=generators, sizes=())
    weights = IoUBalanced(9, 0.0, negative_iou=0.5, edges="max_overlap")(both)
    picked = weights * (both.image == 1)
    assert bins(both, picked, (0, 0.15, 0.3, 0.5)) == [3, 3, 3]


def test_the_floor_stands_aside() -> None:
    ious = [0.0] * 50 + [0.1] * 4 + [0.3] * 4 + [0.45] * 4
    # IoU 0 is used only when the others run out: 12 of them, so 3 more.
    weights = IoUBalanced(15, 0.0, 0.5, floor=0.0)(of_ious(ious))
    assert bins(of_ious(ious), weights, (0, 0.01, 0.5)) == [3, 12]


def test_half_precision_is_compared_with_the_floor_in_float32() -> None:
    # 0.1 is 0.1001 in bfloat16: above the floor, though their own comparison rounds that too.
    candidates = of_ious([0.0] * 4 + [0.1] * 4)
    candidates.ious = candidates.ious.bfloat16()
    assert IoUBalanced(4, 0.0, 0.5, floor=0.1)(candidates).tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("seed", range(3))
def test_bins_begin_at_the_floor(seed: int) -> None:
    # Two of [.1, .3) and [.3, .5), with 24 and 4 negatives: 4 of each. From 0 on they would be
    # [0, .25) and [.25, .5), with 20 and 8.
    ious = [0.05] * 9 + [0.15] * 20 + [0.27] * 4 + [0.33] * 2 + [0.4] * 2
    candidates = of_ious(ious, seed)
    weights = IoUBalanced(8, 0.0, 0.5, num_bins=2, floor=0.1)(candidates)
    assert bins(candidates, weights, (0, 0.1, 0.3, 0.5)) == [0, 4, 4]


def test_no_state_between_calls() -> None:
    sampler = IoUBalanced(10, 0.5, 0.5, floor=0.0)
    first = sampler(of_ious(IOUS, seed=3))
    sampler(of_ious(IOUS, seed=4))
    assert sampler(of_ious(IOUS, seed=3)).equal(first)


def test_one_bin_is_random_in_distribution() -> None:
    """Chi-square of how often each of 12 negatives is among 4, over 600 draws."""
    ious = torch.linspace(0, 0.49, 12).tolist()
    counts = torch.zeros(12)
    for seed in range(600):
        counts += IoUBalanced(4, 0.0, 0.5, num_bins=1)(of_ious(ious, seed))
    # 200 expected each; drawn without replacement the variance is 200 (1 - 4/12).
    chi_square = ((counts - 200) ** 2 / (200 * (1 - 4 / 12))).sum() * 11 / 12
    assert chi_square < 31.3  # the 99.9 % point for 11 degrees of freedom


def test_an_equal_share_for_every_object() -> None:
    # 6 of 14 positives for 3 objects: 2 each, though one object owns ten of them.
    gt = [0] * 10 + [1] * 2 + [2] * 2
    for seed in range(5):
        weights = InstanceBalanced(12, 0.5)(of_objects(gt, 20, seed))
        picked = [owner for owner, weight in zip(gt, weights.tolist(), strict=False) if weight]
        assert Counter(picked) == {0: 2, 1: 2, 2: 2}
        assert weights.sum() == 12


def test_an_objects_shortfall_is_filled_at_random() -> None:
    # 8 for 3 objects: 2 each makes 5, since object 2 has one; the other 3 come from the rest.
    gt = [0] * 10 + [1] * 4 + [2]
    weights = InstanceBalanced(16, 0.5)(of_objects(gt, 20))
    picked = Counter(owner for owner, w in zip(gt, weights.tolist(), strict=False) if w)
    assert picked[2] == 1
    assert picked[0] >= 2
    assert picked[1] >= 2
    assert sum(picked.values()) == 8


@pytest.mark.parametrize("seed", range(5))
def test_more_objects_than_positives_asked(seed: int) -> None:
    # 2 of 4 objects, of which one owns nine of the twelve positives: still one each.
    gt = [0] * 9 + [1, 2, 3]
    weights = InstanceBalanced(4, 0.5)(of_objects(gt, 9, seed))
    owners = [owner for owner, weight in zip(gt, weights.tolist(), strict=False) if weight]
    assert len(owners) == len(set(owners)) == 2
    assert weights.sum() == 4


def test_libra_is_both() -> None:
    candidates = of_objects([0] * 10 + [1] * 2 + [2] * 2, 28)
    candidates.ious[14:] = torch.tensor(IOUS[:28])
    weights = Libra(15, 0.4, negative_iou=0.5)(candidates)
    owners = candidates.gt[(weights > 0) & candidates.positive].tolist()
    assert Counter(owners) == {0: 2, 1: 2, 2: 2}
    assert bins(candidates, weights, THIRDS) == [3, 3, 3]


def test_the_objects_of_other_images_do_not_count() -> None:
    # Two images of two objects each, numbered over the batch: 2 positives each image, 1 an object.
    plain = worked([1] * 8 + [0] * 8, [0.0] * 16, image=[0] * 4 + [1] * 4 + [0] * 4 + [1] * 4)
    order = plain.image.argsort(stable=True)
    candidates = replace(
        plain,
        labels=plain.labels[order],
        image=plain.image[order],
        gt=torch.tensor([0, 0, 0, 1, *[0] * 4, 2, 3, 3, 3, *[2] * 4]),
        gt_boxes=torch.zeros(4, 4),
    )
    weights = InstanceBalanced(4, 0.5)(candidates)
    owners = candidates.gt[(weights > 0) & candidates.positive].tolist()
    assert Counter(owners) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_noise_of_an_image_is_its_own() -> None:
    both = worked([0] * 5, [0.0] * 5, image=[0, 0, 1, 1, 1])
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    alone = worked([0] * 3, [0.0] * 3)
    drawn = noise(replace(both, generators=generators))
    assert drawn[2:].equal(noise(replace(alone, generators=[torch.Generator().manual_seed(2)])))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size_per_image", 0),
        ("positive_fraction", -0.1),
        ("negative_iou", 1.5),
        ("negative_iou", float("nan")),
        ("num_bins", 0),
        ("edges", "x"),
        ("floor", 0.5),
        ("floor", -0.1),
    ],
)
def test_arguments_out_of_range(name: str, value: object) -> None:
    usual = {"batch_size_per_image": 10, "positive_fraction": 0.5, "negative_iou": 0.5}
    with pytest.raises(ValueError, match=f"^{name} must be "):
        IoUBalanced(**(usual | {name: value}))


# --- against loops ---------------------------------------------------------------------------


def evenly_over_bins(
    rows: Sequence[int], iou: Sequence[Fraction], n: int, largest: Fraction, sampler: IoUBalanced
) -> list[int]:
    """N of some negatives, which come in the order of the draw: N/K of every bin, then any.

    With a floor, what is not above it comes last.
    """
    low = Fraction(sampler.floor or 0)
    high = largest if sampler.edges == "max_overlap" else Fraction(sampler.negative_iou)
    above = [i for i in rows if sampler.floor is None or iou[i] > low]
    aside = [i for i in rows if i not in above]
    width, last = (high - low) / sampler.num_bins, sampler.num_bins - 1
    drawn: list[int] = []
    for k in range(sampler.num_bins):
        start, end = low + k * width, low + (k + 1) * width
        inside = [i for i in above if start <= iou[i] and (iou[i] < end or k == last)]
        drawn += inside[: n // sampler.num_bins]
    return [*drawn, *(i for i in above if i not in drawn), *aside][:n]


def evenly_over_objects(rows: Sequence[int], owner: Sequence[int], n: int) -> list[int]:
    """N of some positives, which come in the order of the draw: N/G of every object, then any."""
    objects = {owner[i] for i in rows}
    first: list[int] = []
    for one in objects:
        first += [i for i in rows if owner[i] == one][: max(1, n // len(objects))]
    first = [i for i in rows if i in first]
    return (first + [i for i in rows if i not in first])[:n]


def slowly(
    rows: Sequence[int],
    label: Sequence[int],
    iou: Sequence[Fraction],
    owner: Sequence[int],
    sampler: IoUBalanced | InstanceBalanced,
) -> list[int]:
    """What a sampler takes of an image, whose rows come in the order of the draw."""
    positive, negative = ([i for i in rows if label[i] == sign] for sign in (1, 0))
    p = min(len(positive), int(sampler.batch_size_per_image * sampler.positive_fraction))
    n = sampler.batch_size_per_image - p
    by_object = not isinstance(sampler, IoUBalanced) or isinstance(sampler, Libra)
    taken = evenly_over_objects(positive, owner, p) if by_object else positive[:p]
    if not isinstance(sampler, IoUBalanced):
        return taken + negative[:n]
    largest = max((iou[i] for i in rows), default=Fraction(0))
    return taken + evenly_over_bins(negative, iou, n, largest, sampler)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 2**31),
    st.integers(0, 150),
    st.integers(1, 24),
    st.sampled_from([0.25, 0.5, 0.0]),
    st.sampled_from([3, 2, 4, 1]),
    st.sampled_from(["negative_range", "max_overlap"]),
    st.sampled_from([None, 0.0, 0.125, 0.25]),
)
def test_against_loops(
    seed: int,
    n: int,
    budget: int,
    fraction: float,
    num_bins: int,
    edges: str,
    floor: float | None,
) -> None:
    # Two images and three objects in each. IoUs in sixteenths, so that they lie on edges of bins
    # and on floors; from 8 on an object, below it seldom one (the RPN's best of an object).
    g = Random(seed)
    image = sorted(g.choice((0, 1)) for _ in range(n))
    sixteenths = [g.choice((g.randint(0, 7), g.randint(0, 16))) for _ in range(n)]
    label = [g.choice((0, 0, 0, 0, 0, -1, 1)) if x < 8 else g.choice((1, -1)) for x in sixteenths]
    owner = [3 * i + g.randint(0, 2) for i in image]
    iou = [Fraction(x, 16) for x in sixteenths]
    of_bins = budget, fraction, 0.5, num_bins, edges, floor
    for sampler in (IoUBalanced(*of_bins), InstanceBalanced(budget, fraction), Libra(*of_bins)):
        candidates = replace(
            worked(label, [0.0] * n, image=image),
            ious=torch.tensor([float(x) for x in iou]),
            gt=torch.tensor(owner, dtype=torch.int64),
            gt_boxes=torch.zeros(6, 4),
            generators=[torch.Generator().manual_seed(here) for here in range(2)],
            sizes=(),
        )
        chance = noise(candidates).tolist()
        for here, generator in enumerate(candidates.generators):
            generator.manual_seed(here)
        expected: list[int] = []
        for here in range(2):
            mine = [i for i in range(n) if image[i] == here]
            mine.sort(key=lambda i: -chance[i])
            expected += slowly(mine, label, iou, owner, sampler)
        assert torch.where(sampler(candidates))[0].tolist() == sorted(expected)
