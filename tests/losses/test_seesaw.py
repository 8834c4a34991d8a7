"""Seesaw loss worked by hand, and against plain loops."""

import math
import random

import pytest
import torch
from small import samples

from frcnn.losses import Seesaw


def made(counts: list[int], **values: float) -> Seesaw:
    loss = Seesaw(**values)
    loss.prepare(len(counts) + 1)
    loss.counts = torch.tensor(counts)
    return loss


def class_term(logits: list[float], label: int, counts: list[int], p: float, q: float) -> float:
    """Of an object whose class is ``label``, from 0; the definition as it stands."""
    exps = [math.exp(x) for x in logits]
    share = [e / sum(exps) for e in exps]
    below = 0.0
    for j, e in enumerate(exps):
        m = min(1, (max(1, counts[j]) / max(1, counts[label])) ** p)
        c = max(1, (share[j] / max(0.01, share[label])) ** q)
        below += e if j == label else m * c * e
    return -math.log(exps[label] / below)


@pytest.mark.parametrize(
    ("label", "logits", "scale", "plain", "expected"),
    [
        (1, [0.0, 1.0, 0.0], 0.0251, 0.313, 0.0092),  # frequent: the rare class is spared
        (1, [0.0, 0.0, 1.0], 0.186, 1.313, 0.4085),  # 0.0251 times a compensation of 7.39
        (2, [0.0, 1.0, 0.0], 7.39, 1.313, 3.049),  # rare, and confused with the frequent class
    ],
)
def test_by_hand(label: int, logits: list[float], scale: float, plain: float, expected: float):
    objectness = math.log(2)
    loss, batch = made([1000, 10]), samples(torch.tensor([logits]), [label])
    assert loss(batch).item() - objectness == pytest.approx(expected, rel=2e-3)
    assert made([1000, 10], p=0, q=0)(batch).item() - objectness == pytest.approx(plain, rel=2e-3)
    other = loss.log_scale(batch.logits[:, 1:], torch.tensor([label - 1]))[0, 2 - label]
    assert other.exp().item() == pytest.approx(scale, rel=5e-3)


def test_against_loops() -> None:
    chance = random.Random(0)
    for _ in range(1500):
        classes, count = chance.randint(1, 5), chance.randint(0, 6)
        logits = [[chance.gauss(0, 3) for _ in range(classes + 1)] for _ in range(count)]
        labels = [chance.randint(0, classes) for _ in range(count)]
        counts = [chance.choice([0, 1, 30, 4000]) for _ in range(classes)]
        p, q = chance.uniform(0, 2), chance.uniform(0, 3)
        rows = torch.tensor(logits, dtype=torch.float64).reshape(count, classes + 1)
        loss = made(counts, p=p, q=q)
        found = loss(samples(rows, labels, training=True)).tolist()
        now = [n + labels.count(c) for c, n in enumerate(counts, start=1)]
        assert loss.counts.tolist() == now
        for row, label, value in zip(logits, labels, found, strict=True):
            background = 1 / (1 + math.exp(-row[0]))
            expected = -math.log(1 - background if label else background)
            if label:
                expected += class_term(row[1:], label - 1, now, p, q)
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_without_both_factors_it_is_two_cross_entropies() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([1, 2, 3, 3, 1])
    expected = torch.nn.functional.cross_entropy(logits[:, 1:], labels - 1, reduction="none")
    expected += torch.nn.functional.softplus(logits[:, 0])
    found = made([5, 50, 500], p=0, q=0)(samples(logits, labels.tolist()))
    torch.testing.assert_close(found, expected)


def test_the_scales_have_no_gradient() -> None:
    logits = torch.tensor([[0.0, 2.0, 0.5, -1.0]], requires_grad=True)
    loss = made([1, 300, 20])
    loss(samples(logits, [1])).sum().backward()
    scaled = logits.detach()[:, 1:] + loss.log_scale(logits[:, 1:].detach(), torch.tensor([0]))
    expected = scaled.softmax(1)[0] - torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(logits.grad[0, 1:], expected)


def test_previews_count_nothing_and_processes_count_together() -> None:
    loss = made([0, 0])
    batch = samples(torch.randn(4, 3), [0, 1, 2, 1])
    loss(batch)
    assert loss.counts.tolist() == [0, 0]
    batch.training, batch.total = True, lambda value: value + torch.tensor([10, 20])
    loss(batch)
    assert loss.counts.tolist() == [12, 21]


def test_scores_are_class_times_objectness_and_sum_to_one() -> None:
    logits = torch.tensor([[math.log(3), 0.0, math.log(4)]])
    assert made([1, 1]).scores(logits)[0].tolist() == pytest.approx([0.75, 0.05, 0.2])
    torch.testing.assert_close(made([1] * 5).scores(torch.randn(9, 6)).sum(1), torch.ones(9))


def test_the_prior_is_the_share_of_objects() -> None:
    bias = Seesaw(prior=0.2).initial_bias(4)
    scores = Seesaw().scores(bias[None])
    assert scores[0].tolist() == pytest.approx([0.8, *[0.2 / 3] * 3])
    with pytest.raises(ValueError, match="^prior must be"):
        Seesaw(prior=1.0)


def test_a_state_that_it_cannot_have_is_refused() -> None:
    state = made([1, 2]).state_dict()
    state["counts"][0] = -1
    with pytest.raises(ValueError, match="counts of Seesaw are not finite numbers >= 0"):
        made([0, 0]).load_state_dict(state)


@pytest.mark.parametrize("name", ["p", "q"])
def test_values_out_of_range(name: str) -> None:
    for value in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Seesaw(**{name: value})
