"""PISA worked by hand, its identities, and against loops that a reader can check."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import part, stacked
from torch import Tensor

from samplers import PISA, Candidates, Prediction, Random, clusters
from samplers.iou import share_inside
from samplers.local_rank import hierarchical_local_rank
from samplers.pisa import importance, keep_total
from samplers.quota import take_quota
from samplers.random import shuffled

Box = Sequence[float]
OBJECT = [0.0, 0.0, 10.0, 10.0]
FAR = 1000.0


def scene(
    labels: Sequence[int],
    boxes: Sequence[Box],
    scores: Sequence[float] | None = None,
    loss: Sequence[float] | None = None,
    gt: Sequence[int] | None = None,
    gt_boxes: Sequence[Box] = (OBJECT,),
    image: Sequence[int] | None = None,
) -> Candidates:
    """Candidates whose decoded boxes, foreground probabilities and losses are written by hand."""
    n = len(labels)
    chance = torch.full((n,), 0.5) if scores is None else torch.tensor(scores)
    # Two foreground classes; the second is never the better one.
    logits = torch.stack([1 - chance, chance * 0.999, chance * 0.001], 1).log()
    decoded = torch.tensor(boxes).reshape(-1, 4)
    value = torch.ones(n) if loss is None else torch.tensor(loss)
    where = torch.tensor([0] * n if image is None else image)
    return Candidates(
        boxes=torch.zeros(n, 4),
        labels=torch.tensor(labels),
        ious=torch.zeros(n),
        gt=torch.tensor([0] * n if gt is None else gt),
        gt_boxes=torch.tensor(gt_boxes).reshape(-1, 4),
        image=where,
        predict=lambda rows: Prediction(logits[rows], decoded[rows], value[rows], value[rows]),
        generators=[torch.Generator().manual_seed(i) for i in range(int(where.max()) + 1)],
    )


def overlapping(share: float, left: float = 0.0) -> Box:
    """A box whose IoU with OBJECT, moved right by ``left``, is ``share``."""
    return [left, 0.0, left + 10.0, 10.0 * share]


def positives(values: Sequence[float], gt: Sequence[int], labels: Sequence[int]) -> Candidates:
    """Positives whose decoded boxes have these IoUs with their objects, which lie apart."""
    objects = [[FAR * i, 0.0, FAR * i + 10, 10.0] for i in range(max(gt) + 1)]
    boxes = [overlapping(value, FAR * owner) for value, owner in zip(values, gt, strict=True)]
    return scene(labels, boxes, gt=gt, gt_boxes=objects)


# --- hierarchical local rank -----------------------------------------------------------------

# S3's example: A, B, C cover one object (C > A > B), D and E another (D > E). First those first
# at their object, D (0.9) and C (0.8), then the seconds A (0.7) and E (0.65), then B: D C A E B.
A_TO_E = [0.7, 0.6, 0.8, 0.9, 0.65]
OWNER = [0, 0, 0, 1, 1]


def test_d_c_a_e_b() -> None:
    order = sorted(range(5), key=lambda i: -A_TO_E[i])
    cluster = torch.tensor([OWNER[i] for i in order])
    rank = hierarchical_local_rank(cluster, torch.zeros_like(cluster), 2, 1).tolist()
    named = sorted(zip(rank, ["ABCDE"[i] for i in order], strict=True))
    assert [name for _, name in named] == list("DCAEB")


def test_isr_p_of_a_to_e() -> None:
    # u = (5 - r) / 5: D 1, C .8, A .6, E .4, B .2; gamma 1, all losses 1: sum(CE) / sum(w CE) =
    # 5 / 3, so D 5/3, C 4/3, A 1, E 2/3, B 1/3.
    scene_of_five = positives(A_TO_E, OWNER, [1] * 5)
    weights = PISA(20, 0.5, gamma_p=1)(scene_of_five)
    assert weights.tolist() == pytest.approx([1, 1 / 3, 4 / 3, 5 / 3, 2 / 3])
    # beta 1/2: w = (u + 1) / 2 = 1, .9, .8, .7, .6, in all 4.
    weights = PISA(20, 0.5, gamma_p=1, beta_p=0.5)(scene_of_five)
    assert weights.tolist() == pytest.approx([x * 5 / 4 for x in (0.8, 0.6, 0.9, 1, 0.7)])


# --- ISR-P -----------------------------------------------------------------------------------


def test_importance() -> None:
    # r = 0, 2 of n = 4: u = 1, 1/2. beta 1/2: (u + 1) / 2 = 1, 3/4. gamma 2: 1, 9/16.
    rank, n = torch.tensor([0, 2]), torch.tensor(4)
    assert importance(rank, n, 2, 0.5).tolist() == [1, 9 / 16]
    assert importance(rank, n, 2, 0).tolist() == [1, 1 / 4]
    assert importance(rank, n, 0, 0).tolist() == [1, 1]
    assert importance(rank, n, 2, 1).tolist() == [1, 1]
    assert importance(rank, n, 1000, 0).min() > 0


# Four of class 1 and two of class 2, each class on one object; losses 1 and 2.
TWO_CLASSES = replace(
    positives([0.9, 0.8, 0.7, 0.6, 0.9, 0.8], [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 2, 2])
)


def with_losses(candidates: Candidates, loss: Sequence[float]) -> Candidates:
    """The same with other class losses."""
    values, before = torch.tensor(loss), candidates.predict

    def predict(rows: Tensor) -> Prediction:
        return replace(before(rows), loss=values[rows], class_loss=values[rows])

    return replace(candidates, predict=predict)


@pytest.mark.parametrize(
    ("scale", "raw", "ratio"),
    [
        # n = 4 for both: u = 1, 3/4, 1/2, 1/4 and 1, 3/4. sum(CE) = 4 + 4 = 8,
        # sum(w CE) = 2.5 + 2 * 1.75 = 6.
        ("n_max", [1, 0.75, 0.5, 0.25, 1, 0.75], 8 / 6),
        # n = 2 for class 2: u = 1, 1/2. sum(w CE) = 2.5 + 2 * 1.5 = 5.5.
        ("n_j", [1, 0.75, 0.5, 0.25, 1, 0.5], 8 / 5.5),
    ],
)
def test_ranks_count_within_a_class(scale: str, raw: list[float], ratio: float) -> None:
    candidates = with_losses(TWO_CLASSES, [1, 1, 1, 1, 2, 2])
    weights = PISA(20, 0.5, gamma_p=1, rank_scale=scale)(candidates)
    assert weights.tolist() == pytest.approx([w * ratio for w in raw])


def test_objects_are_numbered_over_the_batch() -> None:
    # One object in each of three images. All three are first at theirs: 0.9, 0.8, 0.7, so
    # u = 1/3, 1, 2/3 of the rows; sum(w) = 2, times 3/2. Were objects of images 1 and 2 taken for
    # one, 0.8 would be second at it and come last.
    candidates = positives([0.7, 0.9, 0.8], [0, 1, 2], [1, 1, 1])
    generators = [torch.Generator() for _ in range(3)]
    candidates = replace(candidates, image=torch.arange(3), generators=generators, sizes=())
    assert PISA(4, 0.5, gamma_p=1)(candidates).tolist() == pytest.approx([1 / 2, 3 / 2, 1])


def test_an_object_comes_before_the_iou() -> None:
    # 0 (0.9) and 1 (0.8) cover one object, 2 (0.6) another. First at their objects: 0, then 2. So
    # 1 comes last: u = 1, 1/3, 2/3, in all 2, times 3/2. By IoU alone 2 would come last.
    candidates = positives([0.9, 0.8, 0.6], [0, 0, 1], [1, 1, 1])
    assert PISA(6, 0.5, gamma_p=1)(candidates).tolist() == pytest.approx([3 / 2, 1 / 2, 1])


def test_positives_are_ranked_among_those_of_all_processes() -> None:
    # Here 0 (0.9) and 1 (0.8) at one object; in the process before it C (0.6) and D (0.5) at
    # another. First C, second D of theirs: 0, C, 1, D, so u = 1 and 1/2 here. All losses are 1:
    # 4 / (1 + 3/4 + 1/2 + 1/4). Were both objects one, 1 would come before C.
    others = [torch.tensor([OBJECT]), torch.tensor([[0, 1, 0.6, 1], [0, 1, 0.5, 1]])]

    def gather(rows: Tensor) -> tuple[Tensor, slice]:
        first = others.pop(0).to(rows)
        return torch.cat([first, rows]), slice(len(first), len(first) + len(rows))

    candidates = replace(positives([0.9, 0.8], [0, 0], [1, 1]), gather=gather)
    assert PISA(4, 0.5, gamma_p=1)(candidates).tolist() == pytest.approx([8 / 5, 4 / 5])
    assert not others


def test_only_drawn_positives_are_ranked() -> None:
    # Two of four are drawn: u = 1 and 1/2, times 2 / 1.5, whichever they are.
    weights = PISA(4, 0.5, gamma_p=1)(positives([0.9, 0.8, 0.7, 0.6], [0] * 4, [1] * 4))
    assert weights[weights > 0].tolist() == pytest.approx([4 / 3, 2 / 3])


# --- Score-HLR and ISR-N ---------------------------------------------------------------------

# 0 (.9) and 1 (.8) overlap by 0.9, 2 (.6) and 3 (.3) too, 4 (.01) is below the threshold.
# Heads 0, 2, then the seconds 1, 3.
NEGATIVES = [OBJECT, overlapping(0.9), overlapping(1, FAR), overlapping(0.9, FAR), OBJECT]
SCORES = [0.9, 0.8, 0.6, 0.3, 0.01]


def test_negatives_by_score_hlr() -> None:
    # Three of: 0, 2, 1. n = max(4 ranked, 3 asked): u = 1, 3/4, 1/2. Losses 1, 2, 1:
    # sum(CE) / sum(w CE) = 4 / (1 + 1.5 + 0.5).
    candidates = scene([0] * 5, NEGATIVES, SCORES, loss=[1, 1, 2, 9, 9])
    weights = PISA(3, 0.5, gamma_n=1)(candidates)
    assert weights.tolist() == pytest.approx([4 / 3, 2 / 3, 1, 0, 0])
    # beta 1/2: w = (u + 1) / 2 = 1, 7/8, 3/4; 4 / (1 + 1.75 + 0.75).
    weights = PISA(3, 0.5, gamma_n=1, beta_n=0.5)(candidates)
    assert weights.tolist() == pytest.approx([8 / 7, 6 / 7, 1, 0, 0])


def test_what_fills_up_weighs_as_the_last_ranked() -> None:
    # All five, n = max(4, 5): u = 1 (0), .8 (2), .6 (1), .4 (3), .4 (4), which is 3.2; times 5/3.2.
    weights = PISA(9, 0.5, gamma_n=1)(scene([0] * 5, NEGATIVES, SCORES))
    assert weights.tolist() == pytest.approx([x * 5 / 3.2 for x in (1, 0.6, 0.8, 0.4, 0.4)])


def test_a_score_at_the_threshold_only_fills_up() -> None:
    # Scores of exactly 1/2, 1/2 and more, all of a cluster of their own: one is ranked and the
    # others weigh as much as the last ranked one, which it is.
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    boxes, ones = torch.tensor([overlapping(1, FAR * i) for i in range(3)]), torch.ones(3)
    candidates = replace(
        scene([0] * 3, boxes.tolist()),
        predict=lambda rows: Prediction(logits[rows], boxes[rows], ones[rows]),
    )
    assert PISA(3, 0.5, score_threshold=0.5)(candidates).tolist() == [1, 1, 1]
    # Ranked they are 1, 2/3 and 1/3, and sqrt(2/3) and sqrt(1/3) times that scale.
    least, middle, most = sorted(PISA(3, 0.5, score_threshold=0.4)(candidates).tolist())
    assert (middle / most, least / most) == pytest.approx(((2 / 3) ** 0.5, (1 / 3) ** 0.5))


def test_the_square_root_of_the_released_code() -> None:
    weights = PISA(2, 0.5)(scene([0] * 5, NEGATIVES, SCORES))
    # 0 and 2, u = 1 and 3/4, gamma 1/2.
    assert (weights[2] / weights[0]).item() == pytest.approx(0.75**0.5)
    assert weights.count_nonzero() == 2


def test_a_cluster_is_its_heads_neighbours_not_theirs() -> None:
    # 1 overlaps 0, 2 overlaps 1 but not 0: 2 heads a cluster of its own, as in NMS. Then 0, 2, 1.
    chain = [[0.0, 0, 10, 10], [3.0, 0, 13, 10], [6.0, 0, 16, 10]]  # IoU 7/13, 4/16
    weights = PISA(3, 0.5, gamma_n=1)(scene([0] * 3, chain, [0.9, 0.8, 0.7]))
    assert weights.tolist() == pytest.approx([3 / 2, 1 / 2, 1])


def test_more_candidates_than_are_asked_for() -> None:
    # Two clusters, 0 2 and 1 3 4 by falling score. Four of: 0, 1, 2, 3; then 4, third at its own.
    near = [1.0, 1.0, 0.9, 0.9, 0.8]
    boxes = [overlapping(x, FAR * (i in (1, 3, 4))) for i, x in enumerate(near)]
    weights = PISA(4, 0.5, gamma_n=1)(scene([0] * 5, boxes, [0.9, 0.8, 0.7, 0.6, 0.5]))
    # n = 5: u = 1, .8, .6, .4, in all 2.8.
    assert weights.tolist() == pytest.approx([x * 4 / 2.8 for x in (1, 0.8, 0.6, 0.4, 0)])


def test_images_do_not_share_clusters() -> None:
    candidates = scene([0] * 4, [OBJECT] * 4, [0.9, 0.8, 0.7, 0.6], image=[0, 0, 1, 1])
    weights = PISA(1, 0.5)(candidates)
    assert weights.tolist() == [1, 0, 1, 0]


def test_nothing_above_the_threshold_is_random() -> None:
    parts = [part([0, 1, 2, 0, 0, -1, 0, 0, 0] * 3, 3, seed) for seed in range(3)]
    weights = PISA(8, 0.25, score_threshold=1.0, isr_p=False)(stacked(parts, range(3)))
    assert weights.tolist() == pytest.approx(Random(8, 0.25)(stacked(parts, range(3))).tolist())


# --- switches --------------------------------------------------------------------------------

SWITCHES = [(hlr, p, n) for hlr in (False, True) for p in (False, True) for n in (False, True)]


@pytest.mark.parametrize(("score_hlr", "isr_p", "isr_n"), SWITCHES)
def test_each_part_can_be_switched_off(score_hlr: bool, isr_p: bool, isr_n: bool) -> None:
    parts = [part([0, 1, 2, 0, 0, -1, 0, 0, 3] * 4, 3, seed) for seed in range(3)]
    candidates = stacked(parts, range(3))
    weights = PISA(12, 0.25, score_hlr, isr_p, isr_n)(candidates)
    random = Random(12, 0.25)(stacked(parts, range(3)))
    positive, negative = candidates.positive, candidates.negative
    assert ((weights > 0) == (random > 0))[positive].all()
    assert ((weights > 0) == (random > 0))[negative].all() == (not score_hlr)
    assert (set(weights[positive].tolist()) <= {0.0, 1.0}) == (not isr_p)
    assert (set(weights[negative].tolist()) <= {0.0, 1.0}) == (not isr_n)


def test_all_off_is_random_and_asks_the_head_nothing() -> None:
    def refuse(rows: Tensor) -> Prediction:
        raise AssertionError("asked")

    candidates = replace(stacked([part([0, 1, 0, 2, 0] * 4, 3, 0)], [0]), predict=refuse)
    again = replace(candidates, generators=[torch.Generator().manual_seed(0)])
    assert PISA(6, 0.5, False, False, False)(candidates).equal(Random(6, 0.5)(again))


@pytest.mark.parametrize(("score_hlr", "isr_p", "isr_n"), SWITCHES[1:])
def test_the_head_is_asked_once_and_only_what_is_needed(
    score_hlr: bool, isr_p: bool, isr_n: bool
) -> None:
    candidates = stacked([part([0, 1, 0, 2, 0, -1] * 4, 3, 0)], [0])
    asked: list[Tensor] = []
    before = candidates.predict

    def predict(rows: Tensor) -> Prediction:
        asked.append(candidates.labels[rows])
        return before(rows)

    PISA(6, 0.5, score_hlr, isr_p, isr_n)(replace(candidates, predict=predict))
    assert len(asked) == 1
    assert (asked[0] > 0).sum() == 3 * isr_p
    assert (asked[0] == 0).sum() == (12 if score_hlr else 3 * isr_n)


# --- identities ------------------------------------------------------------------------------


def losses_of(parts: Sequence[dict[str, Tensor]]) -> Tensor:
    return torch.cat([image["class_loss"] for image in parts])


def test_each_part_keeps_its_class_loss() -> None:
    parts = [part([0, 1, 2, 0, 0, -1, 0, 0, 3] * 8, 3, seed) for seed in range(3)]
    candidates, loss = stacked(parts, range(3)), losses_of(parts)
    weights = PISA(24, 0.25)(candidates)
    picked = weights > 0
    sums = [(x * loss)[candidates.positive].sum().item() for x in (weights, picked)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)
    for image in range(3):
        here = candidates.negative & (candidates.image == image)
        sums = [(x * loss)[here].sum().item() for x in (weights, picked)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-6)


def test_without_any_loss_there_is_nothing_to_keep() -> None:
    weights = torch.tensor([1.0, 0.5, 1.0, 0.25])
    kept = keep_total(weights, torch.tensor([0.0, 0, 3, 2]), torch.tensor([0, 0, 1, 1]), 2)
    # 5 / (3 + 0.5)
    assert kept.tolist() == pytest.approx([1, 0.5, 10 / 7, 2.5 / 7])


def test_a_beta_of_one_or_a_gamma_of_zero_weighs_nothing() -> None:
    parts = [part([0, 1, 2, 0, 0, -1, 0, 0, 3] * 4, 3, seed) for seed in range(2)]
    for flat in ({"beta_p": 1, "beta_n": 1}, {"gamma_p": 0, "gamma_n": 0}):
        weights = PISA(12, 0.25, **flat)(stacked(parts, range(2)))
        assert weights[weights > 0].tolist() == pytest.approx([1] * int((weights > 0).sum()))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_candidates_does_not_matter(seed: int) -> None:
    # All positives are drawn and no negative fills up, so that nothing is random; no scores tie.
    parts = [part([0, 0, 1, 0, 0, -1, 0, 0, 0] * 6, 3, image) for image in range(3)]
    for image in parts:  # every positive meets its object: nothing ties at IoU 0
        image["decoded"] = image["gt_boxes"][image["gt"]] + torch.rand(
            54, 4, generator=torch.Generator().manual_seed(9)
        )
    sampler = PISA(24, 0.25, score_threshold=0.0)
    weights = sampler(stacked(parts)).split([len(image["labels"]) for image in parts])
    shuffled, order = [], []
    for image in parts:
        n = len(image["labels"])
        order.append(torch.randperm(n, generator=torch.Generator().manual_seed(seed)))
        shuffled.append(
            {k: v if k == "gt_boxes" else v[order[-1]] for k, v in image.items()},
        )
    expected = torch.cat([w[o] for w, o in zip(weights, order, strict=True)])
    torch.testing.assert_close(sampler(stacked(shuffled)), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_ranked_in_float32(dtype: torch.dtype) -> None:
    parts = [part([0, 1, 2, 0, 0, -1, 0, 0, 3] * 40, 3, seed) for seed in range(3)]
    half = PISA(256, 0.25)(stacked(parts, range(3), dtype))
    for image in parts:
        for key in ("logits", "loss", "class_loss"):
            image[key] = image[key].to(dtype).float()
    assert half.equal(PISA(256, 0.25)(stacked(parts, range(3))))


@pytest.mark.parametrize("key", ["logits", "decoded", "class_loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(key: str, value: float) -> None:
    image = part([0, 1, 0, 2, 0], 3, 0)
    image[key][2] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        PISA(4, 0.5)(stacked([image], [0]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size_per_image", 0),
        ("positive_fraction", 1.5),
        ("gamma_p", -1.0),
        ("gamma_p", float("inf")),
        ("gamma_n", float("nan")),
        ("beta_p", 1.5),
        ("beta_n", -0.1),
        ("rank_scale", "n"),
        ("score_threshold", 2.0),
        ("cluster_iou", 0.0),
        ("cluster_iou", 1.1),
    ],
)
def test_arguments_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        PISA(**({"batch_size_per_image": 8, "positive_fraction": 0.5} | {name: value}))


# --- against loops ---------------------------------------------------------------------------


def overlap(a: Box, b: Box) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def clusters_of(rows: Sequence[int], scores: Sequence[float], boxes: Sequence[Box]) -> list[list]:
    """What greedy NMS at 0.5 merges, each by falling score."""
    left, found = sorted(rows, key=lambda i: (-scores[i], i)), []
    while left:
        found.append([i for i in left if i == left[0] or overlap(boxes[left[0]], boxes[i]) > 0.5])
        left = [i for i in left if i not in found[-1]]
    return found


def by_local_rank(groups: Sequence[Sequence[int]], value: Sequence[float]) -> list[int]:
    """The members of all groups, each best first, by hierarchical local rank."""
    local = {i: rank for group in groups for rank, i in enumerate(group)}
    return sorted(local, key=lambda i: (local[i], -value[i], i))


def scaled(raw: dict[int, float], loss: Sequence[float]) -> dict[int, float]:
    total, weighted = sum(loss[i] for i in raw), sum(w * loss[i] for i, w in raw.items())
    return {i: w * total / weighted for i, w in raw.items()}


def expected_weights(c: Candidates, budget: int, fraction: float, own_n: bool) -> list[float]:
    """PISA's weights (gamma 2 and 1/2, threshold 0.3) in loops."""
    chance = shuffled(c)
    seen = c.predict(torch.arange(len(c.labels)))
    scores = seen.logits.softmax(1)[:, 1:].amax(1).tolist()
    boxes, loss = seen.boxes.tolist(), seen.loss.tolist()
    labels, image, gt = c.labels.tolist(), c.image.tolist(), c.gt.tolist()
    drawn = take_quota(c, chance, budget, fraction).tolist()
    rows = range(len(labels))
    weights: dict[int, float] = {}

    positive = [i for i in rows if labels[i] > 0 and drawn[i]]
    value = [overlap(boxes[i], c.gt_boxes[gt[i]].tolist()) if i in positive else 0.0 for i in rows]
    sizes = {j: sum(labels[i] == j for i in positive) for j in (1, 2)}
    for j in (1, 2):
        owners = [[i for i in positive if labels[i] == j and gt[i] == o] for o in set(gt)]
        ordered = [sorted(group, key=lambda i: (-value[i], i)) for group in owners]
        n = sizes[j] if own_n else max(sizes.values())
        for r, i in enumerate(by_local_rank(ordered, value)):
            weights[i] = ((n - r) / n) ** 2
    weights = scaled(weights, loss)

    for here in range(c.num_images):
        negative = [i for i in rows if labels[i] == 0 and image[i] == here]
        taken = sum(image[i] == here for i in positive)
        asked = min(budget - taken, len(negative))
        valid = [i for i in negative if scores[i] > 0.3]
        order = by_local_rank(clusters_of(valid, scores, boxes), scores)
        fill = sorted(set(negative) - set(valid), key=lambda i: -chance[i].item())
        n, last = max(len(valid), asked), max(len(valid) - 1, 0)
        picked = (order + fill)[:asked]
        weights |= scaled({i: ((n - min(r, last)) / n) ** 0.5 for r, i in enumerate(picked)}, loss)
    return [weights.get(i, 0.0) for i in rows]


# On a coarse grid, and of few sizes and scores: overlaps of exactly 1/2 and ties are the rule.
ROW = st.tuples(
    st.sampled_from([0, 0, 0, 0, 0, -1, 1, 2]),  # label
    st.integers(0, 2),  # image
    st.integers(0, 3),  # object of the image
    st.integers(0, 9),  # left
    st.sampled_from([2, 3, 4]),  # side
    st.sampled_from([-3.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]),  # logit
    st.sampled_from([0.5, 1.0, 3.0]),  # class loss
)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(ROW, min_size=1, max_size=60),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
    st.sampled_from([1, clusters.PAIRS]),
    st.sampled_from([1, 3, clusters.BLOCK]),
)
def test_against_loops(
    rows: list[tuple], budget: int, fraction: float, own_n: bool, pairs: int, block: int
) -> None:
    rows = sorted(rows, key=lambda row: row[1])
    label, image, gt, left, side, logit, loss = (list(x) for x in zip(*rows, strict=True))
    # An object has one class: objects 0..3 of an image for class 1, 4..7 for class 2.
    gt = [8 * i + o + 4 * (c == 2) for i, o, c in zip(image, gt, label, strict=True)]
    candidates = scene(
        label,
        [[float(x), 0.0, float(x + s), 2.0] for x, s in zip(left, side, strict=True)],
        torch.tensor(logit).sigmoid().tolist(),
        loss,
        gt,
        [[float(o % 4), 0.0, o % 4 + 3.0, 2.0] for o in range(24)],
        image,
    )
    expected = expected_weights(candidates, budget, fraction, own_n)
    for generator, seed in zip(candidates.generators, range(3), strict=False):
        generator.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "PAIRS", pairs)
        patch.setattr(clusters, "BLOCK", block)
        scale = "n_j" if own_n else "n_max"
        sampler = PISA(budget, fraction, rank_scale=scale, score_threshold=0.3)
        weights = sampler(candidates)
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_losses_whose_sum_leaves_float32_still_keep_their_total() -> None:
    """Found by fuzzing: infinity by infinity made the weights NaN."""
    loss = torch.tensor([3e38, 3e38, 1e38])
    weights = keep_total(torch.tensor([1.0, 0.5, 0.0]), loss, torch.zeros(3, dtype=torch.int64), 1)
    # 7e38 / (3e38 + 1.5e38)
    assert weights.tolist() == pytest.approx([14 / 9, 7 / 9, 0])


def test_without_a_budget_all_candidates_count_and_positives_are_weighed() -> None:
    boxes = [[0.0, 0, 10, 9], [0.0, 0, 10, 8], [50.0, 0, 60, 10], [90.0, 0, 99, 9]]
    candidates = scene([1, 1, 0, -1], boxes)
    everything = PISA(None, 0.25, score_hlr=False, isr_n=False, gamma_p=1)(candidates)
    assert everything.tolist() == pytest.approx([4 / 3, 2 / 3, 1, 0])  # u is 1 and 1/2, times 2/1.5
    with pytest.raises(ValueError, match="score_hlr needs a batch_size_per_image"):
        PISA(None, 0.25)
    with pytest.raises(ValueError, match="batch_size_per_image"):
        PISA(0, 0.5)


# --- effective prime samples ------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "weights"), [(1.0, [4 / 3, 2 / 3]), (-1.0, [2 / 3, 4 / 3])])
def test_of_equal_iou_the_box_inside_its_object_comes_first(
    inside: float, weights: list[float]
) -> None:
    # Object [0, 0, 10, 10]. [0, 0, 10, 5] lies in it, of [0, 0, 10, 20] one half; both IoU .5.
    # u = 1 and 1/2, gamma 1: times 2 / 1.5.
    boxes = [[0.0, 0, 10, 5], [0.0, 0, 10, 20]]
    two = scene([1, 1], boxes, gt=[0, 0], gt_boxes=[[0.0, 0, 10, 10]])
    found = PISA(4, 0.5, gamma_p=1, inside=inside)(two)
    assert found.tolist() == pytest.approx(weights)


def test_the_share_of_a_box_inside_its_object() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 20], [5, 0, 15, 10], [20, 0, 30, 10]])
    objects = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    assert share_inside(boxes.T, objects.T).tolist() == [1, 0.5, 0.5, 0]
