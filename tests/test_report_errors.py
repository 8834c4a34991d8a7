"""Every kind of error worked by hand, and what must hold of any detections."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from test_evaluation import NAMES, detection, ground_truth, random_set

from experiments.report import errors
from experiments.report.errors import costs, judged
from experiments.report.matches import match, mean_precision
from frcnn.evaluation.coco import coco_evaluator

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CELL, PLATE = 1, 2
A, B, NOWHERE = [10.0, 10, 20, 20], [100.0, 100, 120, 120], [200.0, 9, 220, 29]  # xyxy
WIDE, NEAR = [10.0, 10, 25, 20], [20.0, 10, 30, 20]  # IoU 1/4: 5 of 20 columns
TOUCHING = [19.0, 10, 29, 20]  # IoU 1/19 with A

Found = Sequence[tuple[list[float], float, int]]


def judge(found: Found, objects: Sequence[tuple[int, list[float]]]) -> Any:
    """The evaluator of one image with these detections and objects, all xyxy."""
    rows = [(0, label, [x, y, right - x, low - y]) for label, (x, y, right, low) in objects]
    boxes, scores, labels = zip(*found, strict=True) if found else ([], [], [])
    detections = [detection(0, list(boxes), list(scores), list(labels))] if found else []
    evaluator = coco_evaluator(ground_truth(rows, images=1), detections, NAMES)
    match(evaluator)
    return evaluator


def cost(found: Found, objects: Sequence[tuple[int, list[float]]]) -> dict[str, float]:
    """The kinds that cost something."""
    everything = costs(judge(found, objects))
    assert tuple(everything) == KINDS
    return {name: value for name, value in everything.items() if value > 1e-12}


def test_no_error_costs_nothing() -> None:
    assert cost([(A, 0.9, CELL), (B, 0.8, PLATE)], [(CELL, A), (PLATE, B)]) == {}


def test_a_wrong_class() -> None:
    # Cells: A is called a plate, so none of one is found, AP 0. Plates: B is found behind a wrong
    # one, precision 1/2 everywhere. Mended, A is a true cell and no false plate: both 1.
    found = [(A, 0.9, PLATE), (B, 0.8, PLATE)]
    assert cost(found, [(CELL, A), (PLATE, B)]) == pytest.approx({"classification": 1 - 1 / 4})


def test_a_wrong_place() -> None:
    # B, then the other cell at IoU 1/4: precision 1 up to a recall of 1/2, 51 of 101 recalls.
    found = [(B, 0.9, CELL), (NEAR, 0.8, CELL)]
    assert cost(found, [(CELL, WIDE), (CELL, B)]) == pytest.approx({"localisation": 1 - 51 / 101})


def test_a_wrong_class_in_a_wrong_place() -> None:
    # Cells: AP 1. Plates: B is found behind a wrong one, precision 1/2.
    found = [(NEAR, 0.9, PLATE), (B, 0.8, PLATE), (WIDE, 0.7, CELL)]
    assert cost(found, [(CELL, WIDE), (PLATE, B)]) == pytest.approx({"both": 1 / 4})
    # It makes no object found: A is missed.
    assert cost(found[:2], [(CELL, WIDE), (PLATE, B)]).keys() == {"both", "missed"}


def test_a_duplicate() -> None:
    # A, A again, B: precision 1 up to a recall of 1/2, then 2/3.
    found = [(A, 0.9, CELL), (A, 0.8, CELL), (B, 0.7, CELL)]
    assert cost(found, [(CELL, A), (CELL, B)]) == pytest.approx(
        {"duplicate": 1 - (51 + 50 * 2 / 3) / 101}
    )


@pytest.mark.parametrize("box", [NOWHERE, TOUCHING], ids=str)
def test_background(box: list[float]) -> None:
    found = [(box, 0.9, CELL), (A, 0.8, CELL)]
    assert cost(found, [(CELL, A)]) == pytest.approx({"background": 1 / 2})


def test_background_where_nothing_is() -> None:
    rows = [detection(0, [A], [0.8], [CELL]), detection(1, [A], [0.9], [CELL])]
    truth = ground_truth([(0, CELL, [10.0, 10.0, 10.0, 10.0])], images=2)
    evaluator = coco_evaluator(truth, rows, NAMES)
    match(evaluator)
    found = {name: value for name, value in costs(evaluator).items() if value}
    assert found == pytest.approx({"background": 1 / 2})


def test_a_missed_object() -> None:
    assert cost([(A, 0.9, CELL)], [(CELL, A), (CELL, B)]) == pytest.approx({"missed": 1 - 51 / 101})
    assert cost([(A, 0.9, CELL)], [(CELL, A), (PLATE, B)]) == pytest.approx({"missed": 1 / 2})
    assert cost([], [(CELL, A)]) == {"missed": 1.0}


def test_the_first_kind_that_fits() -> None:
    # Near a cell and exactly on a plate, a cell is in the wrong place.
    evaluator = judge([(NEAR, 0.9, CELL)], [(CELL, WIDE), (PLATE, NEAR)])
    assert judged(evaluator).kind.tolist() == [errors.LOCALISATION]
    # On a cell that is found and on a plate, another cell has the wrong class.
    evaluator = judge([(A, 0.9, CELL), (A, 0.8, CELL)], [(CELL, A), (PLATE, A)])
    assert judged(evaluator).kind.tolist() == [errors.TRUE, errors.CLASSIFICATION]


def test_half_of_an_object_is_enough_to_be_on_it() -> None:
    # [10, 18] of A's [10, 20]: IoU 0.8, [10, 16]: 0.6.
    near, nearer = [10.0, 10, 16, 20], [10.0, 10, 18, 20]
    evaluator = judge([(near, 0.9, PLATE)], [(CELL, A)])
    assert judged(evaluator).kind.tolist() == [errors.CLASSIFICATION]
    evaluator = judge([(nearer, 0.9, CELL), (near, 0.8, CELL)], [(CELL, A)])
    assert judged(evaluator).kind.tolist() == [errors.TRUE, errors.DUPLICATE]


def test_one_object_is_mended_once_and_by_the_best_score() -> None:
    # Two wrong classes on A: the better one becomes true, the other goes. AP is 0 before, since
    # cells have no detection and plates no object.
    found = [(A, 0.9, PLATE), (A, 0.8, PLATE)]
    assert cost(found, [(CELL, A)]) == pytest.approx({"classification": 1.0})
    # The better one stands before what is of nothing, the other one would stand behind it.
    found = [(A, 0.9, PLATE), (NOWHERE, 0.7, CELL), (A, 0.5, PLATE)]
    assert cost(found, [(CELL, A)]) == pytest.approx({"classification": 1.0})
    # On an object that is found already both go: precision of plates is 1/3 before.
    found = [(A, 0.95, CELL), (A, 0.9, PLATE), (A, 0.8, PLATE), (B, 0.7, PLATE)]
    assert cost(found, [(CELL, A), (PLATE, B)]) == pytest.approx({"classification": 1 / 3})


def test_what_lies_on_a_crowd_is_no_error() -> None:
    truth = ground_truth([(0, CELL, [10.0, 10.0, 10.0, 10.0])] * 2, images=1)
    truth["annotations"][1] |= {"bbox": [100.0, 100.0, 20.0, 20.0], "iscrowd": 1}
    rows = [detection(0, [A, B, B], [0.7, 0.9, 0.8], [CELL] * 3)]
    evaluator = coco_evaluator(truth, rows, NAMES)
    match(evaluator)
    seen = judged(evaluator)
    assert seen.kind.tolist() == [errors.TRUE] and seen.found.tolist() == [True]


@pytest.mark.parametrize("seed", range(4))
def test_no_oracle_makes_it_worse_and_ap50_is_the_evaluators(seed: int) -> None:
    truth, found = random_set(seed=seed)
    rng = np.random.default_rng(seed)
    for row in found:  # some classes are wrong
        row["labels"] = np.where(rng.random(len(row["labels"])) < 0.2, 1, row["labels"])
    evaluator = coco_evaluator(truth, found, NAMES)
    ap50 = mean_precision(match(evaluator))[0].mean()
    gained = costs(evaluator)
    assert all(0 <= value <= 1 - ap50 for value in gained.values())
    assert sum(value > 0 for value in gained.values()) >= 5
    seen = judged(evaluator)
    counts = np.bincount(seen.object_label, minlength=3)
    own = errors._ap50(seen, np.arange(len(seen.label)), counts, counts)
    assert own == pytest.approx(ap50, abs=1e-12)


def scene(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Errors of every kind; no two equal scores, no crowd."""
    truth, found = random_set(seed=seed, images=30)
    for number, row in enumerate(found):
        order = np.arange(len(row["scores"]))
        row["scores"] = row["scores"] + order * 1e-3 + number * 1e-5
        row["labels"] = np.where(order % 4 == 0, 1, row["labels"])
    for row in truth["annotations"]:
        row["iscrowd"] = 0
    return truth, found


@pytest.mark.parametrize("seed", range(3))
def test_an_oracle_gives_what_the_evaluator_measures_of_mended_detections(seed: int) -> None:
    truth, found = scene(seed)
    evaluator = coco_evaluator(truth, found, NAMES)
    before = mean_precision(match(evaluator))[0].mean()
    gained, seen = costs(evaluator), judged(evaluator)
    # In the order of images, in each by class: that is how the objects are numbered.
    objects = sorted(truth["annotations"], key=lambda row: (row["image_id"], row["category_id"]))
    for name, kind in {**errors.MENDED, **errors.SUPPRESSED}.items():
        again = coco_evaluator(truth, mended(found, seen, objects, kind), NAMES)
        after = mean_precision(match(again))[0].mean()
        assert gained[name] > 0, name
        assert after - before == pytest.approx(gained[name], abs=1e-9), name
    missed = errors._missed(seen)
    left = [row for row, gone in zip(objects, missed, strict=True) if not gone]
    again = coco_evaluator({**truth, "annotations": left}, found, NAMES)
    after = mean_precision(match(again))[0].mean()
    assert after - before == pytest.approx(gained["missed"], abs=1e-9) and missed.any()


def mended(
    found: list[dict[str, Any]], seen: errors.Judged, objects: list[dict[str, Any]], kind: int
) -> list[dict[str, Any]]:
    """The detections with the errors of one kind put on the object they are for, or gone."""
    wrong = set(seen.score[seen.kind == kind].tolist())
    target: dict[int, float] = {}
    for row in np.flatnonzero(seen.kind == kind) if kind in errors.MENDED.values() else []:
        number = int(seen.target[row])
        if not seen.found[number]:
            target[number] = max(target.get(number, 0.0), float(seen.score[row]))
    right = {score: objects[number] for number, score in target.items()}
    rows = []
    for row in found:
        keep = [s not in wrong or s in right for s in row["scores"].tolist()]
        boxes, labels = row["boxes"].copy(), row["labels"].copy()
        for index, score in enumerate(row["scores"].tolist()):
            if score in right:
                x, y, width, height = right[score]["bbox"]
                boxes[index] = x, y, x + width, y + height
                labels[index] = right[score]["category_id"]
        columns = {"boxes": boxes, "labels": labels, "scores": row["scores"]}
        rows.append({"image_id": row["image_id"], **{k: v[keep] for k, v in columns.items()}})
    return rows
