"""Federated loss worked by hand, and what it draws."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import samples

from frcnn.losses import Federated, Samples


def batch(labels: list[int], classes: int, seed: int = 0) -> Samples:
    found = samples(torch.zeros(len(labels), classes + 1), labels)
    found.generator = torch.Generator().manual_seed(seed)
    return found


def test_classes_left_out_have_no_loss() -> None:
    # Classes 1 and 3 are present, and two are kept: class 2 is left out. p are 1/4, 1/2 and 3/4.
    third = math.log(3)
    logits = torch.tensor([[9.0, -third, 0.0, third]]).repeat(3, 1).requires_grad_()
    value = Federated([0.5, 0.5, 0.5], num_classes=2)(samples(logits, [1, 3, 0]))
    easy, hard = math.log(4 / 3), math.log(4)
    assert value.tolist() == pytest.approx([hard + hard, easy + easy, easy + hard])
    value.sum().backward()
    assert not logits.grad[:, :1].any() and not logits.grad[:, 2].any()


def test_with_enough_classes_it_is_sigmoid_cross_entropy() -> None:
    logits, labels = torch.randn(6, 4), [0, 1, 2, 3, 3, 0]
    targets = torch.nn.functional.one_hot(torch.tensor(labels), 4)[:, 1:].float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, 1:], targets, reduction="none"
    )
    found = Federated([0.5, 0.1, 0.1], num_classes=3)(samples(logits, labels))
    torch.testing.assert_close(found, expected.sum(1))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.001, 0.2, 1.0]), min_size=1, max_size=12),
    st.integers(1, 14),
    st.floats(0, 2),
    st.data(),
)
def test_its_own_classes_and_as_many_more_as_fit(frequencies, wanted, power, data) -> None:
    classes = len(frequencies)
    labels = data.draw(st.lists(st.integers(0, classes), max_size=8))
    loss = Federated(frequencies, num_classes=wanted, power=power)
    kept = set((torch.where(loss.kept(batch(labels, classes)))[0] + 1).tolist())
    present = set(labels) - {0}
    known = {c for c, f in enumerate(frequencies, start=1) if f > 0}
    assert present <= kept and kept - present <= known
    assert len(kept) == max(len(present), min(wanted, len(known | present)))


@pytest.mark.parametrize(("power", "odds"), [(0.5, [1, 2, 4]), (1.0, [1, 4, 16]), (0, [1, 1, 1])])
def test_draws_follow_the_frequencies(power: float, odds: list[int]) -> None:
    """The first drawn class, and of two drawn the pairs of a draw without replacement."""
    shares = [1 / 32, 4 / 32, 16 / 32]
    one, two = (Federated(shares, num_classes=n, power=power) for n in (1, 2))
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(2500):
        for loss in (one, two):
            found[tuple(torch.where(loss.kept(batch([0], 3, seed)))[0].tolist())] += 1
    total = sum(odds)
    for first in range(3):
        assert found[first,] / 2500 == pytest.approx(odds[first] / total, abs=0.04)
        for second in range(first):
            pair = sum(
                odds[a] / total * odds[b] / (total - odds[a])
                for a, b in ((first, second), (second, first))
            )
            assert found[second, first] / 2500 == pytest.approx(pair, abs=0.04)


def test_the_same_draw_in_every_process_and_in_the_preview() -> None:
    loss = Federated([0.1] * 30, num_classes=10)
    counts = torch.bincount(torch.tensor([3, 5, 0, 7]), minlength=31)[1:]
    kept = []
    for labels in ([3, 5, 0], [7], [], [3, 5, 0, 7]):
        part = batch(labels, 30, seed=4)
        part.total = lambda value: counts
        kept.append(loss.kept(part))
    assert all(one.equal(kept[0]) for one in kept) and kept[0].sum() == 10
    assert not loss.kept(batch([3, 5, 0, 7], 30, seed=5)).equal(kept[0])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"class_frequencies": None}, "needs class_frequencies"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"power": -1.0}, "power must be finite"),
        ({"per": "box"}, "per must be"),
    ],
)
def test_values_out_of_range(values: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Federated(**({"class_frequencies": [0.5]} | values))


def test_frequencies_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values, but 5 classes"):
        Federated([0.1] * 3).prepare(6)
