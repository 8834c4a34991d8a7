"""Annotations that are wrong in a known way."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from frcnn.data import shapes
from frcnn.data.label_noise import LabelNoise, Rates, add_noise
from frcnn.data.records import Objects

MANY = {"train_images": 400, "num_classes": 20, "num_objects": (2, 6)}
NO_BOXES = np.zeros((0, 4), dtype=np.float32)


def noisy(**rates: float) -> tuple[Any, Objects, LabelNoise]:
    data = shapes("train", **MANY, **rates)
    return data, data.load.objects, data.load.noise


def objects(boxes: list[list[float]], labels: list[int]) -> Objects:
    """Of one image."""
    place = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    count = len(labels)
    offsets = np.array([0, count])
    return Objects(offsets, place, np.array(labels), np.zeros(count, bool), np.ones(count))


def test_a_box_moves_by_a_quarter_to_the_side_that_has_room() -> None:
    # 20 x 8 at the left edge, half way up an image of 40 x 20: right by 5, up or down by 2.
    found, noise = add_noise(objects([[0, 6, 20, 14]], [1]), Rates(1, 0, 0), (0, 0), (40, 20), 3)
    (x1, y1, x2, y2) = found.boxes[0].tolist()
    assert (x1, x2) == (5, 25) and (y1, y2) in ((4, 12), (8, 16))
    assert noise.moved.tolist() == [True] and noise.swapped.tolist() == [False]
    # Of 30 x 30 in 32 x 32 there is room for two pixels only.
    found, _ = add_noise(objects([[0, 0, 30, 30]], [1]), Rates(1, 0, 0), (0, 0), (32, 32), 3)
    assert found.boxes[0].tolist() == [2, 2, 32, 32]


def test_each_kind_does_what_it_says() -> None:
    data, true, noise = noisy(moved_boxes=0.3, swapped_classes=0.2, dropped_boxes=0.1)
    count = len(true.labels)
    assert noise.moved.mean() == pytest.approx(0.3, abs=0.04)
    assert noise.swapped.mean() == pytest.approx(0.2, abs=0.04)
    assert len(noise.dropped) / count == pytest.approx(0.1, abs=0.03)
    # Every true object is annotated once or dropped.
    assert sorted([*noise.source, *noise.dropped]) == list(range(count))
    own = true.boxes[noise.source], true.labels[noise.source]
    assert ((data.boxes == own[0]).all(1) == ~noise.moved).all()
    assert ((data.labels == own[1]) == ~noise.swapped).all()
    assert data.labels.min() >= 1 and data.labels.max() <= 20
    rows = np.flatnonzero(noise.moved)
    boxes, before = (torch.from_numpy(b[rows]) for b in (data.boxes, own[0]))
    iou = box_iou(boxes, before).diagonal()
    assert iou.max() < 0.5 and iou.median().item() == pytest.approx(0.39, abs=0.02)
    assert (boxes >= 0).all() and (boxes <= torch.tensor([128, 96, 128, 96])).all()
    assert torch.equal(boxes[:, 2:] - boxes[:, :2], before[:, 2:] - before[:, :2])
    image = np.repeat(np.arange(400), np.diff(true.offsets))
    found = np.repeat(np.arange(400), np.diff(data.offsets))
    assert (image[noise.source] == found).all()


def test_all_other_classes_are_equally_likely() -> None:
    data, true, noise = noisy(swapped_classes=1.0)
    ahead = (data.labels - true.labels[noise.source]) % 20
    assert noise.swapped.all() and ahead.min() == 1
    assert np.bincount(ahead)[1:] / len(ahead) == pytest.approx([1 / 19] * 19, abs=0.03)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_a_higher_rate_hits_the_same_objects_and_more(values: list[float]) -> None:
    true = objects([[10 * k, 0, 10 * k + 9, 9] for k in range(12)], [1 + k % 3 for k in range(12)])
    pairs = np.sort(np.array(values).reshape(3, 2), axis=1)
    hit = []
    for rates in pairs.T:
        _, noise = add_noise(true, Rates(*rates), (1, 0), (200, 50), 3)
        wrong = {("moved", row) for row in noise.source[noise.moved]}
        wrong |= {("swapped", row) for row in noise.source[noise.swapped]}
        hit.append((set(noise.dropped), wrong))
    assert hit[0][0] <= hit[1][0]
    assert {(kind, row) for kind, row in hit[0][1] if row not in hit[1][0]} <= hit[1][1]


def test_images_and_validation_stay_clean() -> None:
    noise = {"moved_boxes": 0.5, "swapped_classes": 0.5, "dropped_boxes": 0.5}
    clean, wrong = shapes("train", **MANY), shapes("train", **MANY, **noise)
    assert all(torch.equal(clean[index][0], wrong[index][0]) for index in range(10))
    assert len(wrong.labels) < 0.6 * len(clean.labels)
    val = [shapes("val", val_images=20, **more) for more in ({}, noise)]
    assert (val[0].boxes == val[1].boxes).all() and (val[0].labels == val[1].labels).all()


def test_images_may_lose_all_their_objects() -> None:
    data, _, noise = noisy(dropped_boxes=1.0)
    assert len(data) == 400 and data.boxes.shape == NO_BOXES.shape
    assert len(noise.source) == 0 and len(data[3][1]["labels"]) == 0
