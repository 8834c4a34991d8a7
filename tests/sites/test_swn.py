"""Learned weights, and their control, worked by hand and against loops."""

import math
from dataclasses import replace

import pytest
import torch
from small import batch, quick, samples
from torch import Tensor

from frcnn.losses import Samples
from frcnn.losses.soft_targets import predicted_ious
from frcnn.sites.weighers import SWN, EqualTerms
from frcnn.sites.weighers.swn import features


def constant(s_class: float, s_box: float, **options: float) -> SWN:
    """A network that gives every sample the same s."""
    weigher = SWN(**options)
    with torch.no_grad():
        weigher.out.weight.zero_()
        weigher.out.bias.copy_(torch.tensor([s_class, s_box]))
    return weigher


def test_the_worked_example() -> None:
    # L = 2 at its best s = ln 4: weight 1/4, .5 + .693. L = .1 at s = -ln 5: weight 5, .5 - .805.
    weigher = constant(math.log(4), -math.log(5))
    given = samples(torch.zeros(1, 2), [1])
    weighed = weigher(given, torch.tensor([2.0]), torch.tensor([0.1]))
    assert weighed.class_values.item() == pytest.approx(0.5)
    assert weighed.box_values.item() == pytest.approx(0.5)
    assert weighed.terms["swn"].item() == pytest.approx(0.693 - 0.805, abs=1e-3)


def test_a_term_for_each_group() -> None:
    given = samples(torch.zeros(3, 2), [1, 0, 0])
    values = torch.ones(3), torch.ones(1)
    # Positives, negatives and boxes; in one stage all anchors and boxes.
    assert constant(1, -0.5)(given, *values).terms["swn"].item() == pytest.approx(0.5 * 1.5)
    one_stage = constant(1, -0.5, by_label=False, regularizer=2.0)
    assert one_stage(given, *values).terms["swn"].item() == pytest.approx(2 * 0.5)
    background = samples(torch.zeros(1, 2), [0])
    weighed = constant(1, -0.5)(background, torch.ones(1), torch.ones(0))
    assert weighed.terms["swn"].item() == pytest.approx(0.5)
    nothing = samples(torch.zeros(0, 2), [])
    assert constant(1, 1)(nothing, torch.ones(0), torch.ones(0)).terms["swn"].item() == 0


def test_s_has_a_limit() -> None:
    given = samples(torch.zeros(2, 2), [1, 0])
    weighed = constant(9, -9)(given, torch.ones(2), torch.ones(1))
    assert weighed.class_values.tolist() == pytest.approx([math.exp(-2)] * 2)
    assert weighed.box_values.item() == pytest.approx(math.exp(2))


def test_what_the_network_reads() -> None:
    errors = torch.tensor([[0.5, -2.0, 0, 1.0]])
    losses, row = torch.tensor([3.0, 4.0]), torch.tensor([1])
    read = features(row, torch.tensor([0.8]), torch.tensor([0.3]), losses, errors)
    assert read[0].tolist() == [0, 0, 3, 0, 0, 0, 0]
    assert read[1].tolist() == pytest.approx([0.8, 0.3, 4, 0.125, 1.5, 0, 0.5])


def random_case(seed: int) -> tuple[SWN, Samples, Tensor, Tensor]:
    """A network that tells samples apart, and a batch."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (12,), generator=g).tolist()
    weigher = SWN(by_label=seed % 2 == 0).double()
    with torch.no_grad():
        for parameter in weigher.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g))
    deltas = torch.randn(sum(label > 0 for label in labels), 4, generator=g).double()
    given = samples(torch.randn(12, 3, generator=g).double(), labels, deltas)
    given = replace(given, weights=0.5 + torch.rand(12, generator=g).double())
    values = 3 * torch.rand(12, generator=g).double(), torch.rand(len(deltas), generator=g).double()
    return weigher, given, *values


def by_loop(weigher: SWN, given: Samples, class_values: Tensor, s: Tensor) -> tuple[list, float]:
    """Class weights and the regularizer, one number at a time."""
    labels, s_class = given.labels.tolist(), s[:, 0].tolist()

    def mean(found: list[float]) -> float:
        return sum(found) / max(1, len(found))

    kinds = [label > 0 for label in labels] if weigher.by_label else [True] * len(labels)
    means = {
        kind: mean([v for v, k in zip(s_class, kinds, strict=True) if k == kind])
        for kind in set(kinds)
    }
    boxes = [v for v, label in zip(s[:, 1].tolist(), labels, strict=True) if label > 0]
    weights = [math.exp(-means[kind]) for kind in kinds]
    return weights, weigher.regularizer * (sum(means.values()) + mean(boxes))


def plain_network(weigher: SWN, given: Samples, class_values: Tensor) -> Tensor:
    """[K, 2] s of four branches and two layers that merge them, sample by sample."""
    shown = given.scores(given.logits)[given.positive, given.labels[given.positive]]
    errors = given.deltas - given.targets
    known = features(given.positive, predicted_ious(given), shown, class_values, errors)
    found = []
    for row in known:
        parts = row[:1], row[1:2], row[2:3], row[3:]
        branches = [branch(part) for branch, part in zip(weigher.branches, parts, strict=True)]
        found.append(weigher.out(weigher.merge(torch.cat(branches)).relu()).clamp(-2, 2))
    return torch.stack(found)


def test_as_a_loop() -> None:
    for seed in range(60):
        weigher, given, class_values, box_values = random_case(seed)
        weighed = weigher(given, class_values, box_values)
        s = plain_network(weigher, given, class_values)
        weights, term = by_loop(weigher, given, class_values, s)
        expected = torch.tensor(weights).double() * class_values
        torch.testing.assert_close(weighed.class_values, expected)
        own = (-s[given.positive, 1]).exp() * box_values
        torch.testing.assert_close(weighed.box_values, own)
        assert weighed.terms["swn"].item() == pytest.approx(term)


def test_the_detector_learns_from_the_weighted_losses_alone() -> None:
    weigher, given, class_values, box_values = random_case(0)
    given.logits.requires_grad_()
    given.deltas.requires_grad_()
    class_values.requires_grad_()
    box_values.requires_grad_()
    weighed = weigher(given, class_values, box_values)
    total = weighed.class_values.sum() + weighed.box_values.sum() + weighed.terms["swn"]
    total.backward()
    assert given.logits.grad is None and given.deltas.grad is None  # what the network reads
    torch.testing.assert_close(class_values.grad * class_values, weighed.class_values)
    torch.testing.assert_close(box_values.grad * box_values, weighed.box_values)
    assert all(parameter.grad.abs().sum() > 0 for parameter in weigher.parameters())


def test_the_published_size_and_start() -> None:
    weigher = SWN()
    assert sum(parameter.numel() for parameter in weigher.parameters()) == 33_922
    weights = torch.cat([p.flatten() for p in weigher.parameters() if p.dim() == 2])
    assert weights.std().item() == pytest.approx(1e-4, rel=0.02)
    optimizer = weigher.own_optimizer()
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_the_network_moves_no_other_random_number() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weigher = SWN()
    assert torch.rand(3).equal(expected)
    torch.manual_seed(6)
    assert not SWN().out.weight.equal(weigher.out.weight)  # it follows the run's seed


def test_half_precision_does_not_reach_the_network() -> None:
    weigher, given, class_values, box_values = random_case(0)
    expected = weigher.float()(given, class_values, box_values)
    with torch.autocast("cpu", torch.bfloat16):
        found = weigher(given, class_values, box_values)
    assert found.class_values.equal(expected.class_values)
    assert found.terms["swn"].equal(expected.terms["swn"])


def per_sample(given: Samples, class_values: Tensor, box_values: Tensor) -> Samples:
    """The samples as a site shows them to a weigher, with losses that are means over samples."""
    given.image = torch.zeros_like(given.labels)
    given.class_values, given.box_values = given.weights * class_values, box_values
    given.class_normalizer = given.box_normalizer = lambda: float(len(given.labels))
    return given


def parts(given: Samples, class_values: Tensor, box_values: Tensor) -> list[float]:
    """What positives, negatives and boxes contribute to the loss."""
    own, positive = given.weights * class_values, given.labels > 0
    sums = own[positive].sum(), own[~positive].sum(), box_values.sum()
    return [value.item() / len(given.labels) for value in sums]


def test_the_control_gives_each_part_the_same_size() -> None:
    _, given, *values = random_case(0)
    given = per_sample(given, *values)
    weighed = EqualTerms(limit=9)(given, *values)
    assert parts(given, weighed.class_values, weighed.box_values) == pytest.approx([0.5] * 3)
    weighed = EqualTerms(2.0, by_label=False, limit=9)(given, *values)
    found = parts(given, weighed.class_values, weighed.box_values)
    assert found[0] + found[1] == pytest.approx(2) and found[2] == pytest.approx(2)
    ratio = (weighed.class_values / values[0]).tolist()
    assert ratio == pytest.approx([ratio[0]] * len(ratio))


def test_the_control_has_the_limit_of_the_network() -> None:
    given = samples(torch.zeros(2, 2), [1, 0])
    values = torch.tensor([1e-6, 1e6]), torch.zeros(1)
    weighed = EqualTerms()(per_sample(given, *values), *values)
    expected = [1e-6 * math.exp(2), 1e6 * math.exp(-2)]
    assert weighed.class_values.tolist() == pytest.approx(expected)
    assert weighed.box_values.tolist() == [0]


def test_a_batch_of_a_step_stands_for_the_others() -> None:
    _, given, *values = random_case(0)
    given = per_sample(given, *values)
    given.step_total = lambda count: 4 * count  # four batches
    weighed = EqualTerms(limit=9)(given, *values)
    found = parts(given, weighed.class_values, weighed.box_values)
    assert found == pytest.approx([0.5 / 4] * 3)


def test_learned_weights_settle_at_those_of_the_control() -> None:
    given = samples(torch.zeros(8, 2), [1, 1, 0, 0, 0, 0, 0, 0], torch.zeros(2, 4))
    values = torch.tensor([9.0, 7, 1, 2, 0.5, 1, 1.5, 1]), torch.tensor([1.5, 1.5])
    weigher = SWN(lr=0.01)
    optimizer = weigher.own_optimizer()
    for _ in range(300):
        weighed = weigher(given, *values)
        count = len(given.labels)
        loss = weighed.class_values.sum() / count + weighed.box_values.sum() / count
        optimizer.zero_grad()
        (loss + weighed.terms["swn"]).backward()
        optimizer.step()
    weighed = weigher(given, *values)
    learned = parts(given, weighed.class_values, weighed.box_values)
    control = EqualTerms()(per_sample(given, *values), *values)
    expected = parts(given, control.class_values, control.box_values)
    assert expected == pytest.approx([0.5] * 3)
    assert learned == pytest.approx(expected, rel=0.1)


def test_a_site_shows_a_weigher_its_terms() -> None:
    seen: list[float] = []

    class Looks(EqualTerms):
        def __call__(self, samples: Samples, *values: Tensor):
            seen.extend((samples.class_term().item(), samples.box_term().item()))
            return super().__call__(samples, *values)

    found = {}
    for name, weigher in (("plain", None), ("equal", Looks(limit=20))):
        model = quick(weigher={"rcnn": weigher})
        found[name] = {key: value.item() for key, value in model(*batch(3, 2)).items()}
    plain = found["plain"]
    assert seen == pytest.approx([plain["loss_classifier"], plain["loss_box_reg"]])
    assert found["equal"]["loss_classifier"] == pytest.approx(1)
    assert found["equal"]["loss_box_reg"] == pytest.approx(0.5)


WRONG = [("lr", 0.0), ("weight_decay", -1.0), ("regularizer", 0.0), ("limit", 0.0)]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_arguments_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        SWN(**{name: value})


@pytest.mark.parametrize("name", ["size", "limit"])
def test_arguments_of_the_control_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        EqualTerms(**{name: 0.0})
