"""Class weights worked by hand."""

import math

import pytest
import torch
from small import samples

from frcnn.losses import ClassWeights, CrossEntropy
from frcnn.losses.class_weights import by_frequency, by_number


def weights(scheme, labels: list[int], counts=None, keep_scale: bool = False) -> list[float]:
    made = ClassWeights(scheme, counts, 0.5, keep_scale)
    return made(samples(torch.zeros(len(labels), 3), labels)).tolist()


def test_inverse_log_of_the_frequency() -> None:
    # 1 / ln(1.10 + f) of f = 0, 1/4, 3/4 by a pocket calculator.
    found = by_frequency(torch.tensor([0.0, 1.0, 3.0]))
    assert found.tolist() == pytest.approx([10.492, 3.3321, 1.6255], rel=1e-4)
    # The background of a data set has no count: it gets the mean of the classes.
    background = (1 / math.log(1.35) + 1 / math.log(1.85)) / 2
    assert weights("data", [0, 1, 2], [1, 3])[0] == pytest.approx(background)
    assert weights("data", [2], [1, 3]) == pytest.approx([1 / math.log(1.85)])


def test_frequencies_of_the_batch_count_background() -> None:
    # Shares 1/2, 1/2, 0.
    assert weights("batch", [0, 1, 0, 1]) == pytest.approx([1 / math.log(1.6)] * 4)
    assert weights("batch", [0, 0, 0, 2])[3] == pytest.approx(1 / math.log(1.35))


def test_objects_against_background_of_the_batch() -> None:
    # Two of five are objects, of classes 1 and 2: shares 3/5 and 2/5.
    found = weights("batch_objects", [0, 1, 0, 2, 0])
    assert found == pytest.approx([1 / math.log(1.7 if k % 2 == 0 else 1.5) for k in range(5)])
    # With one class (the RPN) it is "batch".
    assert weights("batch_objects", [0, 1, 0, 0]) == weights("batch", [0, 1, 0, 0])
    batch = samples(torch.zeros(2, 3), [0, 1])
    batch.total = lambda counts: counts + torch.tensor([2.0, 0.0])
    shared = ClassWeights("batch_objects", None, 0.5, False)(batch).tolist()
    assert shared == pytest.approx([1 / math.log(1.1 + 3 / 4), 1 / math.log(1.1 + 1 / 4)])


def test_effective_number() -> None:
    # beta 1/2: (1/2) / (1 - 1/2) = 1 for one object, (1/2) / (3/4) = 2/3 for two; their mean 5/6.
    assert weights("effective", [1, 2, 0], [1, 2]) == pytest.approx([1.2, 0.8, 1.0])
    # beta towards 1 is one over the count; a class without objects is no division by zero.
    many = by_number(torch.tensor([10.0, 1000.0]).double(), 1 - 1e-9)
    assert (many[0] / many[1]).item() == pytest.approx(100, rel=1e-5)
    assert by_number(torch.tensor([0.0, 1.0]), 0.9).tolist() == [1, 1]


def test_fixed_weights() -> None:
    assert weights(None, [0, 1, 2]) == [1, 1, 1]
    assert weights(0.25, [0, 1, 2]) == [0.75, 0.25, 0.25]
    assert weights([1.0, 5.0, 0.5], [2, 0, 1, 1]) == [0.5, 1, 5, 5]


@pytest.mark.parametrize(
    "scheme", [0.25, [1.0, 5.0, 0.5], "batch", "batch_objects", "data", "effective"]
)
def test_keeping_the_scale_is_a_mean_of_one_and_the_same_ratios(scheme) -> None:
    labels = [0, 0, 0, 1, 2, 2]
    free = torch.tensor(weights(scheme, labels, [30, 2]))
    kept = torch.tensor(weights(scheme, labels, [30, 2], keep_scale=True))
    assert kept.mean().item() == pytest.approx(1)
    torch.testing.assert_close(kept / kept[0], free / free[0])
    assert weights(scheme, [], [30, 2], keep_scale=True) == []


def test_a_weighted_cross_entropy_is_the_weight_times_the_plain_one() -> None:
    logits, labels = torch.randn(4, 3), [0, 1, 2, 1]
    plain = CrossEntropy()(samples(logits, labels))
    weighted = CrossEntropy(class_weights=[1.0, 2.0, 3.0])(samples(logits, labels))
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 2.0, 3.0, 2.0]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("data", None, 0.5, False), "class_weights=data needs class_counts"),
        (("effective", "data", 0.5, False), "class_weights=effective needs class_counts"),
        ((1.5, None, 0.5, False), "class_weights"),
        ((None, None, 1.0, False), "effective_beta"),
    ],
)
def test_what_is_missing_or_out_of_range_is_said(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ClassWeights(*arguments)


def test_weights_of_other_classes_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match="2 weights, but 4 classes"):
        CrossEntropy(class_weights=[1.0, 2.0]).prepare(4)
    CrossEntropy(class_weights=[1.0, 2.0]).prepare(2)


@pytest.mark.parametrize("scheme", ["data", "effective"])
def test_one_class_has_no_frequencies_to_compare(scheme) -> None:
    # At the RPN both columns would weigh the same: 1 / ln 2.1 each, or 1.
    table = ClassWeights(scheme, [7], 0.5, False).table.tolist()
    assert table == pytest.approx([1 / math.log(2.1) if scheme == "data" else 1] * 2)
    loss = CrossEntropy(class_weights=scheme, class_counts=[7])
    with pytest.raises(ValueError, match=f"class_weights={scheme} compares .* only one"):
        loss.prepare(2)
    CrossEntropy(class_weights=scheme, class_counts=[7, 1]).prepare(3)


def test_at_the_rpn_objects_can_still_be_weighed_against_background() -> None:
    for scheme in (0.25, [1.0, 3.0], "batch"):
        CrossEntropy(class_weights=scheme).prepare(2)
        found = ClassWeights(scheme, None, 0.5, False)(samples(torch.zeros(4, 2), [0, 0, 0, 1]))
        assert found[0] != found[3]
