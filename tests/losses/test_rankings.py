"""Rank & Sort, its buckets, and aLRP: by hand, and against loops over pairs."""

import math

import pytest
import torch
from small import samples
from torch import Tensor

from frcnn.errors import ConfigError
from frcnn.losses import ALRP, ALRPBox, BucketedRankSort, FocalSigmoid, RankedGIoU, RankSort
from frcnn.losses import ranking as shared
from frcnn.losses.alrp import box_weights
from frcnn.losses.ranking import Ranked, ranked
from frcnn.losses.samples import Samples
from frcnn.model.sites import check_terms

CLASSES = (RankSort, BucketedRankSort, ALRP)


def batch(
    positives: list[float], quality: list[float], negatives: list[float], dtype=torch.float64
) -> Samples:
    """Positives and negatives of one class, whose boxes lie in their objects: IoU = GIoU.

    Soft targets are the same numbers.
    """
    logits = torch.tensor([*positives, *negatives], dtype=dtype)
    both = torch.stack([torch.zeros_like(logits), logits], 1).requires_grad_()
    deltas = torch.zeros(len(positives), 4, dtype=dtype)
    deltas[:, 3] = 5 * torch.tensor(quality, dtype=dtype).log()  # the height, times quality
    given = samples(both, [1] * len(positives) + [0] * len(negatives), deltas)
    given.soft_targets = torch.tensor([*quality, *([0.0] * len(negatives))], dtype=dtype)
    return given


def drawn(seed: int, most: int = 12) -> tuple[list[float], list[float], list[float]]:
    g = torch.Generator().manual_seed(seed)
    num = torch.randint(1, most, (2,), generator=g).tolist()
    spread = 0.2 + 3 * torch.rand(1, generator=g).item()
    values = [spread * torch.randn(n, generator=g, dtype=torch.float64) for n in num]
    quality = torch.rand(num[0], generator=g, dtype=torch.float64)
    return values[0].tolist(), quality.tolist(), values[1].tolist()


def gradient(loss: RankSort | ALRP, given: Samples) -> tuple[Tensor, Tensor]:
    """The term, and its gradient with respect to the object's logits."""
    term = loss(given).sum() / max(1, len(given.positive))
    (found,) = torch.autograd.grad(term, given.logits)
    assert not found[:, 0].any()
    return term.detach(), found[:, 1]


def h(x: float, delta: float) -> float:
    return min(1.0, max(0.0, x / (2 * delta) + 0.5))


def rank_sort_by_loops(s: list[float], t: list[float], n: list[float], delta: float):
    up, total = [0.0] * (len(s) + len(n)), 0.0
    for i, logit in enumerate(s):
        false = [h(other - logit, delta) for other in n]
        true = [h(other - logit, delta) for other in s]
        rank = sum(true) + sum(false)
        error = sum(false) / rank
        now = sum(x * (1 - q) for x, q in zip(true, t, strict=True)) / sum(true)
        good = [x if q >= t[i] else 0 for x, q in zip(true, t, strict=True)]
        sorting = now - sum(x * (1 - q) for x, q in zip(good, t, strict=True)) / sum(good)
        bad = [x - g for x, g in zip(true, good, strict=True)]
        if not any(bad):
            sorting = 0.0
        up[i] -= error + sorting
        for j, x in enumerate(bad):
            up[j] += sorting * x / sum(bad) if any(bad) else 0
        for j, x in enumerate(false):
            up[len(s) + j] += error * x / sum(false) if any(false) else 0
        total += error + sorting
    return total / len(s), [x / len(s) for x in up]


def alrp_by_loops(s: list[float], t: list[float], n: list[float], delta: float):
    up, total = [0.0] * (len(s) + len(n)), 0.0
    for i, logit in enumerate(s):
        false = [h(other - logit, delta) for other in n]
        true = [0 if k == i else h(other - logit, delta) for k, other in enumerate(s)]
        rank = 1 + sum(true) + sum(false)
        total += sum(false) / rank
        if not any(false):
            continue
        error = (sum(false) + sum(x * (1 - q) for x, q in zip(true, t, strict=True))) / rank
        up[i] -= error
        for j, x in enumerate(false):
            up[len(s) + j] += error * x / sum(false)
    return total / len(s), [x / len(s) for x in up]


def test_rank_and_sort_of_the_worked_example() -> None:
    # Logit 1, IoU .5: nothing above it. Logit 0, IoU .9: the negative at .5 is above it (h = 1),
    # and so is the worse positive; itself counts .5. Ranking 1 / 2.5 = .4; sorting
    # (.5 * .1 + 1 * .5) / 1.5 - .1 = .2667.
    term, found = gradient(RankSort(), batch([1, 0], [0.5, 0.9], [0.5, -2]))
    assert term.item() == pytest.approx((0.4 + 0.26667) / 2, abs=1e-5)
    assert found.tolist() == pytest.approx([0.1333, -0.3333, 0.2, 0], abs=1e-4)


@pytest.mark.parametrize(("loss", "loops"), [(RankSort, rank_sort_by_loops), (ALRP, alrp_by_loops)])
def test_loops_over_pairs_agree(loss: type, loops, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(120):
        monkeypatch.setattr(shared, "LARGEST", (2**22, 20)[seed % 2])  # at once, and in blocks
        delta = (0.1, 0.5, 1.0)[seed % 3]
        given = drawn(seed)
        term, found = gradient(loss(delta), batch(*given))
        value, gradients = loops(*given, delta)
        assert term.item() == pytest.approx(value, rel=1e-9, abs=1e-12)
        # torchvision's GIoU has 1e-7 in its denominators.
        assert found.tolist() == pytest.approx(gradients, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("loss", CLASSES)
def test_what_goes_up_goes_down(loss: type) -> None:
    for seed in range(50):
        _, found = gradient(loss(), batch(*drawn(seed)))
        assert found.sum().item() == pytest.approx(0, abs=1e-12)


def test_buckets_change_nothing_where_the_step_is_sharp() -> None:
    for seed in range(100):
        given = drawn(seed, most=40)
        sharp, bucketed = (gradient(x(1e-9), batch(*given)) for x in (RankSort, BucketedRankSort))
        torch.testing.assert_close(bucketed, sharp, rtol=1e-6, atol=1e-9)


def test_a_bucket_stands_at_the_mean_of_its_logits() -> None:
    # Negatives at .1, .1 and .4 above a positive at 0: their mean .2 is above it by h = .7, so the
    # error is 3 * .7 / (3 * .7 + .5). By the lowest (and the median) h = .6, by the highest .9.
    term, found = gradient(BucketedRankSort(delta=0.5), batch([0], [1], [0.1, 0.1, 0.4]))
    assert term.item() == pytest.approx(2.1 / 2.6)
    assert found.tolist() == pytest.approx([-2.1 / 2.6, *[0.7 / 2.6] * 3])


def test_other_classes_of_a_positive_are_negatives_of_its_own() -> None:
    # The positive's own logit 0, its other class at 0.5: as a background sample there.
    given = samples(torch.tensor([[9.0, 0, 0.5]]), [1])
    one_class = samples(torch.tensor([[9.0, 0], [9.0, 0.5]]), [1, 0])
    assert RankSort()(given).sum() == pytest.approx(RankSort()(one_class).sum().item())


@pytest.mark.parametrize("loss", CLASSES)
def test_two_processes_are_one(loss: type) -> None:
    """Each gives the values of its own samples, and ranks those of both."""
    whole = batch(*drawn(3))
    term, expected = gradient(loss(), whole)
    rows = torch.arange(len(whole.labels))
    found, terms = torch.zeros_like(expected), 0.0
    for part in (rows % 2 == 0, rows % 2 == 1):
        other = ~part
        logits = whole.logits.detach()[part].requires_grad_()
        half = samples(logits, whole.labels[part].tolist(), whole.deltas[part[whole.positive]])
        half.soft_targets = whole.soft_targets[part]
        negative = whole.labels == 0
        far = whole.logits.detach()[:, 1]
        quality = whole.soft_targets
        about_box = 1 - quality if loss is ALRP else quality
        pairs = torch.stack([far, about_box], 1)[other & ~negative]
        rest = {2: pairs, 1: far[other & negative]}
        half.gather = lambda own, rest=rest: (
            torch.cat([own, rest[own.dim()]]),
            slice(0, len(own)),
        )
        values = loss()(half)
        terms += values.sum().item() / len(whole.positive)
        values.sum().backward()
        found[part] = logits.grad[:, 1] / len(whole.positive)
    assert terms == pytest.approx(term.item(), rel=1e-9)
    torch.testing.assert_close(found, expected)


def test_no_positive_no_loss() -> None:
    for loss in CLASSES:
        term, found = gradient(loss(), batch([], [], [0.5, 3]))
        assert term == 0 and not found.any()


def test_boxes_of_rank_and_sort_count_by_score_and_as_much_as_the_class_term() -> None:
    # IoU .5 both; GIoU too, as each box lies in its object.
    boxes = torch.tensor([[0.0, 0, 0, 5 * math.log(0.5)]] * 2)
    given = samples(torch.tensor([[0.0, 0], [0.0, 2]]), [1, 1], boxes)
    box = RankedGIoU()
    values = box(given)
    assert (values[1] / values[0]).item() == pytest.approx(0.8808 / 0.5, rel=1e-3)
    given.box_values = values
    given.class_values = torch.tensor([1.0, 2.0])
    given.class_normalizer = lambda: 6.0
    assert (values.sum() / box.normalizer(given)).item() == pytest.approx(0.5)
    given.class_values = torch.zeros(2)
    assert box.normalizer(given).item() == 2


def test_boxes_of_alrp_count_by_rank() -> None:
    # Logits 3, -3, a negative at 0 between them: ranks 1 and 3; the first stands above both.
    found = Ranked(
        torch.tensor([3.0, -3.0]), torch.ones(2), torch.zeros(1), *[slice(0, 2)] * 2, torch.ones(1)
    )
    assert box_weights(found, 1.0).tolist() == pytest.approx([1 + 1 / 3, 1 / 3])


def test_both_parts_of_alrp_have_the_same_localisation_error() -> None:
    # Logits 3 and 1, a negative at 3: the better positive and the negative stand above the other
    # one (h = 1). Its rank is 3 and its error (1 + E) / 3. The box of the better one has half of
    # its object's height: IoU = GIoU = 0.5, so E = 0.5.
    given = batch([3, 1], [0.5, 1], [3])
    half = 5 * math.log(0.5)
    for deltas, error in (([0, 0, 0, half], 0.5), ([20.0, 0, 0, 0], 1 + 1 / 3)):  # far: GIoU -1/3
        given.deltas[0] = torch.tensor(deltas).double()
        given.soft_targets = torch.full((3,), 0.9).double()  # not read
        _, found = gradient(ALRP(), given)
        assert found[1].item() == pytest.approx(-(1 + error) / 3 / 2, abs=1e-7)
        weights = box_weights(ranked(given, 1.0), 1.0)
        assert (ALRPBox()(given) / weights).tolist() == pytest.approx([error, 0], abs=1e-7)


def test_one_of_both_terms_is_scaled_to_the_other() -> None:
    check_terms("rcnn", FocalSigmoid(per="guided"), RankedGIoU(per="sample"))
    with pytest.raises(ConfigError, match="one of them alone"):
        check_terms("rcnn", FocalSigmoid(per="guided"), RankedGIoU())


@pytest.mark.parametrize("make", [*CLASSES, ALRPBox])
def test_delta_is_above_zero(make: type) -> None:
    with pytest.raises(ValueError, match="delta must be above 0, got 0"):
        make(delta=0)
