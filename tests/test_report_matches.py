"""The report's average precision is COCO's, for the images as they are and for any draw of them."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evaluation import NAMES, ground_truth, hand_worked, random_set

from experiments.report import images
from experiments.report.images import resampled
from experiments.report.matches import (
    RECALLS,
    Matches,
    average_precision,
    match,
    mean_precision,
    precision,
)
from frcnn.evaluation.coco import coco_evaluator, coco_metrics

Sets = tuple[dict[str, Any], list[dict[str, Any]]]


def matched(truth: dict[str, Any], found: list[dict[str, Any]]) -> list[Matches]:
    return match(coco_evaluator(truth, found, NAMES))


def untied(seed: int = 3) -> Sets:
    """``random_set`` with no two equal scores."""
    truth, found = random_set(seed=seed)
    rng = np.random.default_rng(seed)
    for row in found:
        row["scores"] = row["scores"] + rng.uniform(0, 0.05, len(row["scores"]))
    return truth, found


def drawn(truth: dict[str, Any], found: list[dict[str, Any]], counts: Sequence[int]) -> Sets:
    """The set in which image i comes ``counts[i]`` times, as an image of its own each time."""
    origin = np.repeat(np.arange(len(counts)), counts).tolist()
    annotations = [
        {**row, "image_id": image}
        for image, old in enumerate(origin)
        for row in truth["annotations"]
        if row["image_id"] == old
    ]
    shown = [{**truth["images"][0], "id": image} for image in range(len(origin))]
    rows = [{**copy.copy(found[old]), "image_id": image} for image, old in enumerate(origin)]
    return {**truth, "images": shown, "annotations": annotations}, rows


@pytest.mark.parametrize("seed", range(4))
def test_every_image_once_is_the_evaluators_ap(seed: int) -> None:
    truth, found = random_set(seed=seed)  # crowds, equal scores, images without objects
    curve = mean_precision(matched(truth, found))
    expected = coco_metrics(truth, found, NAMES)
    assert curve.shape == (10, 101)
    assert curve.mean() == pytest.approx(expected["AP"], abs=1e-9)
    assert curve[0].mean() == pytest.approx(expected["AP50"], abs=1e-9)
    assert curve[5].mean() == pytest.approx(expected["AP75"], abs=1e-9)


def test_precision_at_recall_by_hand() -> None:
    curve = mean_precision(matched(*hand_worked()))
    # A hit, a miss, a hit of 3 objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0.
    expected = np.select([RECALLS <= 1 / 3, RECALLS <= 2 / 3], [1, 2 / 3], 0)
    assert curve[0] == pytest.approx(expected)
    assert curve[5] == pytest.approx(np.where(RECALLS <= 1 / 3, 1, 0))


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_copies_of_images(seed: int) -> None:
    truth, found = untied(seed)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(found), np.full(len(found), 1 / len(found)))
    expected = coco_metrics(*drawn(truth, found, counts.tolist()), NAMES)["AP"]
    assert average_precision(matched(truth, found), counts) == pytest.approx(expected, abs=1e-9)


def test_an_image_that_is_not_drawn_does_not_count() -> None:
    truth, found = untied()
    counts = np.ones(len(found), dtype=int)
    counts[1] = 0
    worse = copy.deepcopy(found)
    worse[1]["scores"] = worse[1]["scores"] + 5.0
    assert average_precision(matched(truth, worse), counts) == average_precision(
        matched(truth, found), counts
    )
    assert average_precision(matched(truth, worse)) != average_precision(matched(truth, found))


def test_no_detections_are_ap_0_and_no_objects_none() -> None:
    truth, found = random_set()
    assert average_precision(matched(truth, [])) == 0.0
    assert np.isnan(average_precision(matched(truth, found), np.zeros(len(found))))
    assert np.isnan(average_precision(matched(ground_truth([], images=2), [])))


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 5))
def test_interpolated_precision_falls_and_a_hit_for_a_miss_never_lowers_it(
    hits: list[bool], more: int
) -> None:
    true = np.array([hits])
    objects = true.sum() + more or 1
    curve = precision(true, ~true, objects)[0]
    assert (np.diff(curve) <= 0).all() and (curve >= 0).all() and (curve <= 1).all()
    first_miss = np.argmin(true[0])
    better = true.copy()
    better[0, first_miss] = True
    assert (precision(better, ~better, objects + 1)[0] >= precision(true, ~true, objects + 1)).all()


def simple(hits: Sequence[bool]) -> list[Matches]:
    """An image for each object, whose one detection, all with one score, hits or misses."""
    true = np.tile(np.array(hits), (10, 1))
    return [Matches(np.arange(len(hits)), true, ~true, np.ones(len(hits), dtype=int))]


def test_the_draws_are_those_of_the_binomial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "DRAWS", 2000)
    # Hits have the better scores: precision is 1 up to a recall of k / 100, and k of 100 images
    # drawn are hits by Binomial(100, 0.3), whose 2.5 and 97.5 % points are 21 and 39.
    hits = [True] * 30 + [False] * 70
    found = simple(hits)
    over = resampled(found)
    low, high = np.quantile(over, [0.025, 0.975])
    assert (low * 101, high * 101) == pytest.approx((22, 40), abs=1.01)
    assert np.array_equal(resampled(found), over)
