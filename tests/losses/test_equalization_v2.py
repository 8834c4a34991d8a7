"""Equalization loss v2 worked by hand, and against plain loops."""

import math
import random

import pytest
import torch
from small import samples

from frcnn.losses import EqualizationV2, Samples


def made(classes: int, up: list[float] | None = None, down: list[float] | None = None):
    loss = EqualizationV2()
    loss.prepare(classes + 1)
    if up is not None:
        loss.pushed_up, loss.pushed_down = torch.tensor([up, down], dtype=torch.float64)
    return loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_loops(
    logits: list[list[float]], labels: list[int], weights: list[float], up: list, down: list
) -> tuple[list[float], list[float], list[float]]:
    """Losses, and what the batch adds to the pushes up and down."""
    values, more_up, more_down = [], [0.0] * len(up), [0.0] * len(up)
    for row, label, sample_weight in zip(logits, labels, weights, strict=True):
        value = 0.0
        for column, x in enumerate(row):
            positive, p, w = column == label, sigmoid(x), 1.0
            if column:
                g = up[column - 1] / down[column - 1] if down[column - 1] else 100.0
                f = sigmoid(12 * (g - 0.8))
                w = 1 + 4 * (1 - f) if positive else f
                pushes = more_up if positive else more_down
                pushes[column - 1] += sample_weight * w * abs(p - positive)
            value -= w * math.log(p if positive else 1 - p)
        values.append(value)
    return values, more_up, more_down


def test_weights_by_hand() -> None:
    # The ratios 0, 0.5, 0.8, 1 and 100.
    loss = made(5, [0, 1, 0.8, 1, 100], [1, 2, 1, 1, 1])
    positive, negative = loss.class_weights().tolist()
    assert negative == pytest.approx([1, 0.0001, 0.0266, 0.5, 0.9168, 1], abs=1e-4)
    assert positive == pytest.approx([1, 4.9997, 4.8936, 3, 1.3327, 1], abs=1e-4)


def test_before_the_first_step_it_is_sigmoid_cross_entropy_with_background() -> None:
    logits, labels = torch.randn(6, 4), [0, 1, 2, 3, 3, 0]
    targets = torch.nn.functional.one_hot(torch.tensor(labels), 4).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none"
    )
    torch.testing.assert_close(made(3)(samples(logits, labels)), expected.sum(1))


def test_against_loops() -> None:
    chance = random.Random(0)
    for _ in range(1500):
        classes, count = chance.randint(1, 5), chance.randint(0, 6)
        logits = [[chance.gauss(0, 2) for _ in range(classes + 1)] for _ in range(count)]
        labels = [chance.randint(0, classes) for _ in range(count)]
        weights = [chance.uniform(0.1, 2) for _ in range(count)]
        up = [chance.choice([0.0, chance.uniform(0, 5)]) for _ in range(classes)]
        down = [chance.choice([0.0, chance.uniform(0.1, 5)]) for _ in range(classes)]
        loss = made(classes, up, down)
        rows = torch.tensor(logits, dtype=torch.float64).reshape(count, classes + 1)
        batch = samples(rows, labels, training=True)
        batch.weights = torch.tensor(weights, dtype=torch.float64)
        values, more_up, more_down = by_loops(logits, labels, weights, up, down)
        assert loss(batch).tolist() == pytest.approx(values)
        assert (loss.pushed_up - torch.tensor(up)).tolist() == pytest.approx(more_up, abs=1e-6)
        assert (loss.pushed_down - torch.tensor(down)).tolist() == pytest.approx(
            more_down, abs=1e-6
        )


def test_the_sums_grow_in_training_alone_and_after_the_losses() -> None:
    loss, logits = made(2), torch.randn(4, 3)
    first = loss(samples(logits, [0, 1, 2, 1]))
    assert not loss.pushed_up.any() and not loss.pushed_down.any()
    assert loss(samples(logits, [0, 1, 2, 1], training=True)).equal(first)
    assert loss.pushed_up.all() and loss.pushed_down.all()
    assert not loss(samples(logits, [0, 1, 2, 1])).equal(first)


def test_two_processes_sum_their_pushes() -> None:
    logits, labels = torch.randn(7, 4), [0, 1, 2, 3, 3, 0, 1]
    whole, shared = made(3), [made(3), made(3)]
    whole(samples(logits, labels, training=True))
    parts = (slice(0, 5), slice(5, 7))

    def batch(rows: slice) -> Samples:
        return samples(logits[rows], labels[rows], training=True)

    sums: list[torch.Tensor] = []
    for rows in parts:
        own = batch(rows)
        own.total = lambda value: (sums.append(value), value)[1]
        made(3)(own)
    for loss, rows in zip(shared, parts, strict=True):
        own = batch(rows)
        own.total = lambda value: sum(sums)
        loss(own)
        torch.testing.assert_close(loss.pushed_up, whole.pushed_up)
        torch.testing.assert_close(loss.pushed_down, whole.pushed_down)


def test_scores_are_those_of_the_classes_times_not_background() -> None:
    logits = torch.tensor([[math.log(3), 0.0, -math.log(3)]])
    assert made(2).scores(logits)[0].tolist() == pytest.approx([0.75, 0.125, 0.0625])


def test_a_state_that_it_cannot_have_is_refused() -> None:
    state = made(2).state_dict()
    state["pushed_up"][0] = float("nan")
    with pytest.raises(ValueError, match="pushed_up of EqualizationV2 are not finite"):
        made(2).load_state_dict(state)


@pytest.mark.parametrize(("name", "value"), [("gamma", 0.0), ("alpha", -1.0), ("per", "box")])
def test_values_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        EqualizationV2(**{name: value})  # type: ignore[arg-type]
