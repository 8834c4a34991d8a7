"""LVIS's evaluation: worked by hand, equal to the published evaluator and to plain loops."""

import copy
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frcnn.evaluation.coco import coco_metrics, format_table, write_results
from frcnn.evaluation.frequency import with_frequencies

FREQUENCIES = ["r", "r", "c", "c", "c", "f", "f", "f", "f", "r"]  # the last has no object
NAMES = [f"class {k}" for k in range(1, len(FREQUENCIES) + 1)]

# Of ``federated_set(0)``, by the package lvis 0.5.3: printed by lvis_published.py. FIXED is of the
# best 40 detections of each class, without a limit per image.
PUBLISHED = {
    "AP": 0.31357155736289305, "AP50": 0.7238448931500053, "AP75": 0.1859880044330419,
    "APs": 0.345625349975744, "APm": 0.31134552776786667, "APl": 0.3819444444444444,
    "APr": 0.38754824274510796, "APc": 0.30416052037318453, "APf": 0.283641492414067,
    "AR@300": 0.53206570163678, "ARs@300": 0.5631845931845932,
    "ARm@300": 0.49457671957671956, "ARl@300": 0.4777777777777778,
}  # fmt: skip
FIXED = {"AP": 0.228201432505259, "APr": 0.23753286241298918,
         "APc": 0.2534246847765641, "APf": 0.2046182783479151}  # fmt: skip


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return request.param


def truth_of(
    images: int, objects: list[tuple], negative: list[tuple], partial: list[tuple]
) -> dict[str, Any]:
    """A federated COCO dict of ``(image, label, xywh)`` and of pairs ``(image, label)``."""

    def of(pairs: list[tuple], image: int) -> list[int]:
        return [label for own, label in pairs if own == image]

    return {
        "images": [
            {"id": i, "width": 300, "height": 300, "neg_category_ids": of(negative, i)}
            | {"not_exhaustive_category_ids": of(partial, i)}
            for i in range(images)
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": box[2] * box[3]}
            for n, (i, k, box) in enumerate(objects, 1)
        ],
        "categories": [
            {"id": k, "name": name, "frequency": group}
            for k, (name, group) in enumerate(zip(NAMES, FREQUENCIES, strict=True), 1)
        ],
    }


def found(image: int, rows: list[tuple]) -> dict[str, Any]:
    """The detections ``(label, score, xywh)`` of an image."""
    boxes = np.array([box for *_, box in rows], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores, labels = (np.array([row[k] for row in rows]) for k in (1, 0))
    return {"image_id": image, "boxes": boxes, "scores": scores, "labels": labels.astype(int)}


def federated_set(
    seed: int, images: int = 30, classes: int = 9, false: int = 8, crowded: int = 500
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Drawn by `random.random` alone, whose numbers never change.

    Detections lie near objects, anywhere, on objects that are not annotated, and now and then have
    no area. Image 0 has `crowded` more of them.
    """
    chance = random.Random(seed).random
    objects: list[tuple] = []
    pairs: dict[str, list[tuple]] = {"negative": [], "partial": []}
    detections = []

    def a_box() -> list[float]:
        side = [4 * 40 ** chance(), 4 * 40 ** chance()]
        return [chance() * 140, chance() * 140, *side]

    for image in range(images):
        rows = []
        for label in range(1, classes + 1):
            kind, partial = chance(), chance() < 0.3
            known = [a_box() for _ in range(int(chance() * 3) + 1)] if kind < 0.4 else []
            objects += [(image, label, box) for box in known]
            if 0.4 <= kind < 0.7:
                pairs["negative"].append((image, label))
            if partial and chance() < 0.9:
                pairs["partial"].append((image, label))
            for box in known * 2:
                sides = box[2:] * 2
                moved = [v + (chance() - 0.5) * s / 3 for v, s in zip(box, sides, strict=True)]
                rows.append((label, chance(), moved))
        for _ in range(false + crowded * (image == 0)):
            box = a_box() if chance() < 0.95 else [50.0, 50.0, 0.0, 9.0]
            rows.append((1 + int(chance() * classes), chance() * 0.8, box))
        detections.append(found(image, rows))
    return truth_of(images, objects, **pairs), detections


def test_equal_to_the_published_evaluator(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, detections = federated_set(0)
    before = copy.deepcopy(truth)
    monkeypatch.setattr("frcnn.evaluation.coco.PER_CLASS_LIMIT", 40)
    metrics = coco_metrics(truth, detections, NAMES, backend)
    assert truth == before
    keys = {"AR@300": "AR100", "ARs@300": "ARs", "ARm@300": "ARm", "ARl@300": "ARl"}
    for key, value in PUBLISHED.items():
        assert metrics[keys.get(key, key)] == pytest.approx(value, abs=1e-12), key
    for key, value in FIXED.items():
        assert metrics[f"{key}_fixed"] == pytest.approx(value, abs=1e-12), key


def test_the_set_tells_the_rules_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one of them AP is another."""
    truth, detections = federated_set(0)
    for rule, without in {
        "best_of_each": lambda rows, *_: rows,
        "judged": lambda rows, _: rows,
        "with_regions": dict,
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"frcnn.evaluation.coco.{rule}", without)
            metrics = coco_metrics(truth, detections, NAMES, "pycocotools")
            assert abs(metrics["AP"] - PUBLISHED["AP"]) > 1e-4, rule


BOX, ASIDE = [10.0, 10.0, 10.0, 10.0], [100.0, 100.0, 10.0, 10.0]


def test_dropped_ignored_and_matched_by_hand(backend: str) -> None:
    """Class 1 has an object in images 0 and 1; image 2 lists it as absent, image 3 does not.

    In image 1 its annotations are not exhaustive. Best first: a detection of image 3 is dropped,
    one beside the object of image 1 is ignored, the one on it is true, one of image 2 is false, the
    one on the object of image 0 is true. Precision 1 up to recall 1/2, then 2/3: of the recalls
    0.00..1.00, 51 are up to 1/2, so AP is (51 + 50 * 2/3) / 101.
    """
    truth = truth_of(4, [(0, 1, BOX), (1, 1, BOX)], negative=[(2, 1)], partial=[(1, 1)])
    detections = [
        found(0, [(1, 0.5, BOX)]),
        found(1, [(1, 0.8, ASIDE), (1, 0.7, BOX)]),
        found(2, [(1, 0.6, BOX)]),
        found(3, [(1, 0.9, BOX)]),
    ]
    metrics = coco_metrics(truth, detections, NAMES, backend)
    expected = (51 + 50 * 2 / 3) / 101
    for key in ("AP", "AP50", "APs", "APr", "AP_fixed", "APr_fixed"):
        assert metrics[key] == pytest.approx(expected), key
    assert metrics["APc"] is metrics["APf"] is metrics["APf_fixed"] is None
    # a second one on the object of image 1 is ignored too, one on that of image 0 is false
    twice = [found(0, [(1, 0.5, BOX)]), found(1, [(1, 0.8, BOX), (1, 0.7, BOX)])]
    assert coco_metrics(truth, twice, NAMES, backend)["AP"] == pytest.approx(1)
    twice = [found(0, [(1, 0.8, BOX), (1, 0.7, BOX)]), found(1, [(1, 0.5, BOX)])]
    assert coco_metrics(truth, twice, NAMES, backend)["AP"] == pytest.approx(expected)


def test_the_limit_is_over_all_classes_and_fixed_has_none(backend: str) -> None:
    """300 detections of class 2, which are dropped, score above that of class 1."""
    truth = truth_of(1, [(0, 1, BOX)], [], [])
    rows = [(2, 0.9 - n / 1000, ASIDE) for n in range(300)] + [(1, 0.5, BOX)]
    for limit, ap in ((None, 0), (301, 1), (300, 0)):
        metrics = coco_metrics(truth, [found(0, rows)], NAMES, backend, limit)
        assert [metrics["AP"], metrics["AP_fixed"]] == pytest.approx([ap, 1])
    assert coco_metrics(truth, [found(0, rows[1:])], NAMES, backend)["AP"] == pytest.approx(1)


def overlap(a: list[float], b: list[float]) -> float:
    """IoU of two boxes xywh."""
    sides = [min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    both = max(0.0, sides[0]) * max(0.0, sides[1])
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def ap_of_class(truth: dict[str, Any], rows: list[tuple], label: int, iou: float) -> float | None:
    """AP of ``(image, label, score, xywh)``, LVIS's rules told in loops."""
    images = {row["id"]: row for row in truth["images"]}
    objects = defaultdict(list)
    for row in truth["annotations"]:
        if row["category_id"] == label:
            objects[row["image_id"]].append(row["bbox"])
    if not objects:
        return None
    free = copy.deepcopy(objects)
    hits, precisions, recalls, judged = 0, [], [], 0
    for image, own, _, box in sorted(rows, key=lambda row: -row[2]):
        absent = label in images[image]["neg_category_ids"]
        if own != label or not (absent or image in objects) or not box[2] * box[3] > 0:
            continue
        near = [other for other in free[image] if overlap(box, other) >= iou]
        if near:
            free[image].remove(max(near, key=lambda other: overlap(box, other)))
            hits += 1
        elif label in images[image]["not_exhaustive_category_ids"]:
            continue
        judged += 1
        precisions.append(hits / judged)
        recalls.append(hits / sum(map(len, objects.values())))
    points = [
        max((p for p, r in zip(precisions, recalls, strict=True) if r >= at / 100), default=0)
        for at in range(101)
    ]
    return sum(points) / 101


def best(rows: list[tuple], column: int, limit: int) -> list[tuple]:
    kept: dict[int, int] = defaultdict(int)
    chosen = []
    for row in sorted(rows, key=lambda row: -row[2]):
        kept[row[column]] += 1
        if kept[row[column]] <= limit:
            chosen.append(row)
    return chosen


@pytest.mark.parametrize("limit", [6, 300])
def test_against_loops(backend: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """AP under both limits, over all classes and IoUs."""
    monkeypatch.setattr("frcnn.evaluation.coco.PER_CLASS_LIMIT", 3 * limit)
    for seed in range(60):
        truth, detections = federated_set(seed, images=4, classes=3, false=4, crowded=3)
        rows = [
            (one["image_id"], int(label), score, [*box[:2], *(box[2:] - box[:2])])
            for one in detections
            for label, score, box in zip(one["labels"], one["scores"], one["boxes"], strict=True)
        ]
        metrics = coco_metrics(truth, detections, NAMES, backend, limit)
        for column, most, key in ((0, limit, "AP"), (1, 3 * limit, "AP_fixed")):
            cut = best(rows, column, most)
            aps = [
                [ap_of_class(truth, cut, label, 0.5 + 0.05 * t) for t in range(10)]
                for label in range(1, 4)
            ]
            known = [sum(own) / 10 for own in aps if own[0] is not None]
            expected = pytest.approx(sum(known) / len(known), abs=1e-9) if known else None
            assert metrics[key] == expected, (seed, key)


def test_the_table_has_both_limits_and_the_groups_are_lvis_s() -> None:
    metrics = coco_metrics(*federated_set(0), NAMES)
    assert with_frequencies(metrics, [500] * len(NAMES)) is metrics
    names, of_all, fixed, *_ = format_table(metrics).splitlines()
    assert names.split()[-3:] == ["APr", "APc", "APf"]
    assert of_all.split()[-3:] == [f"{100 * metrics[k]:.1f}" for k in ("APr", "APc", "APf")]
    figures = [f"{100 * metrics[f'{k}_fixed']:.1f}" for k in ("AP", "APr", "APc", "APf")]
    assert fixed.split() == ["fixed", *figures]


def test_the_written_truth_names_the_original_classes(tmp_path: Path) -> None:
    truth = truth_of(2, [(0, 1, BOX)], negative=[(1, 3), (1, 1)], partial=[(0, 1)])
    write_results(tmp_path, [], truth, [7, 4], [18, 44, 5, *range(100, 107)])
    written = json.loads((tmp_path / "ground_truth.json").read_text())
    lists = [(r["neg_category_ids"], r["not_exhaustive_category_ids"]) for r in written["images"]]
    assert lists == [([], [18]), ([5, 18], [])]
    assert [row["frequency"] for row in written["categories"]] == FREQUENCIES
